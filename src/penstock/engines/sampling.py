"""Sampling parameters, whatever the engine: their checks, default seeds, and stop strings.

The checks come before an engine sees a request: some engines accept nonsense in silence.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import TypeVar

import msgspec

from penstock.engines.base import Capabilities
from penstock.engines.beams import beams_of
from penstock.errors import PenstockError, RequestError, UnsupportedError, context_overflow
from penstock.parsing import is_too_deep, json_fault
from penstock.types import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Sampling,
    StructuredOutput,
)

MAX_N = 128
MAX_STOPS, LONGEST_STOP = 128, 4096
"""The most stop strings of a request, and the most characters of each: every token is searched for
all of them.
"""
MAX_BAD_WORDS, LONGEST_BAD_WORD = 4096, 256
"""The most bad words of a request, and the most characters of each."""
MOST_IDS = 1 << 20
"""The most token ids in one list of a request: no vocabulary has more. Gemma 3's has 262,208."""
LONGEST_CONSTRAINT = 262_144
"""The most characters of a JSON schema or a regular expression."""
_DEEPEST_SCHEMA = 200
LEAST = 2.0**-126
"""The smallest normal 32-bit float. Engines compute with such floats, and round a much smaller
number to 0.
"""
_LIMITS: dict[str, tuple[float, float, str]] = {
    "temperature": (0.0, 2.0, "between 0 and 2"),
    "min_p": (0.0, 1.0, "between 0 and 1"),
    "presence_penalty": (-2.0, 2.0, "between -2 and 2"),
    "frequency_penalty": (-2.0, 2.0, "between -2 and 2"),
    # Beyond these, products with a model's logits leave the range of a 32-bit float, and its
    # answers are noise.
    "repetition_penalty": (1e-6, 1e6, "between 1e-06 and 1e+06"),
    "top_p": (LEAST, 1.0, f"above 0 (at least {LEAST:.3g}) and at most 1"),
}
_WHOLE = ("max_tokens", "min_tokens", "top_k", "seed", "logprobs")


def check_sampling(sampling: Sampling, n: int, capabilities: Capabilities, engine: str) -> None:
    """Raise `RequestError` for a value out of range, `UnsupportedError` for a missing ability."""
    for name, (low, high, rule) in _LIMITS.items():
        value = getattr(sampling, name)
        if (
            not isinstance(value, (float, int))
            or isinstance(value, bool)
            or not low <= value <= high
        ):
            raise _out_of_range(name, value, rule)
    if 0.0 < sampling.temperature < LEAST:
        raise _out_of_range(
            "temperature", sampling.temperature, f"0 (greedy) or at least {LEAST:.3g}"
        )
    for name in _WHOLE:
        whole = getattr(sampling, name)
        if whole is not None and (type(whole) is not int or not -(2**63) <= whole < 2**63):
            raise _out_of_range(name, whole, "a whole number of at most 64 bits")
    if sampling.top_k < -1:
        raise _out_of_range("top_k", sampling.top_k, "-1 or 0 (off) or positive")
    if sampling.max_tokens is not None and sampling.max_tokens < 1:
        raise _out_of_range("max_tokens", sampling.max_tokens, "at least 1")
    if sampling.min_tokens < 0 or (
        sampling.max_tokens is not None and sampling.min_tokens > sampling.max_tokens
    ):
        raise _out_of_range("min_tokens", sampling.min_tokens, "at least 0 and at most max_tokens")
    if not 1 <= n <= MAX_N:
        raise _out_of_range("n", n, f"between 1 and {MAX_N}")
    if sampling.stop:
        _check_texts("stop strings", sampling.stop, MAX_STOPS, LONGEST_STOP, "stop")
    for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
        if (count := len(getattr(sampling, name))) > MOST_IDS:
            raise RequestError(f"{name} has {count:,} ids; {MOST_IDS:,} are taken", param=name)
    if sampling.stop_token_ids and not all(
        type(i) is int and 0 <= i < 2**31 for i in sampling.stop_token_ids
    ):
        raise RequestError(
            "stop_token_ids must be token ids: whole numbers from 0", param="stop_token_ids"
        )
    if sampling.logprobs is not None:
        _check_logprobs(sampling, capabilities, engine)
    if sampling.prompt_logprobs is not None:
        _check_prompt_logprobs(sampling.prompt_logprobs, capabilities, engine)
    if sampling.logit_bias or sampling.allowed_token_ids or sampling.bad_words:
        _check_bias(sampling, capabilities, engine)
    for name in sampling.extra:
        if name not in capabilities.extra:
            raise UnsupportedError(f"the {engine} engine takes no {name}", param=name)
    if sampling.extra:
        beams_of(sampling, n)
    if sampling.structured is not None:
        _check_structured(sampling.structured, capabilities, engine)


def prompt_sampling(request: CompletionRequest) -> tuple[Sampling, bool]:
    """The sampling with what an echo needs, and whether only the prompt is asked for.

    A request for the prompt alone has `max_tokens` 0. The engine generates one token for it, which
    is dropped.
    """
    sampling = request.sampling
    if not request.echo and sampling.prompt_logprobs is None:
        return sampling, False
    if request.echo and sampling.logprobs is not None and sampling.prompt_logprobs is None:
        sampling = msgspec.structs.replace(sampling, prompt_logprobs=sampling.logprobs)
    alone = sampling.max_tokens == 0
    if alone:
        sampling = msgspec.structs.replace(sampling, max_tokens=1, min_tokens=0)
    return sampling, alone


def check_token_ids(token_ids: Sequence[int], param: str) -> None:
    """Raise `RequestError` unless all can be token ids of some model."""
    if not {int}.issuperset(map(type, token_ids)):  # not True either
        raise RequestError("token ids must be whole numbers", param=param)
    check_id_range(token_ids, 2**31, param)


def check_inputs(inputs: Sequence[object], name: str, *, sees: bool = False) -> None:
    """Raise `RequestError` unless each input to embed is a text or token ids, or, for an engine
    (called `name`) that `sees`, a conversation.
    """
    for number, one in enumerate([inputs] if isinstance(inputs, str) else inputs):
        if isinstance(one, list | tuple):
            check_token_ids(one, f"input[{number}]")
        elif isinstance(one, ChatRequest):
            if not sees:
                raise UnsupportedError(
                    f"input[{number}]: the {name} engine makes vectors of texts with this model,"
                    " not of images and conversations: give an embedding model that sees on the"
                    " embedded engine",
                    param=f"input[{number}]",
                )
        elif not isinstance(one, str) or isinstance(inputs, str):
            raise RequestError(
                f"input[{number}] must be a text or a list of token ids", param=f"input[{number}]"
            )


@contextlib.contextmanager
def naming_input(number: int, count: int) -> Iterator[None]:
    """An error about one of several inputs to be embedded says which it is."""
    try:
        yield
    except PenstockError as error:
        if count > 1:
            why, place = str(error), f"input[{number}]"
            if error.param is not None:  # a place in that input's own messages
                why = why.removeprefix(f"{error.param}: ")
            error.args, error.param = (f"{place}: {why}",), place
        raise


def check_input_type(request: EmbeddingRequest, name: str) -> None:
    """Raise `UnsupportedError` if a request wants the model's instruction before its texts, and the
    engine (called `name`) adds none.
    """
    if request.input_type is not None:
        raise UnsupportedError(
            f"the {name} engine adds no instructions: put the model's own before each text",
            param="input_type",
        )


_VECTORS_NEED = {
    "dense": "ask for those (`vectors` of a job, `task` of /pooling)",
    "multi": "give an embedding model on the embedded engine or vLLM",
    "sparse": "give a model with a masked-language-model head (SPLADE) on the embedded engine",
}


def check_vectors(vectors: str, capabilities: Capabilities, name: str) -> None:
    """Raise `UnsupportedError` for a kind of vectors that an engine (called `name`) does not
    make.
    """
    made = capabilities.vectors
    if vectors not in made:
        raise UnsupportedError(
            f"the {name} engine makes {' and '.join(made)} vectors with this model, not {vectors}"
            f" ones: {_VECTORS_NEED.get(vectors, 'ask for those')}",
            param="model",
        )


def check_id_range(token_ids: Sequence[int], vocabulary: int, param: str) -> None:
    """Raise `RequestError` unless all are ids of a vocabulary."""
    if token_ids and not 0 <= min(token_ids) <= max(token_ids) < vocabulary:
        raise RequestError(f"token ids must be from 0 to {vocabulary - 1}", param=param)


def shown_prompt(sampling: Sampling, prompt: Sequence[int]) -> tuple[int, ...] | None:
    """The prompt's token ids for an answer's first delta; None if the request does not want
    them.
    """
    return tuple(prompt) if sampling.extra.get("return_token_ids") else None


def most_new_tokens(
    prompt_tokens: int, max_tokens: int | None, context_length: int, whole: bool = False
) -> int:
    """How many tokens an answer may have: `max_tokens`, or what the context leaves if that is
    less. Raises `RequestError` for an empty prompt, and `ContextLengthError` for one that leaves
    nothing, or, for a `whole` answer, less than `max_tokens`.
    """
    room = context_length - prompt_tokens
    if not prompt_tokens:
        raise RequestError("the prompt is empty", param="prompt")
    if room < 1 or (whole and (max_tokens or 0) > room):
        raise context_overflow(context_length, prompt_tokens, max_tokens)
    return min(max_tokens or room, room)


def _check_texts(what: str, texts: tuple[str, ...], most: int, longest: int, param: str) -> None:
    """Refuse more than `most` texts, and a text of more than `longest` characters. Errors call the
    texts `what`.
    """
    if len(texts) > most:
        raise RequestError(f"at most {most} {what} may be given, not {len(texts)}", param=param)
    if not all(type(text) is str and text for text in texts):
        raise RequestError(f"{what} must be texts, and not empty", param=param)
    if max(map(len, texts)) > longest:
        raise RequestError(f"{what} must have at most {longest} characters", param=param)


def _check_logprobs(sampling: Sampling, capabilities: Capabilities, engine: str) -> None:
    wanted = sampling.logprobs or 0
    if wanted < 0:
        raise _out_of_range("top_logprobs", wanted, "at least 0")
    if capabilities.max_top_logprobs < 0:
        raise UnsupportedError(
            f"the {engine} engine does not give log probabilities", param="logprobs"
        )
    # Under greedy decoding the chosen token is the most likely one, so one top entry needs nothing
    # from the engine.
    most = max(capabilities.max_top_logprobs, 1 if sampling.temperature == 0 else 0)
    if wanted > most:
        raise UnsupportedError(
            f"the {engine} engine gives at most {most} top_logprobs here, {wanted} were asked for",
            param="top_logprobs",
        )


def _check_prompt_logprobs(wanted: int, capabilities: Capabilities, engine: str) -> None:
    if not capabilities.prompt_logprobs:
        raise UnsupportedError(
            f"the {engine} engine gives no log probabilities of prompts", param="prompt_logprobs"
        )
    if not 0 <= wanted <= capabilities.max_top_logprobs:
        rule = f"between 0 and {capabilities.max_top_logprobs}"
        raise _out_of_range("prompt_logprobs", wanted, rule)


def _check_bias(sampling: Sampling, capabilities: Capabilities, engine: str) -> None:
    for name in ("logit_bias", "allowed_token_ids", "bad_words"):
        if getattr(sampling, name) and not capabilities.logit_bias:
            raise UnsupportedError(f"the {engine} engine takes no {name}", param=name)
    if not all(type(i) is int and 0 <= i < 2**31 for i, _ in sampling.logit_bias):
        raise RequestError("logit_bias must name token ids", param="logit_bias")
    if not all(-100.0 <= value <= 100.0 for _, value in sampling.logit_bias):
        raise RequestError("the values of logit_bias go from -100 to 100", param="logit_bias")
    if sampling.allowed_token_ids:
        check_token_ids(sampling.allowed_token_ids, "allowed_token_ids")
    if sampling.bad_words:
        words = sampling.bad_words
        _check_texts("bad_words", words, MAX_BAD_WORDS, LONGEST_BAD_WORD, "bad_words")


def _check_structured(
    structured: StructuredOutput, capabilities: Capabilities, engine: str
) -> None:
    if structured.kind not in capabilities.structured:
        raise UnsupportedError(
            f"the {engine} engine does not support {structured.kind} output", param=structured.param
        )
    if len(structured.spec) > LONGEST_CONSTRAINT:
        raise RequestError(
            f"the constraint has {len(structured.spec):,} characters; {LONGEST_CONSTRAINT:,} are"
            " taken",
            param=structured.param,
        )
    if structured.kind == "json_schema":  # the engines' own parsers say what the others may be
        try:
            check_json_schema(structured.spec)
        except RequestError as error:
            raise RequestError(str(error), param=structured.param) from None


def check_json_schema(spec: str) -> None:
    """Raise `RequestError` if the text is not a valid JSON Schema."""
    import jsonschema_rs  # only where a schema is given

    try:
        schema = json.loads(spec)
    except RecursionError:
        raise RequestError("the JSON schema is nested too deep", param="response_format") from None
    except ValueError:
        raise RequestError(
            f"the JSON schema is not valid JSON: {json_fault(spec)}", param="response_format"
        ) from None
    if not isinstance(schema, (dict, bool)):
        raise RequestError("the JSON schema must be an object", param="response_format")
    if is_too_deep(schema, _DEEPEST_SCHEMA):
        raise RequestError("the JSON schema is nested too deep", param="response_format")
    try:
        jsonschema_rs.meta.validate(schema)
    except jsonschema_rs.ValidationError as error:
        where = ".".join(map(str, error.instance_path)) or "its top level"
        raise RequestError(
            f"the JSON schema is not valid at {where}", param="response_format"
        ) from None
    except Exception:  # of what it names in '$schema'
        raise RequestError(
            "the JSON schema's '$schema' is no draft of JSON Schema that is known here",
            param="response_format",
        ) from None


def _out_of_range(name: str, value: object, rule: str) -> RequestError:
    try:
        written = str(value)
    except ValueError:  # Python writes no numbers of thousands of digits
        written = "a number of thousands of digits"
    return RequestError(f"{name} must be {rule}, not {written}", param=name)


Request = TypeVar("Request", ChatRequest, CompletionRequest)


def with_seed(request: Request) -> Request:
    """The request with a seed, so that asked again it is answered the same.

    The seed depends on the messages or the prompt and on the adapter: equal requests get equal
    answers, and other limits or log probabilities do not change them.
    """
    if request.sampling.is_deterministic:
        return request
    asked = getattr(request, "messages", None) or getattr(request, "prompt", None)
    try:
        content = msgspec.msgpack.encode((asked, request.adapter))
    except (ValueError, TypeError, OverflowError):  # lone surrogates and the like
        content = repr((asked, request.adapter)).encode(errors="backslashreplace")
    seed = int.from_bytes(blake2b(content, digest_size=4).digest(), "big") >> 1
    sampling = msgspec.structs.replace(request.sampling, seed=seed)
    return msgspec.structs.replace(request, sampling=sampling)


def seed_of_choice(seed: int, index: int) -> int:
    """The seed of one of several choices: the first has the request's own. No other request's
    choices have the others', also where its seed is the next one.
    """
    if index == 0:
        return seed
    return int.from_bytes(blake2b(f"{seed} {index}".encode(), digest_size=4).digest(), "big") >> 1


class StopStrings:
    """Feed it the text as it is generated; it returns what may be shown.

    Text that could be the beginning of a stop string is held back until it is decided. Once
    `stopped`, nothing more comes, and `found` is the stop string that came first.
    """

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._held = ""
        self._overlaps = [0] * len(stop)  # how much of each stop string the held text ends with
        self.found: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self.found is not None

    def push(self, text: str) -> str:
        """Add new text; returns the part that is safe to show."""
        if not self._stop:
            return text
        if self.stopped:
            return ""
        known = len(self._held)
        text = self._held + text
        # A stop string cannot begin before the longest part of it with which the held text ended.
        froms = [
            (stop, known - size) for stop, size in zip(self._stop, self._overlaps, strict=True)
        ]
        found = [(at, stop) for stop, start in froms if (at := text.find(stop, start)) >= 0]
        if found:
            cut, self.found = min(found)
            self._held = ""
            return text[:cut]
        self._overlaps = [_overlap(text, stop, start) for stop, start in froms]
        shown = text[: len(text) - max(self._overlaps)]
        self._held = text[len(shown) :]
        return shown

    def flush(self) -> str:
        """What is still held back, at the end of the generation."""
        held, self._held = self._held, ""
        self._overlaps = [0] * len(self._stop)
        return held


def _overlap(text: str, stop: str, start: int) -> int:
    """The length of the longest end of `text` that `stop` begins with, without `stop` itself. It
    does not begin before `start`.
    """
    start = max(start, len(text) - len(stop) + 1)
    while (start := text.find(stop[0], start)) >= 0:
        if stop.startswith(text[start:]):
            return len(text) - start
        start += 1
    return 0
