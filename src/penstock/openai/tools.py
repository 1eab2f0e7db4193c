"""Tools of a chat: checks them, builds the constraint that forces a call, and writes them as text
for chat templates that know none.

A forced call is JSON, `{"name": …, "arguments": {…}}`. `penstock.openai.parsers` reads calls.

The text is as in llama.cpp (https://github.com/ggml-org/llama.cpp, docs/function-calling.md): the
system message gets the functions and the form of a call, calls stand in the assistant's text,
results in the user's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from penstock.errors import RequestError, nearest
from penstock.openai.json_schema import rewritten
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
        if not isinstance(function.get("strict"), (bool, type(None))):
            raise RequestError(
                f"{where}.function.strict must be true or false", param=f"{where}.function.strict"
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


def call_constraint(tools: Sequence[Tool], choice: ToolChoice) -> StructuredOutput | None:
    """The constraint for "required" or a named tool; None where the model may answer freely."""
    if choice in (None, "none", "auto"):
        return None
    functions = [tool["function"] for tool in tools]
    if isinstance(choice, Mapping):
        name = chosen_name(choice)
        functions = [function for function in functions if function["name"] == name]
    if len(functions) == 1:
        schema = _call(functions[0], _arguments(functions[0], "#/properties/arguments"))
    else:
        # The grammars of vLLM and SGLang follow references into objects, not into lists.
        places = [f"#/$defs/tool{at}" for at in range(len(functions))]
        given = zip(functions, places, strict=True)
        schema = {
            "anyOf": [_call(function, {"$ref": place}) for function, place in given],
            "$defs": {
                f"tool{at}": _arguments(function, places[at])
                for at, function in enumerate(functions)
            },
        }
    drafts = {str((f.get("parameters") or {}).get("$schema", "")) for f in functions} - {""}
    if len(drafts) == 1 and "json-schema.org/draft" in (draft := drafts.pop()):
        schema["$schema"] = draft  # the rules of a draft hold for a whole schema
    return StructuredOutput("json_schema", json.dumps(schema, ensure_ascii=False), param="tools")


def strict_calls(tools: Sequence[Tool], choice: ToolChoice) -> StructuredOutput | None:
    """The constraint on each call of an answer in which the model calls as it likes: functions that
    are `strict` follow their schemas, others take any object. None where no function is strict, or
    the choice is another one.
    """
    functions = [tool["function"] for tool in tools]
    if choice not in (None, "auto") or not any(f.get("strict") for f in functions):
        return None
    held = [f if f.get("strict") else {**f, "parameters": {"type": "object"}} for f in functions]
    return call_constraint([{"function": function} for function in held], "required")


def _call(function: Mapping[str, Any], arguments: Any) -> dict[str, Any]:
    """The schema of a call of the function."""
    return {
        "type": "object",
        "properties": {
            "name": {"type": "string", "enum": [function["name"]]},
            "arguments": arguments,
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _arguments(function: Mapping[str, Any], place: str) -> Any:
    """The schema of a function's arguments, rewritten to stand at `place` in another schema."""
    parameters = function.get("parameters") or {"properties": {}}
    if parameters.get("properties") == {} and parameters.keys() <= _NO_ARGUMENTS:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    body = {name: part for name, part in parameters.items() if name not in ("$schema", "$id")}
    return _relocate(body, lambda reference: place + reference[1:])


def _relocate(schema: Mapping[str, Any], move: Callable[[str], str]) -> Any:
    """A schema with its references to itself as `move` gives them."""

    def moved(keyword: str, value: Any) -> Any:
        is_reference = keyword == "$ref" and isinstance(value, str)
        return move(value) if is_reference and (value + "/").startswith("#/") else value

    return rewritten(schema, moved)


_TABLES = ("$defs", "definitions")


def with_one_table(tools: Sequence[Tool]) -> list[Tool]:
    """The tools with definitions that can all stand in one table `$defs`. A tool that needs no
    change is the same object.
    """
    taken: dict[str, Any] = {}
    result: list[Tool] = []
    for at, tool in enumerate(tools):
        parameters = tool["function"].get("parameters") or {}
        moved, table = _in_table(parameters, f"tool{at}", taken)
        taken |= table
        if moved == parameters:
            result.append(tool)
        else:
            result.append({**tool, "function": {**tool["function"], "parameters": moved}})
    return result


def _in_table(
    parameters: Mapping[str, Any], name: str, taken: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A schema whose references all lead to its `$defs`, and that table. Definitions that clash
    with those `taken` get `name` before their own; a reference to the schema itself leads to
    `name`.
    """
    own = _definitions(parameters)
    prefix = f"{name}_" if any(taken.get(k, v) != v for k, v in own.items()) else ""
    refers_to_itself = False

    def move(reference: str) -> str:
        nonlocal refers_to_itself
        for key in _TABLES:
            if reference.startswith(f"#/{key}/"):
                return f"#/$defs/{prefix}{reference.removeprefix(f'#/{key}/')}"
        refers_to_itself = True
        return f"#/$defs/{name}{reference[1:]}"

    moved = _relocate(parameters, move)
    table = {f"{prefix}{key}": schema for key, schema in _definitions(moved).items()}
    body = {key: value for key, value in moved.items() if key not in _TABLES}
    if refers_to_itself:
        table[name] = body
    return ({**body, "$defs": table} if table else body), table


def _definitions(schema: Mapping[str, Any]) -> dict[str, Any]:
    tables = [schema[key] for key in _TABLES if isinstance(schema.get(key), Mapping)]
    return {name: inner for table in tables for name, inner in table.items()}


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
    if not isinstance(function, dict):
        return call
    given = function.get("arguments")
    if not isinstance(given, str | None):
        return call
    try:
        arguments = json.loads(given or "{}")
    except ValueError:
        return call  # a model's own mistake: the model sees it unchanged
    return {**call, "function": {**function, "arguments": {} if arguments is None else arguments}}


_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_PROMPT = f"""\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
%s
</tools>

For each function call, return a json object with function name and arguments within \
{_OPEN}{_CLOSE} XML tags:
{_OPEN}
{{"name": <function-name>, "arguments": <args-json-object>}}
{_CLOSE}"""
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
            content = _response(content)
        elif message.get("tool_calls"):
            calls = "\n".join(map(_call_text, message["tool_calls"]))
            message = {"role": "assistant", "content": _joined(content, calls)}
        if after_result and (result or role == "user"):  # many templates refuse two turns in a row
            made[-1] = {"role": "user", "content": _joined(made[-1]["content"], content)}
        else:
            made.append({"role": "user", "content": content} if result else message)
        after_result = result
    return _with_prompt(made, tools, system) if tools else made


def _response(content: Any) -> Any:
    """A tool's result between its tags; with an image in it, as parts."""
    begin, end = "<tool_response>\n", "\n</tool_response>"
    if isinstance(content, list) and any(part.get("type") != "text" for part in content):
        return [*_parts(begin), *content, *_parts(end)]
    return f"{begin}{content_text(content)}{end}"


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


def content_text(content: Any) -> str:
    """The texts of a message's content, which may be None or a list of parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return content or ""


def _call_text(call: Any) -> str:
    function = call.get("function") if isinstance(call, Mapping) else None
    function = function if isinstance(function, Mapping) else {}
    arguments = function.get("arguments") or {}
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    name = json.dumps(function.get("name"), ensure_ascii=False)
    return f'{_OPEN}\n{{"name": {name}, "arguments": {arguments}}}\n{_CLOSE}'
