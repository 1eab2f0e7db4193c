"""The tokens of a batch: summed up from the lines of its output."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from penstock.openai.responses_api import response_usage
from penstock.types import Usage


class _Answer(Struct):
    usage: dict[str, Any] | None = None


class _Response(Struct):
    body: _Answer | None = None


class _Line(Struct):
    response: _Response | None = None


def usage_of(output: Path) -> dict[str, Any]:
    """The `usage` of a batch, as OpenAI has it."""
    decode = msgspec.json.Decoder(_Line).decode
    total = Usage()
    with output.open("rb") as file:
        for text in file:
            line = decode(text)
            if line.response is not None and line.response.body is not None:
                total += _usage(line.response.body.usage or {})
    return response_usage(total)


def _usage(given: Mapping[str, Any]) -> Usage:
    """The usage of an answer in any of its forms."""
    input_details = given.get("prompt_tokens_details") or given.get("input_tokens_details") or {}
    output_details = (
        given.get("completion_tokens_details") or given.get("output_tokens_details") or {}
    )
    anthropic = given.get("cache_read_input_tokens", 0)  # counted apart from the input there
    return Usage(
        given.get("prompt_tokens", 0) or given.get("input_tokens", 0) + anthropic,
        given.get("completion_tokens", 0) or given.get("output_tokens", 0),
        input_details.get("cached_tokens", 0) or anthropic,
        output_details.get("reasoning_tokens", 0),
    )
