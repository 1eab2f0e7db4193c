"""Thoughts before an answer, between marks."""

from __future__ import annotations

from msgspec import Struct

from penstock.openai.parsers.text import Pieces, Source


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
