"""Answers in the form of Anthropic's Messages API: the finished message, its events while it streams, and errors."""

from __future__ import annotations

import json
from typing import Any

from penstock.errors import PenstockError
from penstock.openai.framing import event
from penstock.openai.responses import Answers, UsageTotal
from penstock.types import Delta, ToolCallPart, Usage

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def message_body(answers: Answers, *, id: str, model: str) -> dict[str, Any]:
    """Body of a finished message."""
    content: list[dict[str, Any]] = []
    calls = answers.tool_calls.get(0, [])
    if answers.texts.get(0) or not calls:
        content.append({"type": "text", "text": answers.texts.get(0, "")})
    for call in calls:
        content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": _object(call.arguments)})
    return _message(id, model, content, _stop_reason(answers.reasons.get(0)), answers.usage)


def message_error(error: PenstockError) -> dict[str, Any]:
    """The body of a failed request."""
    fallback = "invalid_request_error" if error.status < 500 else "api_error"
    return {"type": "error", "error": {"type": _ERROR_TYPES.get(error.status, fallback), "message": str(error)}}


class MessageFramer:
    """Events of a streamed `POST /v1/messages`."""

    def __init__(self, *, id: str, model: str) -> None:
        self._id = id
        self._model = model
        self._index = -1
        self._open: str | None = None  # the kind of the block being written: "text" or "tool_use"
        self._total = UsageTotal()
        self._reason: str | None = None

    def open(self) -> bytes:
        # The usage is known at the end; `message_delta` carries it in full.
        message = _message(self._id, self._model, [], None, Usage())
        return event("message_start", {"type": "message_start", "message": message})

    def frame(self, delta: Delta) -> bytes:
        self._total.add(delta)
        self._reason = delta.finish_reason or self._reason
        events = b""
        if delta.text:
            if self._open != "text":
                events += self._start({"type": "text", "text": ""}, "text")
            events += self._delta({"type": "text_delta", "text": delta.text})
        if delta.tool_calls:
            events += b"".join(map(self._call, delta.tool_calls))
        return events

    def close(self) -> bytes:
        events = self._start({"type": "text", "text": ""}, "text") if self._index < 0 else b""
        events += self._stop()
        ending = {"stop_reason": _stop_reason(self._reason), "stop_sequence": None}
        events += event("message_delta", {"type": "message_delta", "delta": ending, "usage": _usage(self._total.usage)})
        return events + event("message_stop", {"type": "message_stop"})

    def error(self, error: PenstockError) -> bytes:
        return event("error", message_error(error))

    def _call(self, part: ToolCallPart) -> bytes:
        events = b""
        if part.id is not None:
            block: dict[str, Any] = {"type": "tool_use", "id": part.id, "name": part.name, "input": {}}
            events += self._start(block, "tool_use")
        if part.arguments:
            events += self._delta({"type": "input_json_delta", "partial_json": part.arguments})
        return events

    def _start(self, block: dict[str, Any], kind: str) -> bytes:
        ended = self._stop()
        self._index += 1
        self._open = kind
        start = {"type": "content_block_start", "index": self._index, "content_block": block}
        return ended + event("content_block_start", start)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return event("content_block_delta", {"type": "content_block_delta", "index": self._index, "delta": delta})

    def _stop(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return event("content_block_stop", {"type": "content_block_stop", "index": self._index})


def _message(
    id: str, model: str, content: list[dict[str, Any]], stop_reason: str | None, usage: Usage
) -> dict[str, Any]:
    return {
        "id": f"msg_{id}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": _usage(usage),
    }


def _usage(usage: Usage) -> dict[str, int]:
    """Anthropic counts cached input apart."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
    }


def _stop_reason(reason: str | None) -> str:
    return _STOP_REASONS.get(reason or "stop", "end_turn")


def _object(arguments: str) -> dict[str, Any]:
    """A call cut short has arguments that are no JSON; the client is given what there was."""
    try:
        value = json.loads(arguments)
    except ValueError:
        return {"_incomplete": arguments}
    return value if isinstance(value, dict) else {"value": value}
