"""Checks a request's sampling parameters before an engine sees them, since some engines accept nonsense in silence."""

from __future__ import annotations

import json
import re

from penstock.engines.base import Capabilities
from penstock.errors import RequestError, UnsupportedError
from penstock.types import Sampling, StructuredOutput

MAX_N = 128
_LIMITS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 2.0),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}


def check_sampling(sampling: Sampling, n: int, capabilities: Capabilities, engine: str) -> None:
    """Raise `RequestError` naming the parameter that is out of range, or `UnsupportedError` for a missing ability."""
    for name, (low, high) in _LIMITS.items():
        value = getattr(sampling, name)
        if not low <= value <= high:
            raise _out_of_range(name, value, f"between {low:g} and {high:g}")
    if not 0.0 < sampling.top_p <= 1.0:
        raise _out_of_range("top_p", sampling.top_p, "above 0 and at most 1")
    if sampling.top_k < -1:
        raise _out_of_range("top_k", sampling.top_k, "-1 or 0 (off) or positive")
    if sampling.repetition_penalty <= 0:
        raise _out_of_range("repetition_penalty", sampling.repetition_penalty, "above 0")
    if sampling.max_tokens is not None and sampling.max_tokens < 1:
        raise _out_of_range("max_tokens", sampling.max_tokens, "at least 1")
    if sampling.min_tokens < 0 or (sampling.max_tokens is not None and sampling.min_tokens > sampling.max_tokens):
        raise _out_of_range("min_tokens", sampling.min_tokens, "at least 0 and at most max_tokens")
    if not 1 <= n <= MAX_N:
        raise _out_of_range("n", n, f"between 1 and {MAX_N}")
    if any(not s for s in sampling.stop):
        raise RequestError("stop strings must not be empty", param="stop")
    if sampling.logprobs is not None:
        _check_logprobs(sampling, capabilities, engine)
    if sampling.structured is not None:
        _check_structured(sampling.structured, capabilities, engine)


def _check_logprobs(sampling: Sampling, capabilities: Capabilities, engine: str) -> None:
    wanted = sampling.logprobs or 0
    if wanted < 0:
        raise _out_of_range("top_logprobs", wanted, "at least 0")
    if capabilities.max_top_logprobs < 0:
        raise UnsupportedError(f"the {engine} engine does not give log probabilities", param="logprobs")
    # Under greedy decoding the chosen token is the most likely one, so one top entry needs nothing from the engine.
    most = max(capabilities.max_top_logprobs, 1 if sampling.temperature == 0 else 0)
    if wanted > most:
        raise UnsupportedError(
            f"the {engine} engine gives at most {most} top_logprobs here, {wanted} were asked for", param="top_logprobs"
        )


def _check_structured(structured: StructuredOutput, capabilities: Capabilities, engine: str) -> None:
    if structured.kind not in capabilities.structured:
        raise UnsupportedError(
            f"the {engine} engine does not support {structured.kind} output", param="response_format"
        )
    if structured.kind == "regex":
        try:
            re.compile(structured.spec)
        except re.error as error:
            raise RequestError(f"not a valid regular expression: {error}", param="response_format") from None
    elif structured.kind == "json_schema":
        check_json_schema(structured.spec)


def check_json_schema(spec: str) -> None:
    """Raise `RequestError` if the text is not a valid JSON Schema."""
    from jsonschema.exceptions import SchemaError  # only where a schema is given: it is slow to import
    from jsonschema.validators import validator_for

    try:
        schema = json.loads(spec)
        validator_for(schema).check_schema(schema)
    except ValueError as error:
        raise RequestError(f"the JSON schema is not valid JSON: {error}", param="response_format") from None
    except SchemaError as error:
        where = ".".join(str(p) for p in error.absolute_path) or "the top level"
        raise RequestError(
            f"the JSON schema is not valid at {where}: {error.message}", param="response_format"
        ) from None


def _out_of_range(name: str, value: object, rule: str) -> RequestError:
    return RequestError(f"{name} must be {rule}, not {value}", param=name)
