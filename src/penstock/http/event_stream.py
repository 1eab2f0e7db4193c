"""Reads server-sent events out of bytes as they come: https://html.spec.whatwg.org/multipage/server-sent-events.html"""

from __future__ import annotations


class EventReader:
    """Bytes in, the data of finished events out. Names, ids and comments are dropped.

    `limit` is the most bytes that an unfinished event may have; `feed` raises `ValueError` beyond it.
    """

    def __init__(self, limit: int = 4 << 20) -> None:
        self._rest = b""
        self._limit = limit

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the events that the chunk finishes, in order."""
        text, half = self._rest + chunk, b""
        if b"\r" in text:
            if text.endswith(b"\r"):  # perhaps half of a line's end, so it waits
                text, half = text[:-1], b"\r"
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *finished, rest = text.split(b"\n\n")
        self._rest = rest + half
        if len(self._rest) > self._limit:
            raise ValueError(f"an event of more than {self._limit} bytes")
        events: list[bytes] = []
        for event in finished:
            if event.startswith(b"data: ") and b"\n" not in event:
                events.append(event[6:])
            else:
                data = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
                if data:
                    events.append(b"\n".join(data))
        return events
