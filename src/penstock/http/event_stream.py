"""Reads server-sent events out of bytes as they come. See https://html.spec.whatwg.org/multipage/server-sent-events.html"""

from __future__ import annotations


class EventReader:
    """Bytes in, the data of finished events out. Names, ids and comments are dropped.

    `limit` is the most bytes that an unfinished event may have; `feed` raises `ValueError` beyond it.
    """

    def __init__(self, limit: int = 16 << 20) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._held = 0
        self._limit = limit

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the events that the chunk finishes, in order."""
        if b"\r" in chunk or self._rest.endswith(b"\r"):
            return self._lines(self._normal(chunk))
        return self._lines(self._rest + chunk)

    def _normal(self, chunk: bytes) -> bytes:
        """All line ends as one byte. A carriage return at the very end may be half of one, and waits."""
        text = self._rest + chunk
        if text.endswith(b"\r"):
            return text[:-1].replace(b"\r\n", b"\n").replace(b"\r", b"\n") + b"\r"
        return text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _lines(self, text: bytes) -> list[bytes]:
        events: list[bytes] = []
        lines = text.split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                data = line[6:] if line.startswith(b"data: ") else line[5:]
                self._data.append(data)
                self._held += len(data)
            elif not line and self._data:
                events.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
                self._data = []
                self._held = 0
        if self._held + len(self._rest) > self._limit:
            raise ValueError(f"an event of more than {self._limit} bytes")
        return events
