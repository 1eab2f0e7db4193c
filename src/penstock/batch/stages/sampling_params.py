"""`sampling_params` of a row, in the names of vLLM (and SGLang), as the neutral parameters of
engines.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from msgspec import Struct, field

from penstock.batch.stages.base import MAPPING
from penstock.config import parse_options
from penstock.errors import ConfigError, RequestError, UnsupportedError
from penstock.openai.constraints import one_of
from penstock.openai.requests import bias_pairs
from penstock.types import Sampling, StructuredOutput


class _Structured(Struct):
    json: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: list[str] | None = None
    json_object: bool | None = None
    grammar: str | None = None


class _Params(Struct):
    """`None` and the defaults of vLLM change nothing, whether we could honour others or not."""

    n: int = 1
    max_tokens: int | None = None
    max_new_tokens: int | None = None
    min_tokens: int = 0
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop: str | list[str] | None = None
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    logprobs: int | None = None
    structured_outputs: _Structured | None = None
    guided_decoding: _Structured | None = None
    json_schema: str | dict[str, Any] | None = None
    regex: str | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    best_of: int | None = None
    bad_words: list[str] | None = None
    prompt_logprobs: int | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: list[int] | None = None
    truncate_prompt_tokens: int | None = None


_DEFAULTS = _Params()
_NOT_OURS = (
    *("skip_special_tokens", "include_stop_str_in_output", "best_of"),
    *("prompt_logprobs", "truncate_prompt_tokens"),
)


def parse(params: Any) -> tuple[Sampling, int]:
    """The sampling and the number of answers that `params` (a mapping, or None) ask for. Raises
    `RequestError`.
    """
    if params is None:
        return Sampling(), 1
    if not isinstance(params, MAPPING):
        raise RequestError(
            f"sampling_params must be a dict, not a {type(params).__name__}",
            param="sampling_params",
        )
    try:
        return _known(**params)
    except TypeError:  # no cache holds lists
        return _parsed(params)


def _parsed(params: Mapping[str, Any]) -> tuple[Sampling, int]:
    # Columnar data gives every row every key; the empty ones were never there.
    given = {name: value for name, value in params.items() if value is not None}
    try:
        wanted = parse_options(_Params, given, "sampling_params")
    except ConfigError as error:
        raise RequestError(str(error), param=error.field) from None
    for name in _NOT_OURS:
        if getattr(wanted, name) != getattr(_DEFAULTS, name):
            raise UnsupportedError(
                f"sampling_params.{name} is not supported", param=f"sampling_params.{name}"
            )
    stop = wanted.stop or ()
    sampling = Sampling(
        max_tokens=wanted.max_tokens if wanted.max_tokens is not None else wanted.max_new_tokens,
        min_tokens=wanted.min_tokens or wanted.min_new_tokens,
        temperature=wanted.temperature,
        top_p=wanted.top_p,
        top_k=wanted.top_k,
        min_p=wanted.min_p,
        seed=wanted.seed,
        presence_penalty=wanted.presence_penalty,
        frequency_penalty=wanted.frequency_penalty,
        repetition_penalty=wanted.repetition_penalty,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stop_token_ids=tuple(wanted.stop_token_ids),
        ignore_eos=wanted.ignore_eos,
        logprobs=wanted.logprobs,
        structured=_structured(wanted),
        logit_bias=bias_pairs(wanted.logit_bias),
        allowed_token_ids=tuple(wanted.allowed_token_ids or ()),
        bad_words=tuple(wanted.bad_words or ()),
    )
    return sampling, wanted.n


@lru_cache(maxsize=64, typed=True)
def _known(**params: Any) -> tuple[Sampling, int]:
    """Those of numbers and texts, which mostly are the same for all rows."""
    return _parsed(params)


def _structured(wanted: _Params) -> StructuredOutput | None:
    said = wanted.structured_outputs or wanted.guided_decoding
    if said is None:
        said = _Structured(json=wanted.json_schema, regex=wanted.regex)
    if said.json is not None:
        text = (
            said.json if isinstance(said.json, str) else json.dumps(said.json, ensure_ascii=False)
        )
        return StructuredOutput("json_schema", text)
    if said.regex is not None:
        return StructuredOutput("regex", said.regex)
    if said.choice:
        return one_of(said.choice)
    if said.grammar is not None:
        return StructuredOutput("grammar", said.grammar, param="structured_outputs")
    return StructuredOutput("json_object") if said.json_object else None
