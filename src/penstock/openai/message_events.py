"""Answers of Anthropic's Messages API: the finished message, its stream of events, and errors."""

from __future__ import annotations

import json
from typing import Any

from penstock.errors import PenstockError
from penstock.openai.framing import event
from penstock.openai.responses import Answers, UsageTotal
from penstock.types import Delta, ToolCallPart, Usage

_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}
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
    """Body of a finished message, from the first of `answers`."""
    content: list[dict[str, Any]] = []
    calls = answers.tool_calls.get(0, [])
    if answers.texts.get(0) or not calls:
        content.append({"type": "text", "text": answers.texts.get(0, "")})
    for call in calls:
        content.append(
            {"type": "tool_use", "id": call.id, "name": call.name, "input": _object(call.arguments)}
        )
    return _message(
        id, model, content, _ending(answers.reasons.get(0), answers.stops.get(0)), answers.usage
    )


def message_error(error: PenstockError) -> dict[str, Any]:
    """The body of a failed request: `{"type": "error", "error": {type, message}}`."""
    fallback = "invalid_request_error" if error.status < 500 else "api_error"
    return {
        "type": "error",
        "error": {"type": _ERROR_TYPES.get(error.status, fallback), "message": str(error)},
    }


def message_error_events(error: PenstockError) -> bytes:
    """The bytes of the error event that ends a stream of messages' events."""
    return event("error", message_error(error))


class MessageFramer:
    """Events of a streamed `POST /v1/messages`."""

    def __init__(self, *, id: str, model: str) -> None:
        self._id = id
        self._model = model
        self._index = -1
        self._open: str | None = None  # the kind of the open block: "text" or "tool_use"
        self._total = UsageTotal()
        self._begun = False
        self._reason: str | None = None
        self._stop: str | None = None

    def open(self) -> bytes:
        return b""  # the message starts with the prompt's usage, which comes with the first delta

    def frame(self, delta: Delta) -> bytes:
        self._total.add(delta)
        self._reason = delta.finish_reason or self._reason
        self._stop = delta.stop or self._stop
        events = b"" if self._begun else self._start_message(delta.usage or Usage())
        if delta.text:
            if self._open != "text":
                events += self._start({"type": "text", "text": ""}, "text")
            events += self._delta({"type": "text_delta", "text": delta.text})
        if delta.tool_calls:
            events += b"".join(map(self._call, delta.tool_calls))
        return events

    def close(self) -> bytes:
        events = b"" if self._begun else self._start_message(Usage())
        if self._index < 0:
            events += self._start({"type": "text", "text": ""}, "text")
        events += self._end()
        ending = _ending(self._reason, self._stop)
        events += event(
            "message_delta",
            {"type": "message_delta", "delta": ending, "usage": _usage(self._total.usage)},
        )
        return events + event("message_stop", {"type": "message_stop"})

    def error(self, error: PenstockError) -> bytes:
        return message_error_events(error)

    def _start_message(self, usage: Usage) -> bytes:
        self._begun = True
        message = _message(
            self._id, self._model, [], {"stop_reason": None, "stop_sequence": None}, usage
        )
        return event("message_start", {"type": "message_start", "message": message})

    def _call(self, part: ToolCallPart) -> bytes:
        events = b""
        if part.id is not None:
            block: dict[str, Any] = {
                "type": "tool_use",
                "id": part.id,
                "name": part.name,
                "input": {},
            }
            events += self._start(block, "tool_use")
        if part.arguments:
            events += self._delta({"type": "input_json_delta", "partial_json": part.arguments})
        return events

    def _start(self, block: dict[str, Any], kind: str) -> bytes:
        ended = self._end()
        self._index += 1
        self._open = kind
        start = {"type": "content_block_start", "index": self._index, "content_block": block}
        return ended + event("content_block_start", start)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return event(
            "content_block_delta",
            {"type": "content_block_delta", "index": self._index, "delta": delta},
        )

    def _end(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return event("content_block_stop", {"type": "content_block_stop", "index": self._index})


def _message(
    id: str, model: str, content: list[dict[str, Any]], ending: dict[str, Any], usage: Usage
) -> dict[str, Any]:
    return {
        "id": f"msg_{id}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        **ending,
        "usage": _usage(usage),
    }


def _usage(usage: Usage) -> dict[str, int]:
    """Usage in Anthropic's form, which counts cached input tokens separately."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
    }


def _ending(reason: str | None, stop: str | None) -> dict[str, Any]:
    """Why the message ended; `stop` is the stop string that ended it, if any."""
    if stop is not None and reason == "stop":
        return {"stop_reason": "stop_sequence", "stop_sequence": stop}
    return {"stop_reason": _STOP_REASONS.get(reason or "stop", "end_turn"), "stop_sequence": None}


def _object(arguments: str) -> dict[str, Any]:
    """The arguments as an object. A truncated call is invalid JSON: the client gets its text."""
    try:
        value = json.loads(arguments)
    except ValueError:
        return {"_incomplete": arguments}
    return value if isinstance(value, dict) else {"value": value}
