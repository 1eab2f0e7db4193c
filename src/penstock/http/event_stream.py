"""Reads server-sent events out of bytes as they come: https://html.spec.whatwg.org/multipage/server-sent-events.html"""

from __future__ import annotations

import codecs


class EventReader:
    """Bytes in, the data of finished events out. Names, ids, comments and events without data are dropped.

    `limit` is the most bytes that an unfinished event may have; `feed` raises `ValueError` beyond it. What begins like
    a JSON object is no stream of events: it gathers, and `rest` has it when all has come.
    """

    def __init__(self, limit: int = 4 << 20) -> None:
        self._rest = b""
        self._limit = limit
        self._begun = False
        self.is_json = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the events that the chunk finishes, in order."""
        text, half = self._rest + chunk, b""
        if not self._begun:
            text = self._begin(text)
        if self.is_json:
            self._rest = text
            self._check()
            return []
        if b"\r" in text:
            if text.endswith(b"\r"):  # perhaps half of a line's end, so it waits
                text, half = text[:-1], b"\r"
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *finished, rest = text.split(b"\n\n")
        self._rest = rest + half
        self._check()
        events: list[bytes] = []
        for event in finished:
            if event.startswith(b"data: ") and b"\n" not in event and len(event) > 6:
                events.append(event[6:])
            elif data := _data(event):
                events.append(data)
        return events

    def rest(self) -> bytes:
        """What has come after the last event, at the end: the data of one that was not ended, or the JSON object."""
        rest, self._rest = self._rest, b""
        return rest if self.is_json else _data(rest.replace(b"\r\n", b"\n").replace(b"\r", b"\n"))

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


def _data(event: bytes) -> bytes:
    return b"\n".join(line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:"))
