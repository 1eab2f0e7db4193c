"""Answers of OpenAI's Responses API: the finished object, and the events of its stream."""

from __future__ import annotations

from typing import Any

from penstock.errors import PenstockError
from penstock.openai.framing import event
from penstock.openai.response_requests import ResponseBody
from penstock.openai.responses import Answers, UsageTotal, error_body
from penstock.types import Delta, ToolCallPart, Usage


def response_body(
    answers: Answers, body: ResponseBody, *, id: str, created: int, model: str
) -> dict[str, Any]:
    """Body of a finished response, from the first of `answers`."""
    output: list[dict[str, Any]] = []
    calls = answers.tool_calls.get(0, [])
    complete = _status(answers.reasons.get(0))
    if answers.texts.get(0) or not calls:
        output.append(_message(f"msg_{id}", complete, answers.texts.get(0, "")))
    for call in calls:
        output.append(_function_call(call.id, call.name, call.arguments, complete))
    return _response(body, id, created, model, complete, output, answers.usage)


class ResponseFramer:
    """Events of a streamed `POST /v1/responses`."""

    def __init__(self, body: ResponseBody, *, id: str, created: int, model: str) -> None:
        self._body = body
        self._about = (id, created, model)
        self._sequence = 0
        self._total = UsageTotal()
        self._reason: str | None = None
        # The kind of the open item: "message" or "function_call".
        self._open: str | None = None
        self._done: list[dict[str, Any]] = []  # the finished items before the open one
        self._text = ""
        self._call: dict[str, Any] = {}

    def open(self) -> bytes:
        response = self._response("in_progress", None)
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def frame(self, delta: Delta) -> bytes:
        self._total.add(delta)
        self._reason = delta.finish_reason or self._reason
        events = b""
        if delta.text:
            if self._open != "message":
                events += self._end_item() + self._start_message()
            self._text += delta.text
            events += self._event(
                "response.output_text.delta", **self._place(), delta=delta.text, logprobs=[]
            )
        if delta.tool_calls:
            for part in delta.tool_calls:
                events += self._call_part(part)
        return events

    def close(self) -> bytes:
        events = b""
        if self._open is None and not self._done:
            events += self._start_message()
        events += self._end_item()
        status = _status(self._reason)
        response = self._response(status, self._total.usage)
        return events + self._event(
            "response.completed" if status == "completed" else "response.incomplete",
            response=response,
        )

    def error(self, error: PenstockError) -> bytes:
        response = self._response("failed", None)
        response["error"] = {"code": "server_error", "message": str(error)}
        return self._event("error", **_error_fields(error)) + self._event(
            "response.failed", response=response
        )

    # Items
    def _start_message(self) -> bytes:
        self._open, self._text = "message", ""
        item = {**_message(self._item_id, "in_progress", ""), "content": []}
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        return self._event(
            "response.output_item.added", output_index=len(self._done), item=item
        ) + self._event("response.content_part.added", **self._place(), part=part)

    def _call_part(self, part: ToolCallPart) -> bytes:
        events = b""
        if part.id is not None:
            events += self._end_item()
            self._open = "function_call"
            self._call = _function_call(part.id, part.name or "", "", "in_progress")
            events += self._event(
                "response.output_item.added", output_index=len(self._done), item=self._call
            )
        if part.arguments:
            self._call["arguments"] += part.arguments
            events += self._event(
                "response.function_call_arguments.delta",
                item_id=self._call["id"],
                output_index=len(self._done),
                delta=part.arguments,
            )
        return events

    def _end_item(self) -> bytes:
        if self._open is None:
            return b""
        if self._open == "message":
            item = _message(self._item_id, "completed", self._text)
            events = self._event(
                "response.output_text.done", **self._place(), text=self._text, logprobs=[]
            )
            events += self._event(
                "response.content_part.done", **self._place(), part=item["content"][0]
            )
        else:
            item = {**self._call, "status": "completed"}
            events = self._event(
                "response.function_call_arguments.done",
                item_id=item["id"],
                output_index=len(self._done),
                name=item["name"],
                arguments=item["arguments"],
            )
        events += self._event("response.output_item.done", output_index=len(self._done), item=item)
        self._done.append(item)
        self._open = None
        return events

    # Parts of events
    @property
    def _item_id(self) -> str:
        return f"msg_{self._about[0]}" + (f"_{len(self._done)}" if self._done else "")

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": len(self._done), "content_index": 0}

    def _response(self, status: str, usage: Usage | None) -> dict[str, Any]:
        return _response(self._body, *self._about, status, list(self._done), usage)

    def _event(self, kind: str, **fields: Any) -> bytes:
        number, self._sequence = self._sequence, self._sequence + 1
        return event(kind, {"type": kind, "sequence_number": number, **fields})


def response_error_events(error: PenstockError) -> bytes:
    """The bytes of the error event that ends a stream whose response object is not known."""
    return event("error", {"type": "error", **_error_fields(error)})


def _error_fields(error: PenstockError) -> dict[str, Any]:
    about = error_body(error)["error"]
    return {name: about[name] for name in ("code", "message", "param")}


def _status(reason: str | None) -> str:
    return "incomplete" if reason in ("length", "content_filter") else "completed"


def _message(id: str, status: str, text: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
    return {"type": "message", "id": id, "status": status, "role": "assistant", "content": content}


def _function_call(call_id: str, name: str, arguments: str, status: str) -> dict[str, Any]:
    return {
        "type": "function_call",
        "id": f"fc_{call_id}",
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
        "status": status,
    }


def _response(
    body: ResponseBody,
    id: str,
    created: int,
    model: str,
    status: str,
    output: list[dict[str, Any]],
    usage: Usage | None,
) -> dict[str, Any]:
    return {
        "id": f"resp_{id}",
        "object": "response",
        "created_at": created,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": model,
        "output": output,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": (body.text and body.text.format) or {"type": "text"}},
        "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
        "tools": body.tools or [],
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "usage": None
        if usage is None
        else {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        },
    }
