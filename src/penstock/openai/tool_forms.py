"""The other forms of tools in a chat: `functions` (OpenAI's first), custom tools, and the choice
`allowed_tools`.

They become the one form that engines know. `ToolForm` writes their answers in the form that was
asked for. Source: https://platform.openai.com/docs/api-reference/chat/create.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from penstock.errors import RequestError
from penstock.types import Message, ToolCallPart

_INPUT = re.compile(r'\s*\{\s*"input"\s*:\s*"')
_STRING = re.compile(r'(?:[^"\\]|\\(?:u[0-9a-fA-F]{4}|[^u]))*')


class ToolForm(Struct, frozen=True):
    """The form of the calls in an answer. `functions`: one call, in `function_call`. `custom` names
    the tools whose calls have text for arguments.
    """

    functions: bool = False
    custom: frozenset[str] = frozenset()

    @property
    def plain(self) -> bool:
        """Whether all calls have the usual form."""
        return not self.functions and not self.custom

    def message(self, message: dict[str, Any]) -> dict[str, Any]:
        """A finished message in this form."""
        calls = message.get("tool_calls")
        if not calls or self.plain:
            return message
        if self.functions:
            rest = {name: value for name, value in message.items() if name != "tool_calls"}
            return {**rest, "function_call": calls[0]["function"]}
        return {**message, "tool_calls": [self._call(call) for call in calls]}

    def reason(self, reason: str | None) -> str | None:
        """The name of a finish reason in this form."""
        return "function_call" if self.functions and reason == "tool_calls" else reason

    def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        if function["name"] not in self.custom:
            return call
        custom = {"name": function["name"], "input": custom_input(function["arguments"])}
        return {"id": call["id"], "type": "custom", "custom": custom}


def call_chunk(part: ToolCallPart) -> dict[str, Any]:
    """A piece of a call in the usual form, as a chunk has it."""
    if part.id is None:
        return {"index": part.number, "function": {"arguments": part.arguments}}
    function = {"name": part.name, "arguments": part.arguments}
    return {"index": part.number, "id": part.id, "type": "function", "function": function}


class FormedCalls:
    """Writes the pieces of one stream's calls in a `ToolForm`, as parts of its chunks' deltas."""

    def __init__(self, form: ToolForm) -> None:
        self._form = form
        self._custom: dict[tuple[int, int], CustomInput] = {}

    def content(self, index: int, parts: Sequence[ToolCallPart]) -> dict[str, Any]:
        """What the calls of answer `index` add to its delta."""
        if self._form.functions:
            return {"function_call": _merged(parts)}
        chunks = []
        for part in parts:
            key = (index, part.number)
            if part.id is not None and part.name in self._form.custom:
                self._custom[key] = CustomInput()
                head = {"index": part.number, "id": part.id, "type": "custom"}
                text = self._custom[key].push(part.arguments)
                chunks.append({**head, "custom": {"name": part.name, "input": text}})
            elif key in self._custom:
                if text := self._custom[key].push(part.arguments):
                    chunks.append({"index": part.number, "custom": {"input": text}})
            else:
                chunks.append(call_chunk(part))
        return {"tool_calls": chunks} if chunks else {}


def _merged(parts: Sequence[ToolCallPart]) -> dict[str, Any]:
    named = [part.name for part in parts if part.name is not None]
    head = {"name": named[0]} if named else {}
    return {**head, "arguments": "".join(part.arguments for part in parts)}


class CustomInput:
    """The text in a custom tool's arguments, whose JSON comes in pieces."""

    def __init__(self) -> None:
        self._rest = ""
        self._begun = self._ended = False

    def push(self, arguments: str) -> str:
        """The text that a piece adds. Half of an escape, or of a pair of surrogates, waits."""
        raw = self._rest + arguments
        if not self._begun and (head := _INPUT.match(raw)):
            self._begun, raw = True, raw[head.end() :]
        if not self._begun or self._ended:
            self._rest = "" if self._ended else raw
            return ""
        end = _STRING.match(raw).end()  # type: ignore[union-attr]
        text: str = json.loads(f'"{raw[:end]}"', strict=False)
        self._ended = raw[end : end + 1] == '"'
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, end = text[:-1], end - len("\\ud800")
        self._rest = raw[end:]
        return text


def custom_input(arguments: str) -> str:
    """The text in a custom tool's arguments, as far as they go."""
    return CustomInput().push(arguments)


def custom_arguments(text: Any) -> str:
    """A custom tool's text as the arguments of a function."""
    return json.dumps({"input": text or ""}, ensure_ascii=False)


def plain_tools(
    tools: Sequence[dict[str, Any]] | None,
    choice: str | dict[str, Any] | None,
) -> tuple[list[dict[str, Any]] | None, str | dict[str, Any] | None]:
    """Tools and choice in the one form. Raises `RequestError` for a custom tool's grammar that is
    no regular expression, and for an `allowed_tools` that names no tool. With `allowed_tools`, the
    model sees those alone.
    """
    made = [
        of_custom(tool.get("custom"), f"tools[{number}].custom")
        if tool.get("type") == "custom"
        else tool
        for number, tool in enumerate(tools or ())
    ]
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        made, choice = _allowed(made, choice.get("allowed_tools"))
    elif isinstance(choice, dict) and choice.get("type") == "custom":
        choice = {"type": "function", "function": choice.get("custom")}
    return made or None, choice


def of_custom(given: Any, where: str) -> dict[str, Any]:
    """A custom tool, whose fields stand at `where`, as a function with one text. Raises
    `RequestError` for a grammar that is no regular expression.
    """
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise RequestError(f"{where} needs a 'name'", param=f"{where}.name")
    text: dict[str, Any] = {"type": "string"}
    form = given.get("format") or {"type": "text"}
    if not isinstance(form, Mapping) or form.get("type") != "text":
        form = form if isinstance(form, Mapping) else {}
        inner = form.get("grammar")
        grammar: Mapping[str, Any] = inner if isinstance(inner, Mapping) else form
        if grammar.get("syntax") != "regex" or not isinstance(grammar.get("definition"), str):
            raise RequestError(
                f"{where}.format: a custom tool's text is free, or follows a grammar of the"
                " syntax regex",
                param=f"{where}.format",
            )
        text["pattern"] = f"^(?:{grammar['definition']})$"
    parameters = {
        "type": "object",
        "properties": {"input": text},
        "required": ["input"],
        "additionalProperties": False,
    }
    function = {"name": given["name"], "parameters": parameters}
    if "pattern" in text:
        function["strict"] = True
    if given.get("description"):
        function["description"] = given["description"]
    return {"type": "function", "function": function}


def _allowed(tools: list[dict[str, Any]], given: Any) -> tuple[list[dict[str, Any]], str]:
    wanted = given.get("tools") if isinstance(given, Mapping) else None
    mode = given.get("mode") if isinstance(given, Mapping) else None
    if mode not in ("auto", "required") or not isinstance(wanted, list):
        raise RequestError(
            "allowed_tools needs a 'mode', auto or required, and a list of 'tools'",
            param="tool_choice.allowed_tools",
        )
    names = [
        _text_in(one.get(_text_in(one, "type") or "function"), "name")
        if isinstance(one, Mapping)
        else None
        for one in wanted
    ]
    known = [tool for tool in tools if _text_in(tool.get("function"), "name") in names]
    if not known or len(known) < len({*names}):
        raise RequestError(
            "allowed_tools must name some of the tools", param="tool_choice.allowed_tools.tools"
        )
    return known, mode


def _text_in(given: Any, key: str) -> str | None:
    value = given.get(key) if isinstance(given, Mapping) else None
    return value if isinstance(value, str) else None


def of_functions(
    functions: Sequence[dict[str, Any]], call: str | dict[str, Any] | None
) -> tuple[list[dict[str, Any]], str | dict[str, Any] | None]:
    """`functions` and `function_call` as tools and their choice. Raises `RequestError` under the
    old names.
    """
    for number, function in enumerate(functions):
        if not isinstance(function.get("name"), str) or not function["name"]:
            raise RequestError(
                f"functions[{number}] needs a 'name'", param=f"functions[{number}].name"
            )
    names = [function["name"] for function in functions]
    if isinstance(call, dict):
        if call.get("name") not in names:
            raise RequestError(
                f"function_call names no function: '{call.get('name')}'", param="function_call"
            )
        call = {"type": "function", "function": {"name": call["name"]}}
    elif call not in (None, "none", "auto"):
        raise RequestError("function_call must be none, auto or {'name': …}", param="function_call")
    return [{"type": "function", "function": function} for function in functions], call


_TEXTS = {"input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Parts that are texts by another name → where the text stands."""


def plain_messages(messages: list[Message]) -> list[Message]:
    """Messages whose calls and texts have the one form: calls of functions and of custom tools, the
    functions' results, and parts that are texts by another name, are rewritten.
    """
    if not any(map(_is_other, messages)):
        return messages
    made: list[Message] = []
    latest = 0
    for number, message in enumerate(messages):
        if isinstance(content := message.get("content"), list):
            message = {**message, "content": list(map(_plain_part, content))}
        if isinstance(old := message.get("function_call"), Mapping):
            latest = number
            rest = {name: value for name, value in message.items() if name != "function_call"}
            call = {"id": f"call_{number}", "type": "function", "function": dict(old)}
            message = {**rest, "content": message.get("content"), "tool_calls": [call]}
        elif message.get("role") == "function":
            message = {**message, "role": "tool", "tool_call_id": f"call_{latest}"}
        elif isinstance(calls := message.get("tool_calls"), list):
            message = {**message, "tool_calls": [_plain_call(call) for call in calls]}
        made.append(message)
    return made


def _is_other(message: Message) -> bool:
    calls = message.get("tool_calls")
    return (
        message.get("role") == "function"
        or message.get("function_call") is not None
        or (
            isinstance(calls, list)
            and any(isinstance(call, dict) and call.get("type") == "custom" for call in calls)
        )
        or (
            isinstance(content := message.get("content"), list)
            and any(part.get("type") in _TEXTS for part in content)
        )
    )


def _plain_part(part: dict[str, Any]) -> dict[str, Any]:
    where = _TEXTS.get(part["type"])
    return part if where is None else {"type": "text", "text": str(part.get(where) or "")}


def _plain_call(call: Any) -> Any:
    given = call.get("custom") if isinstance(call, dict) else None
    if not isinstance(given, Mapping):
        return call
    function = {"name": given.get("name"), "arguments": custom_arguments(given.get("input"))}
    return {"id": call.get("id"), "type": "function", "function": function}
