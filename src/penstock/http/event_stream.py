"""Reads server-sent events from bytes as they arrive:
https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import codecs
import re

_STRAY_BYTES = 4096
_LINE_END = re.compile(rb"\r\n?")
_ERROR = re.compile(rb"^event: ?error *$", re.MULTILINE)
_FIELDS = re.compile(rb"^(?::|(?:event|id|retry|data)(?::|$)).*$", re.MULTILINE)


class EventReader:
    """Turns bytes into the data of complete events. It drops names, ids, comments and events
    without data. `error` is the data of the first event named "error"; `stray` is the beginning of
    text that is no event.

    `limit` bounds the bytes of an incomplete event; `feed` raises `ValueError` beyond it. Text that
    begins like a JSON object is no stream of events: the reader buffers it, and `rest` returns it
    at the end.
    """

    def __init__(self, limit: int = 4 << 20) -> None:
        self._rest = b""
        self._limit = limit
        self._begun = False
        self.is_json = False
        self.error = b""
        self.stray = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the events that `chunk` completes, in order."""
        text, half = self._rest + chunk, b""
        if not self._begun:
            text = self._begin(text)
        if self.is_json:
            self._rest = text
            self._check()
            return []
        if b"\r" in text:
            if text.endswith(b"\r"):  # perhaps half of a line end, so it waits
                text, half = text[:-1], b"\r"
            text = _LINE_END.sub(b"\n", text)
        *finished, rest = text.split(b"\n\n")
        self._rest = rest + half
        self._check()
        events: list[bytes] = []
        for event in finished:
            if event.startswith(b"data: ") and b"\n" not in event and len(event) > 6:
                events.append(event[6:])
            elif data := self._data(event):
                events.append(data)
        return events

    def rest(self) -> bytes:
        """The rest after the last event, once all bytes are in: the data of an unterminated event,
        or the JSON object.
        """
        rest, self._rest = self._rest, b""
        return rest if self.is_json else self._data(_LINE_END.sub(b"\n", rest))

    def _data(self, event: bytes) -> bytes:
        """The data of an event; empty for an error or for text that is no event, which it keeps."""
        data = b"\n".join(
            line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")
        )
        if not data:
            text = _FIELDS.sub(b"", event).strip()
            if text and len(self.stray) < _STRAY_BYTES:
                self.stray = (self.stray + text + b"\n")[:_STRAY_BYTES]
        elif _ERROR.search(event):
            self.error, data = self.error or data, b""
        return data

    def _begin(self, text: bytes) -> bytes:
        if len(text) < len(codecs.BOM_UTF8) and codecs.BOM_UTF8.startswith(text):
            return text
        text = text.removeprefix(codecs.BOM_UTF8)
        if first := text.lstrip()[:1]:
            self._begun, self.is_json = True, first == b"{"
        return text

    def _check(self) -> None:
        if len(self._rest) > self._limit:
            raise ValueError(f"an event of more than {self._limit} bytes")
