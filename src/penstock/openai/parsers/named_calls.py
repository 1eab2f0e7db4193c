"""Calls whose name stands between marks, before the arguments: Mistral's and DeepSeek's."""

from __future__ import annotations

import re

from penstock.openai.parsers.json_calls import JsonCalls, stream_value
from penstock.openai.parsers.text import Decision, Offered, Piece, Pieces, Source

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
    yield Piece("name", name)
    if (yield from stream_value(source)):
        yield Piece("whole", "")
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
    yield Piece("name", name)
    if (yield from stream_value(source)):
        yield Piece("whole", "")
        space = yield from source.skip()
        if (yield from source.begins(_FENCE)):
            source.take(len(_FENCE))
            yield from source.skip()
        elif not source.text.startswith("<"):
            source.text = space + source.text
    return True
