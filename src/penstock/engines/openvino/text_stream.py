"""Turns growing token sequences into growing text, many sequences with one detokenizer call.

A token's text can depend on its neighbours (multi-byte characters, leading spaces), so each piece
is the difference between the text of a short window with and without the new tokens. The method is
that of Hugging Face's text- generation-inference.
"""

from __future__ import annotations

UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """The text of one token sequence. `windows` goes to the detokenizer, its two texts come back to
    `advance`.
    """

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._window_start = 0
        self._shown = 0

    def add(self, token_ids: list[int]) -> None:
        self._ids += token_ids

    def windows(self) -> tuple[list[int], list[int]]:
        """The window's tokens shown so far, and the same with the new ones."""
        return self._ids[self._window_start : self._shown], self._ids[self._window_start :]

    def advance(self, shown: str, whole: str, last: bool) -> str:
        """The new text, or "" while a character is unfinished (unless this is the `last` call)."""
        if whole.endswith(UNFINISHED) and not last:
            return ""
        if len(whole) <= len(shown):
            return ""
        self._window_start = self._shown
        self._shown = len(self._ids)
        return whole[len(shown) :]
