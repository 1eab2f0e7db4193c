"""Bodies of OpenAI's Responses API, turned into chat requests
(https://platform.openai.com/docs/api-reference/responses).

The server stores nothing between requests, so a reference to an earlier response is refused.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field

from penstock.errors import RequestError, UnsupportedError, nearest
from penstock.openai.requests import Whole, check_messages, parse_response_format
from penstock.openai.tools import check_tools
from penstock.types import ChatRequest, Message, Sampling


class TextOptions(Struct):
    """`text`: the format of the answer's text, such as a JSON schema."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponseBody(Struct, kw_only=True):
    """Body of `POST /v1/responses`; `input` is a text or a list of items."""

    model: str = ""
    input: str | list[dict[str, Any]]
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
        for name in ("previous_response_id", "conversation", "background"):
            if getattr(self, name):
                raise UnsupportedError(
                    f"{name} is not supported: responses are not stored", param=name
                )
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
        variables = dict(self.chat_template_kwargs)
        if self.reasoning and self.reasoning.get("effort") is not None:
            variables.setdefault("reasoning_effort", self.reasoning["effort"])
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
            chat_template_kwargs=variables,
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
