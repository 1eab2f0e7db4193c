"""Gemma's calls: `call:name{key:value}` between marks, with texts between marks of their own."""

from __future__ import annotations

import json
import re
from typing import Any

from msgspec import Struct

from penstock.openai.parsers.tag_calls import typed
from penstock.openai.parsers.text import Decision, Offered, Piece, Pieces, Source

_HEAD = re.compile(r"(?:call)?:?\s*([\w.\-/]+)\s*\{")
_DEEPEST = 100


class GemmaCalls(Struct, frozen=True):
    """`opener`, `call:name{…}`, `closer`. `quote` stands on both sides of a text."""

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
        except ValueError:
            return False
        if not body.endswith("}"):
            return False
        source.take(at + len(mark))
        yield Piece("name", head[1])
        yield Piece("arguments", json.dumps(arguments, ensure_ascii=False))
        yield Piece("whole", "")
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
