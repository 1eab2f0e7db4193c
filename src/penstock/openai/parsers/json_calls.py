"""Calls as JSON: objects with a name and arguments, alone, in lists, between marks; or arguments
alone, whose name stands before them between marks (Mistral's and DeepSeek's).
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from typing import Any

from msgspec import Struct

from penstock.openai.parsers.text import Decision, Offered, Piece, Pieces, Source, whole_call

_STRING = r'"(?:[^"\\]|\\.)*"'
_HEAD = re.compile(
    rf'\{{\s*(?:"(?:type|id)"\s*:\s*{_STRING}\s*,\s*)*'
    rf'"name"\s*:\s*({_STRING})\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{{)',
    re.DOTALL,
)
_KEY = re.compile(rf"\{{\s*({_STRING})", re.DOTALL)
_KEYS = {f'"{key}"' for key in ("name", "type", "id", "function", "arguments", "parameters")}
_MAY_BE_KEY = re.compile(r'\{\s*(?:"[^"]{0,12})?', re.DOTALL)
# Texts in which no bracket counts; both match always.
_IN_STRING = re.compile(r'(?:[^"\\]|\\.)*', re.DOTALL)
_OUTSIDE = re.compile(r'[^"{}\[\]]*')


class Brackets:
    """Follows the brackets of a JSON value. `complete` after the last one is closed."""

    def __init__(self, depth: int = 0) -> None:
        self.complete = False
        self._depth = depth
        self._in_string = False

    def follow(self, text: str, at: int = 0) -> int:
        """Go on at `at`. Returns where it stopped: after the value, or at half of an escape."""
        while not self.complete:
            found = (_IN_STRING if self._in_string else _OUTSIDE).match(text, at)
            assert found is not None  # both match nothing as well
            at = found.end()
            char = text[at : at + 1]
            if char in ("", "\\"):
                break
            at += 1
            if char == '"':
                self._in_string = not self._in_string
            else:
                self._depth += 1 if char in "{[" else -1
                self.complete = self._depth <= 0
        return at


def stream_call(source: Source, name: str) -> Decision:
    """A call whose arguments are the JSON object or list with which the text begins, as they come.
    False if they are cut.
    """
    yield Piece("name", name)
    brackets = Brackets()
    while True:
        if at := brackets.follow(source.text):
            yield Piece("arguments", source.take(at))
        if brackets.complete:
            yield Piece("whole", "")
            return True
        if not (yield from source.wait()):
            if source.text:  # half of an escape
                yield Piece("arguments", source.take(len(source.text)))
            return False


def json_call(source: Source, offered: Offered) -> Decision:
    """The call with which the text begins, an object. False, with nothing taken, if it is none.

    The arguments stream once the name is known, if that comes first. A call that is cut after that
    stays one.
    """
    brackets, at = Brackets(), 0
    while True:
        if (head := _HEAD.match(source.text)) is not None:
            name = json.loads(head[1], strict=False)
            if not offered.has(name):
                return False
            source.take(head.end())
            if (yield from stream_call(source, name)):
                yield from _end_object(source)
            return True
        if (key := _KEY.match(source.text)) is not None:
            if key[1] not in _KEYS:
                return False
        elif not _MAY_BE_KEY.fullmatch(source.text):
            return False
        at = brackets.follow(source.text, at)
        if brackets.complete:
            call = named(source.text[:at])
            if call is None or not offered.has(call[0]):
                return False
            source.take(at)
            yield from whole_call(*call)
            return True
        if not (yield from source.wait()):
            return False


def _end_object(source: Source) -> Generator[Piece | None, None, None]:
    """Take what follows the arguments in a call's object; models forget the last bracket."""
    space = yield from source.skip()
    if source.text[:1] == "}":
        source.take(1)
    elif source.text[:1] == ",":
        brackets, at = Brackets(depth=1), 0
        while True:
            at = brackets.follow(source.text, at)
            if brackets.complete or not (yield from source.wait()):
                source.take(at)
                return
    else:
        source.text = space + source.text


def named(text: str) -> tuple[str, str] | None:
    """The name and the arguments (JSON text) of a call that is JSON in any order of its keys."""
    try:
        value = json.loads(text, strict=False)
        value = value.get("function", value) if isinstance(value, dict) else value
        if isinstance(value, str):
            value = {**json.loads(text, strict=False), "name": value}
        name, arguments = value["name"], value.get("arguments", value.get("parameters", {}))
        return (name, as_text(arguments)) if isinstance(name, str) else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def as_text(arguments: Any) -> str:
    """Arguments as JSON text; a text is taken to be that already. Raises `ValueError` for numbers
    that JSON has not.
    """
    if isinstance(arguments, str):
        return arguments
    return json.dumps(arguments, ensure_ascii=False, allow_nan=False)


class JsonCalls(Struct, frozen=True):
    """A form of JSON calls: one object, or a list of them, or several after each other.

    A call follows one of `openers`, or begins with one of `bare`, a bracket, anywhere in the text;
    `closer` may follow it.
    """

    openers: tuple[str, ...] = ()
    closer: str = ""
    bare: tuple[str, ...] = ()

    @property
    def marks(self) -> tuple[str, ...]:
        return (*self.openers, *([self.closer] if self.closer else []))

    @property
    def triggers(self) -> tuple[str, ...]:
        """The marks before each call; empty where a call, or a word like one, needs no mark."""
        words = any(opener.isalpha() for opener in self.openers)
        return () if self.bare or words else self.openers

    def read(self, source: Source, offered: Offered) -> Pieces:
        unclosed = False
        openers = (*self.openers, *self.bare)
        while True:
            marks = (*openers, self.closer) if unclosed and self.closer else openers
            space, mark = yield from source.until(marks, "text")
            if not mark:
                return
            if unclosed and mark == self.closer:
                unclosed = False
                continue
            if mark in self.bare:
                source.text = mark + source.text
            opening = space if mark in self.bare else space + mark
            unclosed = yield from self.calls(source, offered, opening)

    def calls(self, source: Source, offered: Offered, opening: str) -> Decision:
        """The calls after `opening`, which becomes text if there are none. Returns whether the
        closer is still to come.
        """
        taken = opening + (yield from source.skip())
        listed = source.text[:1] == "["
        if listed:
            taken += source.take(1) + (yield from source.skip())
        found = False
        while source.text[:1] == "{" and (yield from json_call(source, offered)):
            found = True
            taken = yield from source.skip()
            if source.text[:1] in (",", ";") and (listed or self.bare):
                taken += source.take(1) + (yield from source.skip())
        if not found:
            bracket = "" if listed or opening.strip() else source.take(1)
            yield Piece("text", taken + bracket)
            return False
        if listed and source.text[:1] == "]":
            source.take(1)
        elif source.text:
            source.text = taken + source.text
        return (yield from self._close(source))

    def _close(self, source: Source) -> Decision:
        if not self.closer:
            return False
        space = yield from source.skip(" \t\r\n}]")
        if (yield from source.begins(self.closer)):
            source.take(len(self.closer))
            return False
        if source.text:
            source.text = space.lstrip("}]") + source.text
        return True


HERMES = JsonCalls(("<tool_call>",), "</tool_call>")


def forced_call(source: Source, offered: Offered) -> Pieces:
    """An answer that is one call, as a constraint wants it. Anything else is text."""
    space = yield from source.skip()
    if source.text[:1] == "{" and (yield from json_call(source, offered)):
        while (yield from source.wait()):  # white space, if anything
            source.text = ""
        source.text = ""
    else:
        source.text = space + source.text
        yield from source.rest()


_OPEN, _ID, _ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_NAME = re.compile(r"[\w.\-/]+")
_LONGEST_NAME = 256
_LISTED = JsonCalls((_OPEN,))


class MistralCalls:
    """`[TOOL_CALLS][{…}]`, or, since tokenizer v11, `[TOOL_CALLS]name[CALL_ID]id[ARGS]{…}`."""

    @property
    def marks(self) -> tuple[str, ...]:
        return (_OPEN, _ID, _ARGUMENTS)

    def read(self, source: Source, offered: Offered) -> Pieces:
        while True:
            space, mark = yield from source.until((_OPEN,), "text")
            if not mark:
                return
            space += mark + (yield from source.skip())
            if source.text[:1] in ("[", "{"):
                yield from _LISTED.calls(source, offered, space)
            elif not (yield from _named_call(source, offered)):
                yield Piece("text", space)


def _named_call(source: Source, offered: Offered) -> Decision:
    """A name, then its arguments. False, with nothing taken, if that is not what stands there."""
    while "{" not in source.text and len(source.text) < _LONGEST_NAME:
        if not (yield from source.wait()):
            return False
    head, bracket, _ = source.text.partition("{")
    name, _, _ = head.partition(_ARGUMENTS)[0].partition(_ID)
    name = name.strip()
    if (
        not bracket
        or len(head) >= _LONGEST_NAME
        or not _NAME.fullmatch(name)
        or not offered.has(name)
    ):
        return False
    source.take(len(head))
    yield from stream_call(source, name)
    return True


_ALL, _ALL_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_ONE, _SEPARATOR, _ONE_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_FENCE = "```"


class DeepSeekCalls:
    """`<｜tool▁call▁begin｜>…<｜tool▁sep｜>…<｜tool▁call▁end｜>` between the marks of all calls.

    V3 and R1 name the kind, then the name, then the arguments in a fence; V3.1 has the name before
    the separator and the bare arguments after it.
    """

    @property
    def marks(self) -> tuple[str, ...]:
        return (_ALL, _ALL_END, _ONE, _SEPARATOR, _ONE_END)

    def read(self, source: Source, offered: Offered) -> Pieces:
        found = False
        while True:
            marks = (_ALL, _ONE, _ALL_END, _ONE_END) if found else (_ALL, _ONE)
            opening, mark = yield from source.until(marks, "text")
            if not mark:
                return
            if mark in (_ALL_END, _ONE_END):
                continue
            opening += mark
            if mark == _ALL:
                opening += yield from source.skip()
                if not (yield from source.begins(_ONE)):
                    yield Piece("text", opening)
                    continue
                opening += source.take(len(_ONE))
            if (yield from _call(source, offered)):
                found = True
            else:
                yield Piece("text", opening)


def _call(source: Source, offered: Offered) -> Decision:
    """The call after its mark. False, with nothing taken, if it is none."""
    at, mark = yield from source.find(_SEPARATOR, _ONE, _ONE_END)
    if mark != _SEPARATOR:
        return False
    after = at + len(_SEPARATOR)
    name = source.text[:at].strip()
    begin, mark = yield from source.find("{", _ONE_END, start=after)
    if mark != "{":
        return False
    between = source.text[after:begin]
    if between.strip():
        name, _, fence = between.strip().partition("\n")
        if fence.strip().removeprefix(_FENCE) not in ("", "json"):
            return False
    name = name.strip()
    if not offered.has(name):
        return False
    source.take(begin)
    if (yield from stream_call(source, name)):
        space = yield from source.skip()
        if (yield from source.begins(_FENCE)):
            source.take(len(_FENCE))
            yield from source.skip()
        elif not source.text.startswith("<"):
            source.text = space + source.text
    return True
