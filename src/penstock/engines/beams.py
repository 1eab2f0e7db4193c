"""Beam search: what a request asks of it, and what it does not go with.

The names are vLLM's (`use_beam_search`, `length_penalty`; `n` is the number of beams) and Hugging
Face's (`early_stopping`, `num_beam_groups`, `diversity_penalty`). `best_of` is the number of beams
where fewer answers are wanted. Groups are those of
[Diverse Beam Search](https://arxiv.org/abs/1610.02424).
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from penstock.errors import RequestError, UnsupportedError
from penstock.types import Sampling

BEAM_SEARCH = "use_beam_search"
_FURTHER = (
    *("best_of", "diversity_penalty", "early_stopping"),
    *("length_penalty", "num_beam_groups"),
)
BEAM_PARAMETERS = frozenset({BEAM_SEARCH, *_FURTHER})
"""The names in `Sampling.extra` that an engine with beam search takes."""
_MOST = 128
_STEEPEST, _MOST_DIVERSE = 8.0, 100.0
_UNCHANGED = Sampling()
_WITHOUT = (
    *("logprobs", "prompt_logprobs", "logit_bias", "allowed_token_ids", "bad_words", "stop"),
    *(
        "min_tokens",
        "top_p",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
    ),
)


class Beams(Struct, frozen=True, array_like=True):
    """A search with `width` beams, of which the best `answers` are returned, the best first.

    A beam's score is the sum of its log probabilities divided by its length to the power of
    `length_penalty`. `early_stopping`: the search ends when there are `width` finished beams; false
    ends it where a better one is unlikely, "never" where there can be none. With several `groups`,
    a token that another group has chosen in the same step loses `diversity_penalty`.
    """

    width: int
    answers: int
    groups: int = 1
    diversity_penalty: float = 0.0
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False


def beams_of(sampling: Sampling, n: int) -> Beams | None:
    """The beam search that a request for `n` answers asks for. Raises `RequestError` for a value
    out of range, `UnsupportedError` for what does not go with it.
    """
    extra = sampling.extra
    if not extra.get(BEAM_SEARCH):
        for name in _FURTHER:
            if name in extra:
                raise RequestError(f"{name} needs {BEAM_SEARCH}", param=name)
        return None
    _check_alone(sampling)
    width = extra.get("best_of", n)
    beams = Beams(
        width,
        n,
        extra.get("num_beam_groups", 1),
        extra.get("diversity_penalty", 0.0),
        extra.get("length_penalty", 1.0),
        extra.get("early_stopping", False),
    )
    if not n <= width <= _MOST:
        raise _wrong("best_of", width, f"at least n, which is {n}, and at most {_MOST}")
    if not -_STEEPEST <= beams.length_penalty <= _STEEPEST:
        raise _wrong(
            "length_penalty", beams.length_penalty, f"between -{_STEEPEST:g} and {_STEEPEST:g}"
        )
    if width % beams.groups:
        raise _wrong("num_beam_groups", beams.groups, f"a divisor of the {width} beams")
    if not 0 <= beams.diversity_penalty <= _MOST_DIVERSE:
        raise _wrong(
            "diversity_penalty", beams.diversity_penalty, f"between 0 and {_MOST_DIVERSE:g}"
        )
    if (beams.groups > 1) != (beams.diversity_penalty > 0):
        needed, given = "diversity_penalty", "num_beam_groups"
        if beams.groups == 1:
            needed, given = given, needed
        raise RequestError(f"{given} needs {needed}", param=given)
    return beams


def _check_alone(sampling: Sampling) -> None:
    """Refuse what chooses tokens in another way, or needs them as they come."""
    found = [name for name in _WITHOUT if getattr(sampling, name) != getattr(_UNCHANGED, name)]
    if sampling.temperature not in (0, 1):
        found.append("temperature")
    if sampling.top_k > 0:
        found.append("top_k")
    if sampling.structured is not None:
        found.append(sampling.structured.param)
    if found:
        raise UnsupportedError(
            f"{BEAM_SEARCH} does not go with {' and '.join(found)}: leave out one or the other",
            param=found[0],
        )


def _wrong(name: str, value: object, rule: str) -> RequestError:
    return RequestError(f"{name} must be {rule}, not {value}", param=name)
