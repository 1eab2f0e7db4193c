"""Tools of a chat: checks them, and builds the constraint that forces a call.

A forced call is JSON, `{"name": …, "arguments": {…}}`. `penstock.openai.parsers` reads calls.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from penstock.errors import RequestError, nearest
from penstock.types import Message, StructuredOutput

Tool = Mapping[str, Any]
ToolChoice = str | Mapping[str, Any] | None
MAX_TOOLS = 1024


def check_tools(tools: Sequence[Tool] | None, choice: ToolChoice) -> None:
    """Check the tools and the choice. Raises `RequestError` for too many tools, a tool without a
    name, or a choice that names no tool.
    """
    if tools is not None and len(tools) > MAX_TOOLS:
        raise RequestError(
            f"at most {MAX_TOOLS:,} tools may be given, not {len(tools):,}", param="tools"
        )
    names = []
    for number, tool in enumerate(tools or ()):
        where = f"tools[{number}]"
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, Mapping):
            raise RequestError(
                f"{where} must be {{'type': 'function', 'function': {{…}}}}", param=where
            )
        if not isinstance(function.get("name"), str) or not function["name"]:
            raise RequestError(f"{where}.function needs a 'name'", param=f"{where}.function.name")
        if not isinstance(function.get("parameters", {}), (Mapping, type(None))):
            raise RequestError(
                f"{where}.function.parameters must be a JSON schema",
                param=f"{where}.function.parameters",
            )
        names.append(function["name"])
    if choice in (None, "none", "auto"):
        return
    if isinstance(choice, str) and choice != "required":
        hint = nearest(choice, ("none", "auto", "required"))
        raise RequestError(f"unknown tool_choice '{choice}'. {hint}", param="tool_choice")
    if not tools:
        raise RequestError("tool_choice needs tools", param="tool_choice")
    if isinstance(choice, Mapping) and (name := chosen_name(choice)) not in names:
        raise RequestError(
            f"tool_choice names no tool: '{name}'. {nearest(name, names)}", param="tool_choice"
        )


def chosen_name(choice: Mapping[str, Any]) -> str:
    """The name in `{"type": "function", "function": {"name": …}}`."""
    function = choice.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if choice.get("type") != "function" or not isinstance(name, str):
        raise RequestError(
            "tool_choice must be none, auto, required or {'type': 'function', 'function':"
            " {'name': …}}",
            param="tool_choice",
        )
    return name


_NO_ARGUMENTS = {"type", "properties", "required", "title", "description", "$schema"}
"""Keywords allowed in the schema of a function without arguments."""
_VALUES = {"const", "enum", "default", "examples"}
"""Keywords that hold values, not schemas."""
_NAMED = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
"""Keywords that hold schemas by name; the names can be any."""


def call_constraint(tools: Sequence[Tool], choice: ToolChoice) -> StructuredOutput | None:
    """The constraint for "required" or a named tool; None where the model may answer freely."""
    if choice in (None, "none", "auto"):
        return None
    functions = [tool["function"] for tool in tools]
    if isinstance(choice, Mapping):
        name = chosen_name(choice)
        functions = [function for function in functions if function["name"] == name]
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"type": "string", "enum": [function["name"]]},
                "arguments": _arguments(
                    function,
                    (
                        f"#/anyOf/{at}/properties/arguments"
                        if len(functions) > 1
                        else "#/properties/arguments"
                    ),
                ),
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for at, function in enumerate(functions)
    ]
    schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return StructuredOutput("json_schema", json.dumps(schema, ensure_ascii=False), param="tools")


def _arguments(function: Mapping[str, Any], place: str) -> Any:
    """The schema of a function's arguments, rewritten to stand at `place` in another schema."""
    parameters = function.get("parameters") or {"properties": {}}
    if parameters.get("properties") == {} and parameters.keys() <= _NO_ARGUMENTS:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return _relocate(parameters, place)


def _relocate(part: Any, place: str) -> Any:
    """A schema whose references to itself still resolve after its move to `place`."""
    if isinstance(part, list):
        return [_relocate(item, place) for item in part]
    if not isinstance(part, Mapping):
        return part
    return {
        name: (
            place + value[1:]
            if name == "$ref"
            and isinstance(value, str)
            and (value == "#" or value.startswith("#/"))
            else (
                value
                if name in _VALUES
                else (
                    {key: _relocate(inner, place) for key, inner in value.items()}
                    if name in _NAMED and isinstance(value, Mapping)
                    else _relocate(value, place)
                )
            )
        )
        for name, value in part.items()
    }


def arguments_as_objects(messages: Sequence[Message]) -> list[Message]:
    """Messages whose tool calls hold their arguments as objects, as templates expect. OpenAI's form
    has JSON text.
    """
    result = []
    for message in messages:
        if calls := message.get("tool_calls"):
            message = {**message, "tool_calls": [_with_object(call) for call in calls]}
        result.append(message)
    return result


def _with_object(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError:
        return call  # a model's own mistake: the model sees it unchanged
    return {**call, "function": {**function, "arguments": arguments}}
