"""Calls as tags: a function with its parameters, each between tags, as Qwen3-Coder, GLM and
MiniMax write them. A call is given once it is whole.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from msgspec import Struct

from penstock.openai.parsers.text import Decision, Offered, Piece, Pieces, Source


class TagCalls(Struct, frozen=True):
    """A form of calls in tags.

    `opener` and `closer` enclose calls; without a closer there is one. A function begins with
    `begin`, `name` matches its tag (group 1 is the name) and `name_end` ends it. `parameter`
    matches a parameter's tag (group 1 is its name; group 2, if any, says "true" for a text), and
    `value_end` ends its value.
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
                types = {"object"}
            arguments[key] = typed(value, types)
            place += len(mark)
            yield from source.find(self.name_end, start=place)
        close = re.compile(rf"\s*{re.escape(self.name_end)}").match(source.text, place)
        if close is None:
            return False
        source.take(close.end())
        yield Piece("name", name)
        yield Piece("arguments", json.dumps(arguments, ensure_ascii=False))
        yield Piece("whole", "")
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
            json.dumps(value)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        return value
    if "boolean" in types and bare.lower() in ("true", "false"):
        return bare.lower() == "true"
    return text
