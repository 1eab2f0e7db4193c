"""Anthropic's Message Batches API (https://docs.anthropic.com/en/api/creating-message-batches), and
that of servers which have it. Its lines are bodies of the Messages API
(https://docs.anthropic.com/en/api/messages).
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Collection
from datetime import datetime
from typing import Any, ClassVar

import msgspec
from msgspec import Raw, Struct, field

from penstock.batch.provider.api import (
    CLOCKS_DIFFER_S,
    BatchApi,
    BatchApiOptions,
    BatchState,
    FoundBatch,
    cancelled,
    expired,
)
from penstock.batch.provider.engine import BatchApiEngine
from penstock.batch.provider.ledger import Batch
from penstock.errors import ConfigError, RequestError, UnsupportedError, UpstreamError
from penstock.http.complaints import complaint_in
from penstock.http.endpoint import Headers
from penstock.openai.media.images import UNKNOWN_KIND, data_in, is_data_uri, kind_of
from penstock.openai.responses import usage_in
from penstock.openai.tools import content_text
from penstock.types import (
    ChatRequest,
    Delta,
    FinishReason,
    Message,
    Sampling,
    ToolCallPart,
)

_PLAIN = Sampling()
_TAKEN = frozenset(
    {"max_tokens", "temperature", "top_p", "top_k", "stop", "structured", "unset", "whole"}
)
_REASONS: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_CHOICES = {"auto": "auto", "required": "any", "none": "none"}


def check_sampling(sampling: Sampling) -> None:
    """Raise `UnsupportedError` for what Anthropic's API has no field for."""
    for name in Sampling.__struct_fields__:
        if name not in _TAKEN and getattr(sampling, name) != getattr(_PLAIN, name):
            raise UnsupportedError(f"Anthropic's API has no {name}", param=name)
    if sampling.max_tokens is None:
        raise RequestError("Anthropic's API needs max_tokens: say how many", param="max_tokens")
    if sampling.temperature > 1:
        raise RequestError("Anthropic's API takes a temperature of at most 1", param="temperature")


def message_body(request: ChatRequest, model: str) -> dict[str, Any]:
    """The body of `/v1/messages`. Raises `RequestError` for what it cannot say."""
    sampling = request.sampling
    check_sampling(sampling)
    if request.n != 1:
        raise UnsupportedError("Anthropic's API gives one answer", param="n")
    if request.chat_template or request.chat_template_kwargs:
        raise UnsupportedError("Anthropic's API has no chat_template", param="chat_template")
    system, messages = _conversation(request.messages)
    structured = sampling.structured
    if structured is not None and structured.kind != "json_schema":
        raise UnsupportedError(
            f"Anthropic's API takes a schema, and no {structured.kind}", param=structured.param
        )
    tools = [_tool(tool) for tool in request.tools or ()]
    body = {
        "model": model,
        "max_tokens": sampling.max_tokens,
        "messages": messages,
        "system": system or None,
        "temperature": None if "temperature" in sampling.unset else sampling.temperature,
        **{
            name: value
            for name in ("top_p", "top_k")
            if (value := getattr(sampling, name)) != getattr(_PLAIN, name)
        },
        "stop_sequences": list(sampling.stop) or None,
        "output_config": structured
        and {"format": {"type": "json_schema", "schema": json.loads(structured.spec)}},
        "tools": tools or None,
        "tool_choice": _choice(request) if tools else None,
    }
    return {name: value for name, value in body.items() if value is not None}


def _conversation(given: list[Message]) -> tuple[str, list[dict[str, Any]]]:
    """The system's text, and the turns of user and assistant."""
    system: list[str] = []
    turns: list[dict[str, Any]] = []
    for message in given:
        role, content = message["role"], message.get("content")
        if role in ("system", "developer"):
            if turns:
                raise UnsupportedError(
                    "Anthropic's API has a system message at the beginning only", param="messages"
                )
            system.append(_text(content))
            continue
        if role == "tool":
            result = {"tool_use_id": message.get("tool_call_id"), "content": _text(content)}
            blocks: Any = [{"type": "tool_result", **result}]
            role = "user"
        elif message.get("tool_calls"):
            text = _text(content)
            blocks = [{"type": "text", "text": text}] if text else []
            blocks += [_call(call) for call in message["tool_calls"]]
        elif isinstance(content, list):
            blocks = [_block(part) for part in content]
        else:
            blocks = _text(content)
        last = turns[-1] if turns else None
        if role == "user" and last is not None and last["role"] == "user":
            last["content"] = _as_list(last["content"]) + _as_list(blocks)
        else:
            turns.append({"role": role, "content": blocks})
    return "\n\n".join(filter(None, system)), turns


def _as_list(content: Any) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _text(content: Any) -> str:
    if isinstance(content, list) and any(part.get("type") != "text" for part in content):
        raise UnsupportedError("Anthropic's API takes only text here", param="messages")
    return content_text(content)


def _block(part: dict[str, Any]) -> dict[str, Any]:
    kind = part.get("type")
    if kind == "text":
        return {"type": "text", "text": part.get("text", "")}
    if kind == "image_url":
        image = part.get("image_url")
        url = str(image.get("url") if isinstance(image, dict) else image)
        return {"type": "image", "source": _source(url)}
    raise UnsupportedError(f"Anthropic's API takes no {kind}", param="messages")


def _source(url: str) -> dict[str, Any]:
    if not is_data_uri(url):
        return {"type": "url", "url": url}
    data = data_in(url, "messages")
    kind = kind_of(data)
    if kind == UNKNOWN_KIND:
        kind = url[5:].partition(",")[0].partition(";")[0]
    return {"type": "base64", "media_type": kind, "data": b64encode(data).decode()}


def _call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function") or {}
    try:
        given = json.loads(function.get("arguments") or "{}")
    except ValueError:
        raise RequestError("the arguments of a tool call are no JSON", param="messages") from None
    return {
        "type": "tool_use",
        "id": call.get("id"),
        "name": function.get("name"),
        "input": given,
    }


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool.get("function") or {}
    optional = {name: function.get(name) for name in ("description", "strict")}
    return {
        "name": function.get("name"),
        "input_schema": function.get("parameters") or {"type": "object"},
        **{name: value for name, value in optional.items() if value is not None},
    }


def _choice(request: ChatRequest) -> dict[str, Any]:
    given = request.tool_choice or "auto"
    if isinstance(given, dict):
        choice = {"type": "tool", "name": (given.get("function") or {}).get("name")}
    else:
        choice = {"type": _CHOICES.get(given, "auto")}
    if not request.parallel_tool_calls and choice["type"] != "none":
        return {**choice, "disable_parallel_tool_use": True}
    return choice


class _Block(Struct):
    type: str
    text: str = ""
    thinking: str = ""
    id: str | None = None
    name: str | None = None
    input: Any = None


class _Answer(Struct):
    content: list[_Block]
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)


def message_delta(body: bytes, where: str) -> Delta:
    """A whole answer. Raises `UpstreamError`, which calls the server `where`."""
    try:
        answer = msgspec.json.decode(body, type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UpstreamError(
            f"{where} did not answer in Anthropic's form, {error}", http_status=200
        ) from None
    calls = [block for block in answer.content if block.type == "tool_use"]
    return Delta(
        text="".join(block.text for block in answer.content if block.type == "text"),
        reasoning="".join(block.thinking for block in answer.content if block.type == "thinking"),
        tool_calls=tuple(
            ToolCallPart(number, json.dumps(call.input or {}), call.id, call.name)
            for number, call in enumerate(calls)
        ),
        finish_reason=_REASONS.get(answer.stop_reason or "", "stop"),
        stop=answer.stop_sequence,
        usage=usage_in(answer.usage),
    )


_PATH = "/messages/batches"
_PAGE = 100
_FRAME = len(b'{"requests":[]}')


class _Result(Struct):
    type: str
    message: Raw = Raw(b"null")
    error: Raw = Raw(b"null")


class _Line(Struct):
    result: _Result


_read = msgspec.json.Decoder(_Line).decode


class AnthropicBatches(BatchApi):
    """Lines are sent with the request for the batch. Anthropic's batches carry no metadata: a batch
    that may be ours is known by its time and size, and in the end by the ids in its results.
    """

    base_url = "https://api.anthropic.com/v1"
    default_key_variable = "ANTHROPIC_API_KEY"
    line_limit = 100_000
    byte_limit = 256_000_000
    tasks = frozenset({"chat"})
    structured = frozenset({"json_schema"})
    max_top_logprobs = -1

    def __init__(self, options: BatchApiOptions) -> None:
        defaults = BatchApiOptions()
        for name in ("completion_window", "max_tokens_field"):
            if (value := getattr(options, name)) != getattr(defaults, name):
                raise ConfigError(
                    "is of OpenAI's API: Anthropic's batches end within 24 hours, and call the"
                    " limit max_tokens",
                    field=f"engine_kwargs.{name}",
                    value=value,
                )
        super().__init__(options)
        self.most_bytes -= _FRAME

    def key_headers(self, variable: str | None) -> dict[str, str]:
        version = {"anthropic-version": "2023-06-01"}
        if variable is None:
            return version
        key = Headers({"x-api-key": f"${{{variable}}}"}, field="engine_kwargs.api_key_env")
        return {**version, **key.values}

    def body(self, task: str, request: Any, model: str) -> tuple[str, dict[str, Any]]:
        return _PATH, message_body(request, model) | self.options.extra_body

    def line(self, custom_id: str, url: str, body: dict[str, Any]) -> bytes:
        return msgspec.json.encode({"custom_id": custom_id, "params": body}) + b"\n"

    async def create(self, batch: Batch) -> str:
        lines = batch.requests.read_bytes().rstrip(b"\n").replace(b"\n", b",")
        data = b'{"requests":[' + lines + b"]}"
        made = await self.ask(_PATH, "POST", data, {"Idempotency-Key": batch.token})
        return str(made["id"])

    async def find(self, batch: Batch, others: Collection[str]) -> FoundBatch | None:
        after = ""
        found: list[str] = []
        while True:
            page = await self.ask(f"{_PATH}?limit={_PAGE}{after}")
            listed = page.get("data") or []
            for one in listed:
                if _made_at(one) < batch.begun_at - CLOCKS_DIFFER_S:
                    break
                size = sum((one.get("request_counts") or {}).values())
                if size == len(batch.lines) and one["id"] not in others:
                    found.append(str(one["id"]))
            else:
                if page.get("has_more") and listed:
                    after = f"&after_id={page.get('last_id') or listed[-1]['id']}"
                    continue
            return FoundBatch(found[-1], certain=False) if found else None

    async def state(self, id: str) -> BatchState:
        one = await self.ask(f"{_PATH}/{id}")
        ended = one.get("processing_status") == "ended"
        paths = [f"{_PATH}/{id}/results"] if ended and one.get("results_url") else []
        return BatchState(str(one.get("processing_status")), ended, paths)

    def read(self, line: bytes) -> bytes:
        result = _read(line).result
        match result.type:
            case "succeeded":
                return bytes(result.message)
            case "expired":
                raise expired()
            case "canceled":
                raise cancelled()
        about = complaint_in(msgspec.json.decode(result.error))
        if about.status is not None:
            raise self.refusal(about.status, bytes(result.error))
        raise UpstreamError(f"{self.shown}: {about.line}", retryable=about.kind == "api_error")

    def result(self, task: str, request: Any, body: bytes) -> Any:
        return [message_delta(body, self.shown)]

    def cancel_command(self, id: str) -> str:
        return (
            f"curl -X POST {self.shown}{_PATH}/{id}/cancel -H 'anthropic-version: 2023-06-01'"
            f' -H "x-api-key: ${self.options.api_key_env or self.default_key_variable}"'
        )


def _made_at(listed: dict[str, Any]) -> float:
    return datetime.fromisoformat(str(listed["created_at"])).timestamp()


class AnthropicBatchEngine(BatchApiEngine):
    """Anthropic's Message Batches. `model_source` is the model's name there."""

    name: ClassVar[str] = "anthropic-batch"
    api_class = AnthropicBatches

    def check(self, sampling: Sampling) -> None:
        check_sampling(sampling)
