"""Events of a streamed `POST /v1/responses`."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from penstock.errors import PenstockError
from penstock.openai.framing import Framer, event, merged_parts
from penstock.openai.responses import UsageTotal, error_body, token_logprobs
from penstock.openai.responses_api import (
    Item,
    ResponseBody,
    call_item,
    item_id,
    message_item,
    reasoning_item,
    response_object,
    status_of,
)
from penstock.openai.tool_forms import CustomInput
from penstock.types import Delta, TokenLogprob, ToolCallPart, Usage


class _Text(Struct, frozen=True):
    """The names in events of one kind of text: of its items, its part, and of the part's place."""

    item: str
    id: str
    text: str
    part: str
    index: str


_MESSAGE = _Text("message", "msg", "output_text", "content_part", "content_index")
_REASONING = _Text("reasoning", "rs", "reasoning_text", "content_part", "content_index")
_SUMMARY = _Text(
    "reasoning", "rs", "reasoning_summary_text", "reasoning_summary_part", "summary_index"
)


class ResponseFramer(Framer):
    """Writes the stream. Events are numbered as they are made: `open` comes before `frame`."""

    def __init__(self, body: ResponseBody, *, id: str, created: int, model: str) -> None:
        self._body = body
        self._custom = body.custom
        self._transfer: dict[str, Any] | None = None
        self._about = (id, created, model)
        self._sequence = 0
        self._total = UsageTotal()
        self._reason: str | None = None
        self._thoughts = _SUMMARY if body.wants_summary else _REASONING
        self._open: _Text | ToolCallPart | None = None  # what the open item is
        self._done: list[Item] = []  # the finished items before the open one
        self._text = ""  # of the open item, or the arguments of its call
        self._input = CustomInput()  # of the open call
        self._logprobs: list[TokenLogprob] = []  # of the open message
        self._unsent: list[TokenLogprob] = []

    def open(self) -> bytes:
        response = self._response("in_progress", None)
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def frame(self, delta: Delta) -> bytes:
        self._total.add(delta)
        self._reason = delta.finish_reason or self._reason
        self._transfer = delta.kv_transfer_params or self._transfer
        if delta.logprobs is not None and not (delta.reasoning or delta.tool_calls):
            self._unsent += delta.logprobs
        events = b""
        if delta.reasoning:
            events += self._more(self._thoughts, delta.reasoning)
        if delta.text:
            events += self._more(_MESSAGE, delta.text)
        return events + b"".join(map(self._call_part, merged_parts(delta.tool_calls)))

    def close(self) -> bytes:
        events = b""
        if self._open is None and not self._done:
            events += self._start(_MESSAGE)
        status = status_of(self._reason)
        events += self._end_item(status)
        response = self._response(status, self._total.usage, self._reason)
        if self._transfer:
            response["kv_transfer_params"] = self._transfer
        return events + self._event(f"response.{status}", response=response)

    def error(self, error: PenstockError) -> bytes:
        response = self._response("failed", None)
        response["error"] = {"code": "server_error", "message": str(error)}
        return self._event("error", **_error_fields(error)) + self._event(
            "response.failed", response=response
        )

    # Items
    def _start(self, kind: _Text) -> bytes:
        self._open, self._text, self._logprobs = kind, "", []
        item = self._item("in_progress")
        part = self._part(item)
        item["summary" if kind is _SUMMARY else "content"] = []
        return self._added(item) + self._event(
            f"response.{kind.part}.added", **self._place(kind), part=part
        )

    def _more(self, kind: _Text, text: str) -> bytes:
        events = b"" if self._open is kind else self._end_item() + self._start(kind)
        self._text += text
        more = {"logprobs": self._new_logprobs()} if kind is _MESSAGE else {}
        return events + self._event(
            f"response.{kind.text}.delta", **self._place(kind), delta=text, **more
        )

    def _call_part(self, part: ToolCallPart) -> bytes:
        events = b""
        if part.id is not None:
            events += self._end_item()
            self._open, self._text, self._input = part, "", CustomInput()
            events += self._added(self._item("in_progress"))
        self._text += part.arguments
        kind, more = "function_call_arguments", part.arguments
        if self._is_custom:
            kind, more = "custom_tool_call_input", self._input.push(part.arguments)
        if more:
            place = {"item_id": self._item_id, "output_index": len(self._done)}
            events += self._event(f"response.{kind}.delta", **place, delta=more)
        return events

    def _end_item(self, status: str = "completed") -> bytes:
        kind = self._open
        if kind is None:
            return b""
        rest = self._new_logprobs() if kind is _MESSAGE else []
        item = self._item(status)
        if isinstance(kind, _Text):
            more = {"logprobs": rest} if kind is _MESSAGE else {}
            events = self._event(
                f"response.{kind.text}.done", **self._place(kind), text=self._text, **more
            )
            events += self._event(
                f"response.{kind.part}.done", **self._place(kind), part=self._part(item)
            )
        elif self._is_custom:
            events = self._event(
                "response.custom_tool_call_input.done",
                item_id=item["id"],
                output_index=len(self._done),
                input=item["input"],
            )
        else:
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
    def _is_custom(self) -> bool:
        """Whether the open item is a call of a custom tool."""
        return isinstance(self._open, ToolCallPart) and self._open.name in self._custom

    @property
    def _item_id(self) -> str:
        if isinstance(self._open, ToolCallPart):
            kind = "ctc" if self._is_custom else "fc"
        else:
            kind = self._open.id if self._open is not None else "msg"
        return item_id(kind, self._about[0], len(self._done))

    def _item(self, status: str) -> Item:
        """The open item, as far as it is made."""
        kind = self._open
        if isinstance(kind, ToolCallPart):
            about = (str(kind.id), kind.name or "", self._text, status)
            return call_item(self._item_id, *about, custom=self._is_custom)
        if kind is _MESSAGE:
            return message_item(self._item_id, status, self._text, self._logprobs)
        return reasoning_item(self._item_id, status, self._text, summary=kind is _SUMMARY)

    def _part(self, item: Item) -> Any:
        (part,) = item["summary"] or item["content"] if "summary" in item else item["content"]
        return part

    def _added(self, item: Item) -> bytes:
        return self._event("response.output_item.added", output_index=len(self._done), item=item)

    def _new_logprobs(self) -> list[dict[str, Any]]:
        """The log probabilities that no event has had, without bytes as the events have them."""
        fresh, self._unsent = self._unsent, []
        self._logprobs += fresh
        return [
            {
                "token": token["token"],
                "logprob": token["logprob"],
                "top_logprobs": [
                    {"token": top["token"], "logprob": top["logprob"]}
                    for top in token["top_logprobs"]
                ],
            }
            for token in token_logprobs(fresh)
        ]

    def _place(self, kind: _Text) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": len(self._done), kind.index: 0}

    def _response(
        self, status: str, usage: Usage | None, reason: str | None = None
    ) -> dict[str, Any]:
        return response_object(self._body, *self._about, status, list(self._done), usage, reason)

    def _event(self, kind: str, **fields: Any) -> bytes:
        number, self._sequence = self._sequence, self._sequence + 1
        return event(kind, {"type": kind, "sequence_number": number, **fields})


def response_error_events(error: PenstockError) -> bytes:
    """The bytes of the error event that ends a stream whose response object is not known."""
    return event("error", {"type": "error", **_error_fields(error)})


def _error_fields(error: PenstockError) -> dict[str, Any]:
    about = error_body(error)["error"]
    return {name: about[name] for name in ("code", "message", "param")}
