"""The tokens that a stage's columns tell of: an engine's own, or those in an answer of an API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penstock.types import Usage

_PROMPT = ("prompt_tokens", "input_tokens")
_ANSWER = ("completion_tokens", "output_tokens")
_DETAILS = ("prompt_tokens_details", "input_tokens_details")


def usage_of(columns: Mapping[str, Any]) -> Usage | None:
    """Those of one stage; None where nothing is said of tokens."""
    if "num_input_tokens" in columns:
        names = ("num_input_tokens", "num_generated_tokens", "num_cached_tokens")
        return Usage(*(_number(columns, name) for name in names))
    said = columns.get("usage")
    if said is None and isinstance(answer := columns.get("http_response"), dict):
        said = answer.get("usage")
    if not isinstance(said, dict):
        return None
    cached = sum(
        _number(part, "cached_tokens")
        for name in _DETAILS
        if isinstance(part := said.get(name), dict)
    )
    usage = Usage(
        sum(_number(said, name) for name in _PROMPT),
        sum(_number(said, name) for name in _ANSWER),
        cached,
    )
    return usage if usage != Usage() else None


def _number(said: Mapping[str, Any], name: str) -> int:
    value = said.get(name)
    return value if isinstance(value, int) else 0
