"""Checks a job's options one by one, before anything is opened: their types, and the ranges of
numbers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import msgspec

from penstock.engines.base import Capabilities
from penstock.engines.sampling import check_sampling
from penstock.errors import ConfigError, RequestError
from penstock.types import Sampling

_TEXT = ("model", "prompt", "messages", "system", "adapter", "result_prefix")
_WHOLE = (
    "max_tokens",
    "top_k",
    "seed",
    "min_tokens",
    "limit",
    "max_attempts",
    "max_tokens_total",
    "replicas",
)
_REAL = (
    *(
        "temperature",
        "top_p",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
    ),
    *("row_timeout", "max_error_rate"),
)
_OPTIONAL = frozenset(
    {
        *(
            "model",
            "prompt",
            "messages",
            "system",
            "adapter",
            "max_tokens",
            "temperature",
            "seed",
            "limit",
        ),
        *("row_timeout", "max_tokens_total", "max_error_rate"),
    }
)
_LEAST = {"limit": 0, "max_tokens": 1, "max_attempts": 1, "max_tokens_total": 1, "replicas": 1}
_ALLOWED = {
    "runtime": ("local", "ray"),
    "order": ("input", "done"),
    "on_invalid_json": ("keep", "retry"),
}


def check(job: Any) -> None:
    """Raise `ConfigError` for an option of a `Job` that has the wrong type or lies out of range."""
    _check_types(job)
    for name, allowed in _ALLOWED.items():
        value = getattr(job, name)
        if value not in allowed:
            raise ConfigError(
                f"must be {' or '.join(allowed)}, not {value!r}", field=name, value=value
            )
    for name, least in _LEAST.items():
        number = getattr(job, name)
        if number is not None and number < least:
            raise ConfigError(f"must be at least {least}, not {number}", field=name, value=number)
    for name in _REAL:
        value = getattr(job, name)
        if value is not None and not math.isfinite(value):
            raise ConfigError(f"must be a finite number, not {value}", field=name)
    if job.row_timeout is not None and job.row_timeout <= 0:
        raise ConfigError(
            f"must be above 0, not {job.row_timeout}", field="row_timeout", value=job.row_timeout
        )
    if job.max_error_rate is not None and not 0 <= job.max_error_rate <= 1:
        raise ConfigError(f"must be from 0 to 1, not {job.max_error_rate}", field="max_error_rate")
    if job.seed is not None and not -(1 << 63) <= job.seed < 1 << 63:
        raise ConfigError("must fit into 64 bits", field="seed", value=job.seed)


def check_sampling_choices(sampling: Sampling) -> None:
    """Raise `ConfigError` for sampling that no engine can follow. What one engine lacks shows when
    it has started.
    """
    plain = msgspec.structs.replace(sampling, structured=None)
    try:
        check_sampling(plain, 1, Capabilities(frozenset(), 0, 0), "")
    except RequestError as error:
        name = error.param or ""
        raise ConfigError(str(error).removeprefix(f"{name} "), field=name) from None


def _check_types(job: Any) -> None:
    for names, kind, meant in (
        (_TEXT, str, "text"),
        (_WHOLE, Integral, "a whole number"),
        (_REAL, Real, "a number"),
    ):
        for name in names:
            value = getattr(job, name)
            if not (value is None and name in _OPTIONAL):
                _require(
                    isinstance(value, kind) and not isinstance(value, bool), name, value, meant
                )
                _require_unicode(name, value)
    _require(
        job.output is None or isinstance(job.output, str | os.PathLike),
        "output",
        job.output,
        "a path",
    )
    schema = job.schema
    _require(
        schema is None or isinstance(schema, Mapping | str | os.PathLike),
        "schema",
        schema,
        "a mapping or a path",
    )
    processor = job.processor
    _require(
        processor is None or hasattr(processor, "stages"), "processor", processor, "a Processor"
    )
    letter = job.dead_letter
    _require(
        letter is None or isinstance(letter, str | os.PathLike), "dead_letter", letter, "a path"
    )
    _require(
        isinstance(job.on_error, str | Mapping | None),
        "on_error",
        job.on_error,
        "an action, or a mapping of them",
    )
    _require(isinstance(job.on_length, str), "on_length", job.on_length, "text")
    kwargs = job.engine_kwargs
    _require(kwargs is None or isinstance(kwargs, Mapping), "engine_kwargs", kwargs, "a mapping")
    _require(
        isinstance(job.deterministic, bool), "deterministic", job.deterministic, "true or false"
    )
    stops = [job.stop] if isinstance(job.stop, str) else job.stop
    _require(_is_list_of(stops, str), "stop", job.stop, "text or a list of texts")
    for stop in stops:
        _require_unicode("stop", stop)
    _require(
        _is_list_of(job.stop_token_ids, Integral),
        "stop_token_ids",
        job.stop_token_ids,
        "a list of numbers",
    )


def _require(holds: bool, name: str, value: object, meant: str) -> None:
    if not holds:
        raise ConfigError(f"must be {meant}, not a {type(value).__name__}", field=name, value=value)


def _require_unicode(name: str, value: object) -> None:
    """A byte on the command line that is no UTF-8 comes as half of a surrogate pair, which no
    engine can be sent.
    """
    try:
        str(value).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"is no UTF-8 at character {error.start + 1}", field=name, value=value
        ) from None


def _is_list_of(values: object, kind: type) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(value, kind) for value in values)
