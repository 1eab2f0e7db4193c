"""OpenAI's Responses API: a body becomes a chat request; the finished object or a stream of events
goes back (https://platform.openai.com/docs/api-reference/responses).

Nothing is stored here: the input of a request that continues a stored conversation has all of it.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field

from penstock.errors import PenstockError, RequestError, UnsupportedError, nearest
from penstock.openai.framing import event
from penstock.openai.requests import Whole, check_messages, parse_response_format, with_effort
from penstock.openai.responses import Answers, UsageTotal, error_body
from penstock.openai.tools import check_tools
from penstock.types import ChatRequest, Delta, Message, Sampling, ToolCallPart, Usage


class TextOptions(Struct):
    """`text`: the format of the answer's text, such as a JSON schema."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponseBody(Struct, kw_only=True):
    """Body of `POST /v1/responses`; `input` is a text or a list of items."""

    model: str = ""
    input: str | list[dict[str, Any]] = field(default_factory=list)
    instructions: str | None = None
    max_output_tokens: Whole | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: Whole | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    text: TextOptions | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: dict[str, Any] | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    background: bool | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    include: list[str] | None = None
    truncation: str | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    safety_identifier: str | None = None
    user: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)

    def request(self, *, adapter: str | None = None, request_id: str = "") -> ChatRequest:
        if self.top_logprobs:
            raise UnsupportedError(
                "top_logprobs is not supported here; use chat completions", param="top_logprobs"
            )
        messages = _messages(self.input)
        if self.instructions is not None:
            messages.insert(0, {"role": "system", "content": self.instructions})
        if not messages:
            raise RequestError("input must not be empty", param="input")
        check_messages(messages)
        tools = [_tool(number, tool) for number, tool in enumerate(self.tools or ())]
        choice = self.tool_choice
        if isinstance(choice, dict):
            choice = {"type": choice.get("type"), "function": {"name": choice.get("name")}}
        check_tools(tools, choice)
        return ChatRequest(
            messages=messages,
            sampling=Sampling(
                max_tokens=self.max_output_tokens,
                temperature=1.0 if self.temperature is None else self.temperature,
                top_p=1.0 if self.top_p is None else self.top_p,
                structured=parse_response_format(self.text.format if self.text else None),
            ),
            tools=tools or None,
            tool_choice=choice,
            chat_template_kwargs=with_effort(
                self.chat_template_kwargs, (self.reasoning or {}).get("effort")
            ),
            adapter=adapter,
            stream=bool(self.stream),
            request_id=request_id,
            parallel_tool_calls=self.parallel_tool_calls is not False,
        )


def _messages(given: str | list[dict[str, Any]]) -> list[Message]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[Message] = []
    for number, item in enumerate(given):
        where = f"input[{number}]"
        kind = item.get("type", "message")
        if kind == "message":
            messages.append(
                {"role": item.get("role"), "content": _content(item.get("content"), where)}
            )
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments", "{}")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            # Calls of one turn share one message.
            if messages and messages[-1].get("tool_calls"):
                messages[-1]["tool_calls"].append(call)
            else:
                messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        elif kind == "function_call_output":
            output = _content(item.get("output"), where)
            messages.append(
                {"role": "tool", "tool_call_id": item.get("call_id"), "content": output}
            )
        elif (
            kind != "reasoning"
        ):  # clients send reasoning back unchanged; templates have no place for it
            hint = nearest(str(kind), ("message", "function_call", "function_call_output"))
            raise RequestError(f"{where}: unknown type {kind!r}. {hint}", param=where)
    return messages


def _content(content: Any, where: str) -> Any:
    """Parts under the names that chat completions use."""
    if not isinstance(content, list):
        return content
    parts: list[Any] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("input_text", "output_text", "text"):
            parts.append({"type": "text", "text": part.get("text")})
        elif kind == "input_image" and part.get("image_url"):
            parts.append({"type": "image_url", "image_url": {"url": part["image_url"]}})
        else:
            raise RequestError(
                f"{where}.content: parts of type {kind!r} are not supported",
                param=f"{where}.content",
            )
    return parts


def _tool(number: int, tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise UnsupportedError(
            f"tools[{number}]: tools of type {tool.get('type')!r} are not supported",
            param=f"tools[{number}]",
        )
    function = {
        key: tool[key]
        for key in ("name", "description", "parameters", "strict")
        if tool.get(key) is not None
    }
    return {"type": "function", "function": function}


def pending_response(
    body: ResponseBody, status: str, *, id: str, created: int, model: str
) -> dict[str, Any]:
    """Body of a response without an answer: queued, in progress or failed."""
    return _response(body, id, created, model, status, [], None)


def response_body(
    answers: Answers, body: ResponseBody, *, id: str, created: int, model: str
) -> dict[str, Any]:
    """Body of a finished response, from the first of `answers`."""
    text, calls = answers.texts.get(0, ""), answers.tool_calls.get(0, [])
    status = _status(answers.reasons.get(0))
    output = [_function_call(call.id, call.name, call.arguments, status) for call in calls]
    if text or not calls:
        output.insert(0, _message(f"msg_{id}", status, text))
    return _response(body, id, created, model, status, output, answers.usage)


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
        return events + b"".join(map(self._call_part, delta.tool_calls))

    def close(self) -> bytes:
        events = b""
        if self._open is None and not self._done:
            events += self._start_message()
        events += self._end_item()
        status = _status(self._reason)
        response = self._response(status, self._total.usage)
        return events + self._event(f"response.{status}", response=response)

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
    conversation = body.conversation
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
        "background": bool(body.background),
        "store": bool(body.store),
        "previous_response_id": body.previous_response_id,
        "conversation": {"id": conversation} if isinstance(conversation, str) else conversation,
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
