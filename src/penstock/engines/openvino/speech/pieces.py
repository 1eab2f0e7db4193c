"""Cuts a text into pieces that a model speaks at once."""

from __future__ import annotations

import re

_LONGEST = 400
"""Characters. Models learned from sentences, and lose the thread in longer texts."""
_ROOM = 2
"""Tokens that a tokenizer puts around a text."""
_SENTENCE = re.compile(r"[^.!?\n]*[.!?\n]*")


def pieces_of(text: str, context_length: int) -> list[str]:
    """The text in pieces of whole sentences, as many as fit. A sentence that is longer is cut at
    spaces, a word that is longer anywhere. At least one piece, which may be empty.
    """
    longest = max(min(_LONGEST, context_length - _ROOM), 1)
    pieces, last = list[str](), ""
    for part in _parts(text, longest):
        if last and len(last) + len(part) > longest:
            pieces.append(last.strip())
            last = ""
        last += part
    return [piece for piece in (*pieces, last.strip()) if piece] or [""]


def _parts(text: str, longest: int) -> list[str]:
    found = list[str]()
    for sentence in _SENTENCE.findall(text):
        while len(sentence) > longest:
            end = sentence.rfind(" ", 0, longest) + 1 or longest
            found.append(sentence[:end])
            sentence = sentence[end:]
        found.append(sentence)
    return found
