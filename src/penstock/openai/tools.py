"""Tools of a chat: checks them, builds the constraint that forces a call, and reads calls out of
generated text while it streams.

A call is JSON, `{"name": …, "arguments": {…}}`. A constrained answer is one such object. In an
unconstrained answer any number of calls may follow any text, each between tags, as Hermes and Qwen
models write them: `<tool_call>\n{…}\n</tool_call>`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from msgspec import Struct, structs

from penstock.errors import RequestError, nearest
from penstock.types import Delta, Message, StructuredOutput, ToolCallPart

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
    return StructuredOutput("json_schema", json.dumps(schema, ensure_ascii=False), param="tools")


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
    return _relocate(parameters, lambda reference: place + reference[1:])


def _relocate(part: Any, move: Callable[[str], str]) -> Any:
    """A schema with its references to itself as `move` gives them."""
    if isinstance(part, list):
        return [_relocate(item, move) for item in part]
    if not isinstance(part, Mapping):
        return part
    return {
        name: (
            move(value)
            if name == "$ref"
            and isinstance(value, str)
            and (value == "#" or value.startswith("#/"))
            else (
                value
                if name in _VALUES
                else (
                    {key: _relocate(inner, move) for key, inner in value.items()}
                    if name in _NAMED and isinstance(value, Mapping)
                    else _relocate(value, move)
                )
            )
        )
        for name, value in part.items()
    }


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
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError:
        return call  # a model's own mistake: the model sees it unchanged
    return {**call, "function": {**function, "arguments": arguments}}


OPEN, CLOSE = "<tool_call>", "</tool_call>"
_HEAD = re.compile(
    r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)',
    re.DOTALL,
)
# Texts in which no bracket counts; both match always.
_IN_STRING = re.compile(r'(?:[^"\\]|\\.)*', re.DOTALL)
_OUTSIDE = re.compile(r'[^"{}\[\]]*')


class ToolCallReader:
    """Turns the deltas of one request into deltas with tool calls.

    With `bare` the answer is one call without tags. With `one_call` the text after the first call
    is dropped. Call ids derive from `seed`: a retry under the same id produces the same call ids.
    """

    def __init__(self, seed: str, *, bare: bool = False, one_call: bool = False) -> None:
        self._seed = seed
        self._bare = bare
        self._one_call = one_call
        self._scanners: dict[int, _Scanner] = {}

    def translate(self, delta: Delta) -> Delta:
        """The delta, its calls separated from its text. Both may be empty within a tag."""
        scanner = self._scanners.get(delta.index)
        if scanner is None:
            scanner = self._scanners[delta.index] = _Scanner(
                f"{self._seed}/{delta.index}", self._bare, self._one_call
            )
        pieces = list(scanner.push(delta.text))
        reason = delta.finish_reason
        if reason is not None:
            pieces += scanner.flush()
            # A model may append white space to a forced call.
            if scanner.calls and (
                reason == "stop" or (reason == "length" and scanner.wrote_whole_call)
            ):
                reason = "tool_calls"
        text = "".join(piece for piece in pieces if isinstance(piece, str))
        parts = tuple(piece for piece in pieces if isinstance(piece, ToolCallPart))
        return structs.replace(delta, text=text, finish_reason=reason, tool_calls=parts)


class _Scanner:
    """One answer's text: outside of calls, or inside the call `_call`."""

    def __init__(self, seed: str, bare: bool, one_call: bool) -> None:
        self.calls = 0
        self._one_call = one_call
        self._seed = seed
        self._bare = bare
        self._held = ""
        self._call: _Call | None = _Call("") if bare else None

    @property
    def wrote_whole_call(self) -> bool:
        """Whether the call without tags has all its arguments."""
        return self._bare and self._call is not None and self._call.complete

    def push(self, text: str) -> Iterator[str | ToolCallPart]:
        while text and not self._done:
            text = yield from (
                self._outside(text) if self._call is None else self._inside(self._call, text)
            )

    def flush(self) -> Iterator[str | ToolCallPart]:
        if self._done:
            return
        if self._call is not None:
            yield from self._end(self._call)
        elif self._held and not (self.calls and not self._held.strip()):
            yield self._held
        self._held = ""

    @property
    def _done(self) -> bool:
        return self._one_call and bool(self.calls)

    def _outside(self, text: str) -> Generator[str | ToolCallPart, None, str]:
        """Pass text through. Hold back the start of a tag, and white space that a tag may follow.

        Returns the text left to read, as `_inside` does.
        """
        text = self._held + text
        at = text.find(OPEN)
        if at >= 0:
            self._held = ""
            start, end = len(text[:at].rstrip()), at + len(OPEN)
            self._call = _Call(text[start:end])
            if start:
                yield text[:start]
            return text[end:]
        partial = next(
            (size for size in range(len(OPEN) - 1, 0, -1) if text.endswith(OPEN[:size])), 0
        )
        cut = len(text[: len(text) - partial].rstrip())
        self._held = text[cut:]
        if cut:
            yield text[:cut]
        return ""

    def _inside(self, call: _Call, text: str) -> Generator[str | ToolCallPart, None, str]:
        call.raw += text
        if call.name is None and (head := _HEAD.match(call.raw)) is not None:
            call.name = json.loads(head[1], strict=False)
            call.at = head.end()
            yield self._part(id=self._id(), name=call.name)
        if call.name is not None and not call.complete:
            start = call.at
            call.advance()
            if call.at > start:
                yield self._part(arguments=call.raw[start : call.at])
        # A tag inside a string of the arguments is text.
        end = -1
        if not self._bare and (call.name is None or call.complete):
            end = call.raw.find(CLOSE, call.at)
        if end < 0:
            return ""
        rest = call.raw[end + len(CLOSE) :]
        call.raw = call.raw[:end]
        yield from self._end(call, CLOSE)
        self._call = None
        return rest

    def _end(self, call: _Call, closing: str = "") -> Iterator[str | ToolCallPart]:
        """End the call. A call with its keys in another order is parsed as a whole; invalid JSON
        becomes text again.
        """
        if call.name is None:
            try:
                value = json.loads(call.raw)
                name, arguments = value["name"], value.get("arguments", value.get("parameters", {}))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                yield call.opening + call.raw + closing
                return
            text = (
                arguments
                if isinstance(arguments, str)
                else json.dumps(arguments, ensure_ascii=False)
            )
            yield self._part(arguments=text, id=self._id(), name=str(name))
        elif not call.complete and call.at < len(call.raw):  # it was cut short within an escape
            yield self._part(arguments=call.raw[call.at :])
        self.calls += 1

    def _part(
        self, *, arguments: str = "", id: str | None = None, name: str | None = None
    ) -> ToolCallPart:
        return ToolCallPart(self.calls, arguments, id, name)

    def _id(self) -> str:
        return "call_" + blake2b(f"{self._seed}/{self.calls}".encode(), digest_size=12).hexdigest()


class _Call(Struct):
    """A call that is still incomplete. `opening` is the text before its JSON, `at` the scanner's
    position in its arguments.
    """

    opening: str
    raw: str = ""
    name: str | None = None
    at: int = 0
    complete: bool = False
    depth: int = 0
    in_string: bool = False

    def advance(self) -> None:
        """Follow the brackets of the arguments as far as the text goes; stop after the last one."""
        while not self.complete:
            plain = _IN_STRING if self.in_string else _OUTSIDE
            self.at = plain.match(self.raw, self.at).end()  # type: ignore[union-attr]
            char = self.raw[self.at : self.at + 1]
            if char in ("", "\\"):  # the end of the text, or half of an escape
                return
            self.at += 1
            if char == '"':
                self.in_string = not self.in_string
            else:
                self.depth += 1 if char in "{[" else -1
                self.complete = self.depth == 0
