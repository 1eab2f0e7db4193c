"""Bodies of Anthropic's Messages API, turned into chat requests
(https://docs.anthropic.com/en/api/messages).
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from msgspec import Meta, Struct, field

from penstock.errors import RequestError, UnsupportedError
from penstock.openai.requests import Whole, check_messages, parse_response_format
from penstock.openai.tools import check_tools
from penstock.types import ChatRequest, Message, Sampling

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class OutputConfig(Struct):
    """`output_config`: a schema for the answer, and the effort to spend on it."""

    format: dict[str, Any] | None = None
    effort: str | None = None


class MessageBody(Struct, kw_only=True):
    """Body of `POST /v1/messages`. `max_tokens` is required, as Anthropic has it."""

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
    thinking: dict[str, Any] | None = None
    output_config: OutputConfig | None = None
    cache_control: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)

    def request(self, *, adapter: str | None = None, request_id: str = "") -> ChatRequest:
        if self.thinking is not None and self.thinking.get("type") not in ("disabled", "adaptive"):
            raise UnsupportedError("thinking is not supported", param="thinking")
        messages: list[Message] = []
        if self.system:
            messages.append({"role": "system", "content": _texts(self.system, "system")})
        for number, message in enumerate(self.messages):
            messages += _turn(message, f"messages[{number}]")
        check_messages(messages)
        tools = [_tool(number, tool) for number, tool in enumerate(self.tools or ())]
        choice = _choice(self.tool_choice)
        output = self.output_config or OutputConfig()
        variables = dict(self.chat_template_kwargs)
        if output.effort is not None:
            variables.setdefault("reasoning_effort", output.effort)
        check_tools(tools, choice)
        return ChatRequest(
            messages=messages,
            sampling=Sampling(
                max_tokens=self.max_tokens,
                temperature=1.0 if self.temperature is None else self.temperature,
                top_p=1.0 if self.top_p is None else self.top_p,
                top_k=self.top_k or 0,
                stop=tuple(self.stop_sequences or ()),
                structured=parse_response_format(output.format),
            ),
            tools=tools or None,
            tool_choice=choice,
            chat_template_kwargs=variables,
            adapter=adapter,
            stream=bool(self.stream),
            request_id=request_id,
            parallel_tool_calls=(self.tool_choice or {}).get("disable_parallel_tool_use")
            is not True,
        )


def _turn(message: Message, where: str) -> list[Message]:
    """One message as chat messages. Anthropic puts tool results into the user's turn; here each
    becomes a message of its own.
    """
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant", "system"):
        raise RequestError(f"{where}.role must be user or assistant, not {role!r}", param=where)
    if not isinstance(content, list):
        return [{"role": role, "content": content}]
    parts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    results: list[Message] = []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text":
            parts.append({"type": "text", "text": block.get("text", "")})
        elif kind == "image":
            parts.append({"type": "image_url", "image_url": {"url": _image_url(block, where)}})
        elif kind == "tool_use":
            arguments = json.dumps(block.get("input", {}), ensure_ascii=False)
            function = {"name": block.get("name"), "arguments": arguments}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind == "tool_result":
            text = _texts(block.get("content") or "", where)
            results.append(
                {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text}
            )
        elif kind not in (
            "thinking",
            "redacted_thinking",
        ):  # clients send thinking back unchanged; templates have no place for it
            raise RequestError(
                f"{where}.content: blocks of type {kind!r} are not supported", param=where
            )
    turn: Message = {"role": role, "content": parts or (None if calls else "")}
    if calls:
        turn["tool_calls"] = calls
    return [*results, turn] if parts or calls or not results else results


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
    if isinstance(source, dict) and source.get("type") == "base64":
        return f"data:{source.get('media_type')};base64,{source.get('data')}"
    if isinstance(source, dict) and source.get("type") == "url":
        return str(source.get("url"))
    raise RequestError(f"{where}: an image needs a source of type base64 or url", param=where)


def _tool(number: int, tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type", "custom") != "custom":
        raise UnsupportedError(
            f"tools[{number}]: tools of type {tool['type']!r} are not supported",
            param=f"tools[{number}]",
        )
    function = {"name": tool.get("name"), "parameters": tool.get("input_schema")}
    if tool.get("description"):
        function["description"] = tool["description"]
    return {"type": "function", "function": function}


def _choice(choice: dict[str, Any] | None) -> str | dict[str, Any] | None:
    if choice is None:
        return None
    kind = choice.get("type")
    if kind == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if isinstance(kind, str) and kind in _CHOICES:
        return _CHOICES[kind]
    raise RequestError(
        f"unknown tool_choice type {kind!r}: it is auto, any, tool or none", param="tool_choice"
    )
