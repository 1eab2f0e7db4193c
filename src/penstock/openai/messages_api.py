"""Anthropic's Messages API (https://docs.anthropic.com/en/api/messages): a body becomes a chat
request; answers, streams of events and errors go back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Annotated, Any, ClassVar

from msgspec import Meta, Struct, field

from penstock.errors import PenstockError, RequestError, UnsupportedError
from penstock.openai.constraints import parse_response_format
from penstock.openai.framing import Framer, event, merged_parts
from penstock.openai.parameters.engine import EngineParameters, stated
from penstock.openai.requests import Whole, begun_by_assistant, check_messages, with_effort
from penstock.openai.responses import Answers, UsageTotal, reasoning_fields
from penstock.openai.tools import check_tools
from penstock.types import ChatRequest, Delta, Message, Sampling, ToolCallPart, Usage

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class OutputConfig(Struct, forbid_unknown_fields=True):
    """`output_config`: a schema for the answer, and the effort to spend on it."""

    format: dict[str, Any] | None = None
    effort: str | None = None
    task_budget: None = None


class Thinking(Struct, forbid_unknown_fields=True):
    """`thinking`: whether the model thinks first. `budget_tokens` and `display` change nothing."""

    type: str
    budget_tokens: Whole | None = None
    display: str | None = None


class MessageBody(EngineParameters, kw_only=True):
    """Body of `POST /v1/messages`. `max_tokens` is required, as Anthropic has it. Engines'
    parameters have vLLM's names, as at vLLM's own endpoint.
    """

    names: ClassVar = {
        "stop": "stop_sequences",
        "response_format": "output_config.format",
        "prompt": "messages",
    }
    model: str = ""
    max_tokens: Whole
    messages: Annotated[list[Message], Meta(min_length=1)]
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Whole | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: Thinking | None = None
    thread: dict[str, Any] | None = None
    output_config: OutputConfig | None = None
    cache_control: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)

    def sent(self, made: int) -> str:
        """Where the body has what the chat message number `made` was made of."""
        places = ["system"] if self.system else []
        for number, message in enumerate(self.messages):
            place = f"messages[{number}]"
            try:
                places += [place] * len(_turn(message, place))
            except RequestError:  # the message that was refused
                places.append(place)
                break
        return places[made] if made < len(places) else f"messages[{made}]"  # another server's

    def request(self, *, adapter: str | None = None, request_id: str = "") -> ChatRequest:
        messages: list[Message] = []
        if self.system:
            messages.append({"role": "system", "content": _texts(self.system, "system")})
        for message in self.messages:
            messages += _turn(message, f"messages[{len(messages)}]")
        check_messages(messages)
        tools = [_tool(number, tool) for number, tool in enumerate(self.tools or ())]
        choice = _choice(self.tool_choice)
        output = self.output_config or OutputConfig()
        prefilled = begun_by_assistant(messages)
        check_tools(tools, choice)
        return ChatRequest(
            messages=messages,
            sampling=Sampling(
                max_tokens=self.max_tokens,
                **stated(self),
                stop=tuple(self.stop_sequences or ()),
                structured=parse_response_format(output.format),
                extra=self.extra,
            ),
            tools=tools or None,
            tool_choice=choice,
            chat_template_kwargs=with_effort(
                {**_thinking(self.thinking), **self.chat_template_kwargs}, output.effort
            ),
            adapter=adapter,
            stream=bool(self.stream),
            request_id=request_id,
            parallel_tool_calls=(self.tool_choice or {}).get("disable_parallel_tool_use")
            is not True,
            continue_final_message=prefilled,
            add_generation_prompt=not prefilled,
        )


class CountBody(MessageBody, kw_only=True):
    """Body of `POST /v1/messages/count_tokens`: a message's, which nobody answers."""

    max_tokens: Whole = 1


def _thinking(given: Thinking | None) -> dict[str, Any]:
    """The template's variable for `thinking`. A model that does not think answers without; the
    budget is not held to, but `max_tokens` is.
    """
    kind = None if given is None else given.type
    if given is not None and kind not in ("enabled", "disabled", "adaptive"):
        raise RequestError(
            f"unknown thinking type {kind!r}: it is enabled, disabled or adaptive", param="thinking"
        )
    return {"enable_thinking": kind == "enabled"} if kind in ("enabled", "disabled") else {}


def _turn(message: Message, where: str) -> list[Message]:
    """One message as chat messages. Anthropic puts tool results into the user's turn; here each
    becomes a message of its own.
    """
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant", "system"):
        raise RequestError(f"{where}.role must be user or assistant, not {role!r}", param=where)
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list):
        raise RequestError(
            f"{where}.content must be a text or a list of blocks", param=f"{where}.content"
        )
    parts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    results: list[Message] = []
    thought = ""
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text":
            if not isinstance(block.get("text"), str):
                raise RequestError(f"{where}.content: a text block needs a 'text'", param=where)
            parts.append({"type": "text", "text": block["text"]})
        elif kind == "image":
            parts.append({"type": "image_url", "image_url": {"url": _image_url(block, where)}})
        elif kind == "tool_use":
            if not isinstance(block.get("name"), str):
                raise RequestError(f"{where}.content: a tool_use needs a 'name'", param=where)
            arguments = json.dumps(block.get("input") or {}, ensure_ascii=False)
            function = {"name": block.get("name"), "arguments": arguments}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind == "tool_result":
            result = _result(block.get("content") or "", where)
            results.append(
                {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": result}
            )
        elif kind == "thinking":
            thought += str(block.get("thinking") or "")
        elif kind != "redacted_thinking":
            raise RequestError(
                f"{where}.content: blocks of type {kind!r} are not supported", param=where
            )
    turn: Message = {"role": role, "content": parts or (None if calls else "")}
    if calls:
        turn["tool_calls"] = calls
    if role == "assistant":
        turn |= reasoning_fields(thought)
    return [*results, turn] if parts or calls or not results else results


def _result(content: Any, where: str) -> str | list[dict[str, Any]]:
    """What a tool found: a text, or parts if there are images in it."""
    blocks = content if isinstance(content, list) else []
    images = [isinstance(block, dict) and block.get("type") == "image" for block in blocks]
    if not any(images):
        return _texts(content, where)
    return [
        {"type": "image_url", "image_url": {"url": _image_url(block, where)}}
        if is_image
        else {"type": "text", "text": _texts([block], where)}
        for block, is_image in zip(blocks, images, strict=True)
    ]


def _texts(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(
        isinstance(b, dict) and b.get("type") == "text" for b in content
    ):
        raise RequestError(f"{where}: only text is supported here", param=where)
    return "".join(str(block.get("text", "")) for block in content)


def _image_url(block: dict[str, Any], where: str) -> str:
    source = block.get("source")
    kind = source.get("type") if isinstance(source, dict) else None
    if not isinstance(source, dict) or kind not in ("base64", "url"):
        raise RequestError(f"{where}: an image needs a source of type base64 or url", param=where)
    name = "data" if kind == "base64" else "url"
    given = source.get(name)
    if not isinstance(given, str) or not given:
        raise RequestError(
            f"{where}: an image whose source is of type {kind} needs its '{name}'", param=where
        )
    return f"data:{source.get('media_type') or ''};base64,{given}" if kind == "base64" else given


def _tool(number: int, tool: dict[str, Any]) -> dict[str, Any]:
    if (tool.get("type") or "custom") != "custom":
        raise UnsupportedError(
            f"tools[{number}]: tools of type {tool['type']!r} are not supported",
            param=f"tools[{number}]",
        )
    if not isinstance(tool.get("name"), str) or not tool["name"]:
        raise RequestError(f"tools[{number}] needs a 'name'", param=f"tools[{number}].name")
    function = {"name": tool["name"], "parameters": tool.get("input_schema")}
    parts = [tool["description"]] if tool.get("description") else []
    if examples := tool.get("input_examples"):
        parts.append(f"Examples of its input: {json.dumps(examples, ensure_ascii=False)}")
    if parts:
        function["description"] = "\n".join(map(str, parts))
    if tool.get("strict") is not None:
        function["strict"] = tool["strict"]
    return {"type": "function", "function": function}


def _choice(choice: dict[str, Any] | None) -> str | dict[str, Any] | None:
    if choice is None:
        return None
    kind = choice.get("type")
    if kind == "tool":
        if not isinstance(choice.get("name"), str):
            raise RequestError("tool_choice needs a 'name'", param="tool_choice.name")
        return {"type": "function", "function": {"name": choice["name"]}}
    if isinstance(kind, str) and kind in _CHOICES:
        return _CHOICES[kind]
    raise RequestError(
        f"unknown tool_choice type {kind!r}: it is auto, any, tool or none", param="tool_choice"
    )


_NO_THREADS = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
"""By this Anthropic's SDK knows that it must send whole conversations."""
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
    text, calls = answers.texts.get(0, ""), answers.tool_calls.get(0, [])
    content = [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": _object(call.arguments)}
        for call in calls
    ]
    if text or not calls:
        content.insert(0, {"type": "text", "text": text})
    if thought := answers.reasoning.get(0):
        signed = {"thinking": thought, "signature": _signature(thought)}
        content.insert(0, {"type": "thinking", **signed})
    ending = _ending(answers.reasons.get(0), answers.stops.get(0))
    return _message(id, model, content, ending, answers.usage) | answers.transfer


def model_info(card: Mapping[str, Any]) -> dict[str, Any]:
    """A model's card in Anthropic's form."""
    made = datetime.fromtimestamp(card["created"], UTC).isoformat().replace("+00:00", "Z")
    context = card.get("max_model_len")
    return {
        "type": "model",
        "id": card["id"],
        "display_name": card["id"],
        "created_at": made,
        "max_input_tokens": context,
        "max_tokens": context,
    }


def model_page(
    cards: Sequence[Mapping[str, Any]], *, limit: int, after: str, before: str
) -> dict[str, Any]:
    """A page of at most `limit` cards in Anthropic's form: behind the one of the id `after`, or in
    front of `before` ("": none). Raises `RequestError`.
    """
    if not 1 <= limit <= 1000:
        raise RequestError("limit must be between 1 and 1000", param="limit")
    ids = [card["id"] for card in cards]
    for name, id in (("after_id", after), ("before_id", before)):
        if id and id not in ids:
            raise RequestError(f"{name} names no model: '{id[:100]}'", param=name)
    begin = ids.index(after) + 1 if after else 0
    end = ids.index(before) if before else len(ids)
    left = cards[begin:end]
    shown = left[-limit:] if before and not after else left[:limit]
    return {
        "data": list(map(model_info, shown)),
        "has_more": len(shown) < len(left),
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
    }


def message_error(error: PenstockError, request_id: str | None = None) -> dict[str, Any]:
    """The body of a failed request: `{"type": "error", "error": {type, message}, "request_id"}`."""
    fallback = "invalid_request_error" if error.status < 500 else "api_error"
    about: dict[str, Any] = {
        "type": _ERROR_TYPES.get(error.status, fallback),
        "message": str(error),
    }
    if error.param == "thread":
        about["details"] = _NO_THREADS
    return {"type": "error", "error": about, "request_id": request_id}


def message_error_events(error: PenstockError) -> bytes:
    """The bytes of the error event that ends a stream of messages' events."""
    return event("error", message_error(error))


class MessageFramer(Framer):
    """Events of a streamed `POST /v1/messages`. A message starts with the prompt's usage, which
    comes with the first delta.
    """

    def __init__(self, *, id: str, model: str) -> None:
        self._id = id
        self._model = model
        self._index = -1
        self._open: str | None = None  # the kind of the open block
        self._thought = ""
        self._total = UsageTotal()
        self._begun = False
        self._reason: str | None = None
        self._stop: str | None = None

    def frame(self, delta: Delta) -> bytes:
        self._total.add(delta)
        self._reason = delta.finish_reason or self._reason
        self._stop = delta.stop or self._stop
        events = b"" if self._begun else self._start_message(delta.usage or Usage())
        if delta.reasoning:
            if self._open != "thinking":
                events += self._start({"type": "thinking", "thinking": "", "signature": ""})
            self._thought += delta.reasoning
            events += self._delta({"type": "thinking_delta", "thinking": delta.reasoning})
        if delta.text:
            if self._open != "text":
                events += self._start({"type": "text", "text": ""})
            events += self._delta({"type": "text_delta", "text": delta.text})
        return events + b"".join(map(self._call, merged_parts(delta.tool_calls)))

    def close(self) -> bytes:
        events = b"" if self._begun else self._start_message(Usage())
        if self._index < 0 or self._open == "thinking":
            events += self._start({"type": "text", "text": ""})
        ending = {
            "type": "message_delta",
            "delta": _ending(self._reason, self._stop),
            "usage": _usage(self._total.usage),
        }
        return b"".join(
            (
                events,
                self._end(),
                event("message_delta", ending),
                event("message_stop", {"type": "message_stop"}),
            )
        )

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
            events += self._start(
                {"type": "tool_use", "id": part.id, "name": part.name, "input": {}}
            )
        if part.arguments:
            events += self._delta({"type": "input_json_delta", "partial_json": part.arguments})
        return events

    def _start(self, block: dict[str, Any]) -> bytes:
        ended = self._end()
        self._index += 1
        self._open = block["type"]
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
        events = b""
        if self._open == "thinking":
            signature = _signature(self._thought)
            events = self._delta({"type": "signature_delta", "signature": signature})
            self._thought = ""
        self._open = None
        stop = {"type": "content_block_stop", "index": self._index}
        return events + event("content_block_stop", stop)


def _signature(thought: str) -> str:
    """Stands where Anthropic's signature does, which clients keep and send back. Nobody checks it
    here.
    """
    return blake2b(thought.encode(errors="replace"), digest_size=24).hexdigest()


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
