"""DeepSeek's calls. V3 and R1 name the kind, then the name, then the arguments in a fence; V3.1 has
the name before the separator and the bare arguments after it.
"""

from __future__ import annotations

from penstock.openai.parsers.json_calls import stream_value
from penstock.openai.parsers.text import Decision, Offered, Piece, Pieces, Source

_ALL, _ALL_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_ONE, _SEPARATOR, _ONE_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_FENCE = "```"


class DeepSeekCalls:
    """`<｜tool▁call▁begin｜>…<｜tool▁sep｜>…<｜tool▁call▁end｜>` between the marks of all calls."""

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
