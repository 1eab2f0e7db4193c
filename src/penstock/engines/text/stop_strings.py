"""Cuts a growing text at the first stop string, holding back only what might still become one."""

from __future__ import annotations


class StopStrings:
    """Feed it the text as it is generated; it returns what may be shown.

    Text that could be the beginning of a stop string is held back until it is decided. Once
    `stopped`, nothing more comes, and `found` is the stop string that came first.
    """

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._held = ""
        self.found: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self.found is not None

    def push(self, text: str) -> str:
        """Add new text; returns the part that is safe to show."""
        if not self._stop:
            return text
        if self.stopped:
            return ""
        text = self._held + text
        cut, first = min(
            ((at, s) for s in self._stop if (at := text.find(s)) >= 0), default=(-1, "")
        )
        if cut >= 0:
            self.found = first
            self._held = ""
            return text[:cut]
        keep = max(_overlap(text, s) for s in self._stop)
        shown = text[: len(text) - keep]
        self._held = text[len(shown) :]
        return shown

    def flush(self) -> str:
        """What is still held back, at the end of the generation."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, shorter than the whole."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
