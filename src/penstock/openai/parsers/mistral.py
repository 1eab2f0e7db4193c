"""Mistral's calls: `[TOOL_CALLS]` before a list of JSON objects, or, since tokenizer v11, before
each call's name, with the arguments after the name (`[ARGS]` may stand between).
"""

from __future__ import annotations

import re

from penstock.openai.parsers.json_calls import JsonCalls, stream_value
from penstock.openai.parsers.text import Decision, Offered, Piece, Pieces, Source

_OPEN, _ID, _ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_NAME = re.compile(r"[\w.\-/]+")
_LONGEST_NAME = 256
_LISTED = JsonCalls((_OPEN,))


class MistralCalls:
    """`[TOOL_CALLS][{…}]` and `[TOOL_CALLS]name[CALL_ID]id[ARGS]{…}`."""

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
    yield Piece("name", name)
    if (yield from stream_value(source)):
        yield Piece("whole", "")
    return True
