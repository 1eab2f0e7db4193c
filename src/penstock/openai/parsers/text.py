"""The text of one answer as it comes, and what parsers of it share; thoughts before an answer.

A parser is a generator. It yields `Piece`s, and None where it needs more text. What it yields joins
to the same, however the text was split on its way.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from msgspec import Struct

from penstock.openai.json_schema import resolve

Kind = Literal["text", "thought", "name", "arguments", "whole"]


class Piece(NamedTuple):
    """A part of an answer. A "name" begins a call, whose arguments follow as JSON text; "whole"
    says that no more of them will.
    """

    kind: Kind
    text: str


def whole_call(name: str, arguments: str) -> tuple[Piece, Piece, Piece]:
    """The pieces of a call of which all is known."""
    return Piece("name", name), Piece("arguments", arguments), Piece("whole", "")


Pieces = Generator[Piece | None, None, None]
Decision = Generator[Piece | None, None, bool]


class Source:
    """The text that no parser has taken yet. `ended`: no more will come."""

    def __init__(self) -> None:
        self.text = ""
        self.ended = False

    def take(self, size: int) -> str:
        """Remove the first `size` characters."""
        taken, self.text = self.text[:size], self.text[size:]
        return taken

    def wait(self) -> Generator[Piece | None, None, bool]:
        """Let more text come. False if none will."""
        if self.ended:
            return False
        yield None
        return True

    def skip(self, characters: str = " \t\r\n") -> Generator[Piece | None, None, str]:
        """Remove these characters from the beginning, and return them."""
        skipped = ""
        while True:
            left = self.text.lstrip(characters)
            skipped += self.take(len(self.text) - len(left))
            if self.text or not (yield from self.wait()):
                return skipped

    def begins(self, *marks: str) -> Generator[Piece | None, None, str]:
        """The mark with which the text begins, once that is certain; empty if none."""
        while True:
            found = max((m for m in marks if self.text.startswith(m)), key=len, default="")
            undecided = any(len(m) > len(self.text) and m.startswith(self.text) for m in marks)
            if not undecided or not (yield from self.wait()):
                return found

    def until(
        self, marks: Sequence[str], kind: Kind
    ) -> Generator[Piece | None, None, tuple[str, str]]:
        """Pass text on up to the first of `marks`, none of which begins with another.

        Returns white space and the mark, which are taken and not passed on; both are empty at the
        end of the answer. White space is passed on when text follows it.
        """
        while True:
            at, mark = min(
                ((at, mark) for mark in marks if (at := self.text.find(mark)) >= 0),
                default=(-1, ""),
            )
            if mark:
                head = self.take(at)
                self.take(len(mark))
                text = head.rstrip()
                if text:
                    yield Piece(kind, text)
                return head[len(text) :], mark
            if self.ended:
                text = self.text.rstrip()
                yield Piece(kind, self.take(len(text)))
                yield Piece(kind, self.take(len(self.text)))
                return "", ""
            safe = len(self.text[: len(self.text) - unfinished(self.text, marks)].rstrip())
            if safe:
                yield Piece(kind, self.take(safe))
            yield None

    def rest(self) -> Pieces:
        """Pass on everything that comes as text."""
        yield from self.until((), "text")

    def find(self, *marks: str, start: int = 0) -> Generator[Piece | None, None, tuple[int, str]]:
        """Where the first of `marks` is from `start` on, and which; (-1, "") if the answer ends
        without one. Nothing is taken.
        """
        seen = start
        longest = max(map(len, marks))
        while True:
            at, mark = min(
                ((at, mark) for mark in marks if (at := self.text.find(mark, seen)) >= 0),
                default=(-1, ""),
            )
            if mark:
                return at, mark
            seen = max(len(self.text) - longest + 1, start)
            if not (yield from self.wait()):
                return -1, ""


def unfinished(text: str, marks: Collection[str]) -> int:
    """Length of the longest end of `text` that may become one of `marks`."""
    longest = min(max(map(len, marks), default=1) - 1, len(text))
    sizes = range(longest, 0, -1)
    return next((n for n in sizes if any(m.startswith(text[-n:]) for m in marks)), 0)


class Offered:
    """The tools that a request offers, in OpenAI's form. None: any name is a call."""

    def __init__(self, tools: Sequence[Mapping[str, Any]] | None = None) -> None:
        self._parameters: dict[str, Any] | None = None
        if tools is not None:
            functions = [tool["function"] for tool in tools if "function" in tool]
            self._parameters = {f["name"]: f.get("parameters") or {} for f in functions}

    def has(self, name: str) -> bool:
        return self._parameters is None or name in self._parameters

    def types(self, tool: str, parameter: str) -> set[str]:
        """The JSON types that the schema of a parameter names; empty if it names none."""
        schema = (self._parameters or {}).get(tool, {})
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        own = properties.get(parameter) if isinstance(properties, Mapping) else None
        return _types(own, schema, 0)


class CallForm(Protocol):
    """A form of tool calls. `marks` are the texts around calls: special tokens among them must stay
    in the text. `read` takes the whole answer, and gives text and calls.
    """

    @property
    def marks(self) -> tuple[str, ...]: ...

    def read(self, source: Source, offered: Offered) -> Pieces: ...


_DEEPEST = 8


def _types(schema: Any, root: Any, depth: int) -> set[str]:
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        return set()
    if isinstance(reference := schema.get("$ref"), str):
        try:
            return _types(resolve(root, reference), root, depth + 1)
        except LookupError:
            return set()
    kinds = schema.get("type")
    if isinstance(kinds, str):
        return {kinds}
    if isinstance(kinds, list):
        return {kind for kind in kinds if isinstance(kind, str)}
    types: set[str] = set()
    for key in ("anyOf", "oneOf", "allOf"):
        for part in schema.get(key) or ():
            types |= _types(part, root, depth + 1)
    values = [*(schema.get("enum") or ()), *([schema["const"]] if "const" in schema else [])]
    return types | {_type_of(value) for value in values}


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    names = {str: "string", int: "integer", float: "number", list: "array", dict: "object"}
    return names.get(type(value), "null")


class Thinking(Struct, frozen=True):
    """A form of thoughts: `openers` and `closers` are alternatives.

    `always`: the answer begins with thoughts although no mark says so, unless the prompt has closed
    them already.
    """

    openers: tuple[str, ...] = ()
    closers: tuple[str, ...] = ()
    always: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        return (*self.openers, *self.closers)

    def begun(self, prompt: str) -> bool:
        """Whether an answer to `prompt` begins within thoughts."""
        end = prompt.rstrip()
        if any(end.endswith(mark.rstrip()) for mark in self.openers):
            return True
        return self.always and not self.closed(prompt)

    def open_in(self, text: str) -> bool:
        """Whether `text`, the beginning of an answer, ends within thoughts."""
        last = max((text.rfind(mark) for mark in self.openers), default=-1)
        return last > max((text.rfind(mark) for mark in self.closers), default=-1)

    def closed(self, prompt: str) -> bool:
        """Whether `prompt` ends with thoughts that are over, so that the answer has none."""
        return prompt.rstrip().endswith(self.closers)

    def read(self, source: Source, begun: bool) -> Pieces:
        """The thoughts with which the answer begins. The text after them is left.

        White space at their ends, and before the answer, goes.
        """
        space = yield from source.skip()
        if opener := (yield from source.begins(*self.openers)):
            source.take(len(opener))
        elif not begun:
            source.text = space + source.text
            return
        yield from source.skip()
        _, closer = yield from source.until(self.closers, "thought")
        if closer:
            yield from source.skip()
