"""gpt-oss's answers: messages in channels, each with a header (openai-harmony's format).

`analysis` holds thoughts, `final` and `commentary` what is for the reader, and a message to
`functions.NAME` is a call.
"""

from __future__ import annotations

import re

from penstock.openai.parsers.text import Kind, Offered, Piece, Pieces, Source

_START, _CHANNEL, _MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_CHANNEL_NAME = re.compile(r"<\|channel\|>\s*(\w+)")
_FUNCTIONS = "functions."
_RECIPIENT_FIRST = " to="
"""An answer may begin inside a header, as the prompt ends with "<|start|>assistant"."""


class HarmonyCalls:
    """A `CallForm` that reads thoughts as well: no other parser runs before it."""

    @property
    def marks(self) -> tuple[str, ...]:
        return (_START, _CHANNEL, _MESSAGE, "<|constrain|>", *_ENDS)

    def read(self, source: Source, offered: Offered) -> Pieces:
        while True:
            space = mark = ""
            if not (yield from source.begins(_RECIPIENT_FIRST)):
                space, mark = yield from source.until((_START, _CHANNEL), "text")
                if not mark:
                    return
            at, message = yield from source.find(_MESSAGE)
            if not message:
                yield Piece("text", space + mark)
                yield from source.rest()
                return
            header = mark + source.take(at)
            source.take(len(message))
            yield from _body(source, offered, header)
            yield from source.skip()


def _body(source: Source, offered: Offered, header: str) -> Pieces:
    """One message, whose header is taken. A call of a tool that is not offered is text."""
    recipient, channel = _RECIPIENT.search(header), _CHANNEL_NAME.search(header)
    name = recipient[1].removeprefix(_FUNCTIONS) if recipient is not None else ""
    kind: Kind = "thought" if channel is not None and channel[1] == "analysis" else "text"
    if recipient is not None and recipient[1].startswith(_FUNCTIONS):
        if offered.has(name):
            kind = "arguments"
            yield Piece("name", name)
        else:
            yield Piece("text", header + _MESSAGE)
    _, end = yield from source.until((*_ENDS, _START), kind)
    if end == _START:
        source.text = _START + source.text  # it begins the next message
    if kind == "arguments" and end:
        yield Piece("whole", "")
