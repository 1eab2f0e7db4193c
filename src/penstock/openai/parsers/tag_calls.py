"""Calls as tags: a function with its parameters, each between tags, as Qwen3-Coder, GLM and
MiniMax write them, and Gemma in a form of its own. A call is given once it is whole.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from msgspec import Struct

from penstock.openai.parsers.json_calls import as_text
from penstock.openai.parsers.text import Decision, Offered, Piece, Pieces, Source, whole_call


class TagCalls(Struct, frozen=True):
    """A form of calls in tags.

    `opener` and `closer` enclose calls; where `closer` is empty, one call follows each opener. A
    function begins with `begin`, `name` matches its tag (group 1 is the name) and `name_end` ends
    it. `parameter` matches a parameter's tag (group 1 is its name; group 2, if any, is "true" where
    the model marks the value as a string), and `value_end` ends its value.
    """

    opener: str
    closer: str
    begin: str
    name: str
    name_end: str
    parameter: str
    value_end: str
    bare: bool = False
    """Whether `begin` opens calls too: models forget the opener."""

    @property
    def marks(self) -> tuple[str, ...]:
        return (self.opener, self.closer or self.name_end)

    def read(self, source: Source, offered: Offered) -> Pieces:
        """Text and calls. What is no whole call of a tool on offer is text."""
        unclosed = False
        openers = (self.opener, *((self.begin,) if self.bare else ()))
        while True:
            marks = (*openers, self.closer) if unclosed else openers
            space, mark = yield from source.until(marks, "text")
            if not mark:
                return
            if unclosed and mark == self.closer:
                unclosed = False
                continue
            if mark == self.opener:
                space += mark + (yield from source.skip())
            else:
                source.text = mark + source.text
            if not (yield from self._call(source, offered)):
                # One character of `begin` becomes text, so that it is not found again.
                yield Piece("text", space + (source.take(1) if mark == self.begin else ""))
                continue
            if not self.closer:
                continue
            space = yield from source.skip()
            while (yield from self._call(source, offered)):
                space = yield from source.skip()
            unclosed = not (yield from source.begins(self.closer))
            if unclosed:
                source.text = space + source.text
            else:
                source.take(len(self.closer))

    def _call(self, source: Source, offered: Offered) -> Decision:
        """The call with which the text begins. False, with nothing taken, if it is none."""
        if self.begin and not (yield from source.begins(self.begin)):
            return False
        _, end = yield from source.find(self.name_end)
        head = re.match(self.name, source.text)
        if not end or head is None or not offered.has(name := head[1].strip()):
            return False
        arguments: dict[str, Any] = {}
        place = head.end()
        while tag := re.compile(rf"\s*{self.parameter}").match(source.text, place):
            place, mark = yield from source.find(self.value_end, start=tag.end())
            if not mark:
                return False
            key, value = tag[1].strip(), source.text[tag.end() : place]
            types = offered.types(name, key)
            if not types and tag.lastindex == 2 and tag[2] != "true":
                types = {"object"}  # no string: read as JSON
            arguments[key] = typed(value, types)
            place += len(mark)
            yield from source.find(self.name_end, start=place)  # waits until it has arrived
        close = re.compile(rf"\s*{re.escape(self.name_end)}").match(source.text, place)
        if close is None:
            return False
        source.take(close.end())
        yield from whole_call(name, json.dumps(arguments, ensure_ascii=False))
        return True


def typed(text: str, types: set[str]) -> Any:
    """A parameter's value as the JSON type that its schema names. One line end at each side belongs
    to the tags.
    """
    text = text.removeprefix("\n").removesuffix("\n")
    bare = text.strip()
    if "null" in types and bare.lower() in ("null", "none"):
        return None
    if "string" in types or not types:
        return text
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(bare)
            json.dumps(value, allow_nan=False)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        return value
    if "boolean" in types and bare.lower() in ("true", "false"):
        return bare.lower() == "true"
    return text


_HEAD = re.compile(r"(?:call\s*:|call\s|:)?\s*([\w.\-/]+)\s*\{")
"""Models forget `call` or its colon; a name may begin with `call`, too."""
_DEEPEST = 100


class GemmaCalls(Struct, frozen=True):
    """Gemma's: `opener`, `call:name{…}`, `closer`. `quote` stands on both sides of a text."""

    opener: str
    closer: str
    quote: str

    @property
    def marks(self) -> tuple[str, ...]:
        return (self.opener, self.closer, self.quote)

    def read(self, source: Source, offered: Offered) -> Pieces:
        while True:
            opening, mark = yield from source.until((self.opener,), "text")
            if not mark:
                return
            opening += mark
            if not (yield from self._call(source, offered)):
                yield Piece("text", opening)

    def _call(self, source: Source, offered: Offered) -> Decision:
        """The call after its mark. False, with nothing taken, if it is none."""
        quoted, start = False, 0
        while True:
            at, mark = yield from source.find(self.closer, self.quote, start=start)
            if not mark or (mark == self.closer and not quoted):
                break
            quoted ^= mark == self.quote
            start = at + len(mark)
        head = _HEAD.match(source.text.lstrip())
        if not mark or head is None or not offered.has(head[1]):
            return False
        body = source.text[:at].lstrip()[head.end() :].rstrip()
        values = _Values(body.removesuffix("}"), self.quote)
        try:
            arguments = {
                key: typed(value, types)
                if isinstance(value, str) and (types := offered.types(head[1], key))
                else value
                for key, value in values.members("", 0).items()
            }
            written = as_text(arguments)
        except ValueError:
            return False
        if not body.endswith("}"):
            return False
        source.take(at + len(mark))
        yield from whole_call(head[1], written)
        return True


class _Values:
    """Reads `key:value,…`: texts between quotes, lists, objects, JSON's words and numbers."""

    def __init__(self, text: str, quote: str) -> None:
        self._text = text
        self._quote = quote
        self._at = 0

    def members(self, end: str, depth: int) -> dict[str, Any]:
        """Members up to `end`, or up to the end of the text. Raises `ValueError`."""
        members: dict[str, Any] = {}
        while not self._ends(end):
            at = self._text.find(":", self._at)
            if at < 0:
                raise ValueError("a key without a value")
            key = self._text[self._at : at].strip().replace(self._quote, "").strip('"')
            self._at = at + 1
            members[key] = self._value(depth)
        return members

    def _ends(self, end: str) -> bool:
        while self._at < len(self._text) and self._text[self._at] in " ,\t\r\n":
            self._at += 1
        if self._at == len(self._text):
            if end:
                raise ValueError("it is not closed")
            return True
        if end and self._text[self._at] == end:
            self._at += 1
            return True
        return False

    def _value(self, depth: int) -> Any:
        if depth > _DEEPEST:
            raise ValueError("it is nested too deep")
        while self._text[self._at : self._at + 1].isspace():
            self._at += 1
        if self._text.startswith(self._quote, self._at):
            begin = self._at + len(self._quote)
            end = self._text.find(self._quote, begin)
            if end < 0:
                raise ValueError("a text is not closed")
            self._at = end + len(self._quote)
            return self._text[begin:end]
        match self._text[self._at : self._at + 1]:
            case "{":
                self._at += 1
                return self.members("}", depth + 1)
            case "[":
                self._at += 1
                items = []
                while not self._ends("]"):
                    items.append(self._value(depth + 1))
                return items
        plain = re.compile(r"[^,}\]]*").match(self._text, self._at)
        assert plain is not None
        self._at = plain.end()
        word = plain[0].strip()
        try:
            return json.loads(word)
        except ValueError:
            return word
