"""Tools, their calls and results as text, for chat templates that know none.

As in llama.cpp (https://github.com/ggml-org/llama.cpp, docs/function-calling.md): the system
message gets the functions and the form of a call, calls stand in the assistant's text, results in
the user's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from penstock.openai.tools import Tool
from penstock.types import Message

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_PROMPT = f"""\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
%s
</tools>

For each function call, return a json object with function name and arguments within \
{OPEN}{CLOSE} XML tags:
{OPEN}
{{"name": <function-name>, "arguments": <args-json-object>}}
{CLOSE}"""
_SYSTEM = ("system", "developer")
_RESULTS = ("tool", "function")


def has_tools(messages: Sequence[Message]) -> bool:
    """Whether messages hold tool calls or their results."""
    return any(m.get("tool_calls") or m.get("role") in _RESULTS for m in messages)


def tools_as_text(
    messages: Sequence[Message], tools: Sequence[Tool] | None, *, system: bool
) -> list[Message]:
    """The messages with tools, calls and results as text. `system`: the template takes a system
    message; else the first user's message begins with the tools.
    """
    made: list[Message] = []
    after_result = False
    for message in messages:
        role, content = message.get("role"), message.get("content")
        result = role in _RESULTS
        if result:
            content = f"<tool_response>\n{_text(content)}\n</tool_response>"
        elif message.get("tool_calls"):
            calls = "\n".join(map(_call, message["tool_calls"]))
            message = {"role": "assistant", "content": _joined(content, calls)}
        if after_result and (result or role == "user"):  # many templates refuse two turns in a row
            made[-1] = {"role": "user", "content": _joined(made[-1]["content"], content)}
        else:
            made.append({"role": "user", "content": content} if result else message)
        after_result = result
    return _with_prompt(made, tools, system) if tools else made


def _with_prompt(messages: list[Message], tools: Sequence[Tool], system: bool) -> list[Message]:
    prompt = _PROMPT % "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    first = messages[0] if messages else {}
    if first.get("role") in _SYSTEM:
        return [{**first, "content": _joined(first.get("content"), prompt, "\n\n")}, *messages[1:]]
    if system or first.get("role") != "user":
        return [{"role": "system", "content": prompt}, *messages]
    return [{**first, "content": _joined(prompt, first.get("content"), "\n\n")}, *messages[1:]]


def _joined(before: Any, after: Any, between: str = "\n") -> Any:
    """Two contents, texts or lists of parts, as one."""
    if isinstance(before, list) or isinstance(after, list):
        return [*_parts(before), *_parts(after)]
    return between.join(filter(None, (before, after)))


def _parts(content: Any) -> list[Any]:
    if isinstance(content, list):
        return content
    return [{"type": "text", "text": content}] if content else []


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return content or ""


def _call(call: Any) -> str:
    function = call.get("function") if isinstance(call, Mapping) else None
    function = function if isinstance(function, Mapping) else {}
    arguments = function.get("arguments") or {}
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    name = json.dumps(function.get("name"), ensure_ascii=False)
    return f'{OPEN}\n{{"name": {name}, "arguments": {arguments}}}\n{CLOSE}'
