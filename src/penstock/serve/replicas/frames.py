"""How an ingress and a replica speak: many HTTP exchanges side by side on one connection.

A token is one small write for every client that waits for it. On a connection for each request it
would be one system call on either side of the way between ingress and replica as well; on a common
one, what a turn of the replica's event loop has for all its clients is one write and one read.

The ingress begins with `PREFACE`, by which the replica tells it from a client that speaks HTTP on
the same port. Then both sides send frames: the payload's length (4 bytes), the number of the
exchange (8), a kind (1), the payload; numbers are big-endian. The ingress numbers exchanges as it
begins them.

| kind | from | payload |
| --- | --- | --- |
| `ASK` | ingress | msgpack: method, path with query, headers (name-value pairs), body length |
| `BODY` | ingress | the next piece of the request's body |
| `TAKEN` | ingress | bytes of the answer taken since the last frame of this kind (4 bytes) |
| `LEAVE` | ingress | nothing: nobody waits for the answer any more |
| `HEAD` | replica | msgpack: status, headers |
| `PART` | replica | the next piece of the answer's body |
| `END` | replica | nothing: the answer is complete |
| `BROKEN` | replica | nothing: the answer ends without being complete |
| `CALL` | ingress | a `messages.Call` in msgpack: a task of the model itself |

A replica sends at most `WINDOW` bytes of an answer beyond those that were taken, give or take a
part, so a client that reads slowly holds up its own answer alone. Frames of exchanges that have
ended cross on their way, and are passed over.

The preface names the version. A replica answers it with the same bytes; one that does not know it
takes it for damaged HTTP.
"""

from __future__ import annotations

import asyncio
import struct
from typing import ClassVar, cast

PREFACE = b"PENSTOCK 2\r\n\r\n"
ASK, BODY, TAKEN, LEAVE, HEAD, PART, END, BROKEN, CALL = range(1, 10)
FRAME = struct.Struct(">IQB")
COUNT = struct.Struct(">I")
WINDOW = 1 << 20
"""Bytes of an answer on their way, and waiting for a slow client."""
PIECE = 1 << 18
"""Bytes of a long body that go together: other exchanges get their turn between them."""


class FramedConnection(asyncio.Protocol):
    """One side of a connection. What is put in one turn of the event loop leaves in one write."""

    longest: ClassVar[int] = 1 << 30
    """Bytes of a payload, beyond which the other side is believed to speak something else."""

    def __init__(self) -> None:
        self.open = False
        self._outbox: list[bytes] = []
        self._begun: list[bytes] = []  # of a frame that is not complete
        self._missing = 0  # bytes of it
        self.writable = asyncio.Event()
        """Whether more may be put: the other side reads, or is gone."""

    def received(self, number: int, kind: int, payload: bytes) -> None:
        """Take a frame. Raises `ValueError` or `struct.error` for one that cannot be."""
        raise NotImplementedError

    def put(self, number: int, kind: int, payload: bytes = b"") -> None:
        """Send a frame with all others of this turn."""
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self.flush)
        self._outbox += (FRAME.pack(len(payload), number, kind), payload)

    def flush(self) -> None:
        """Send what was put. Before the connection stands it is kept."""
        if self.open and self._outbox:
            outbox, self._outbox = self._outbox, []
            self.transport.write(b"".join(outbox))

    # For the event loop
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's does not derive from it
        self.open = True
        self.writable.set()

    def connection_lost(self, error: Exception | None) -> None:
        """The other side has closed it, or the network has."""
        self.open = False
        self._outbox.clear()
        self.writable.set()

    def pause_writing(self) -> None:
        """The other side reads more slowly than is written."""
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        if self._missing:
            self._begun.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data = b"".join(self._begun)
            self._begun.clear()
        self._missing = 0
        at, end = 0, len(data)
        head, unpack, received = FRAME.size, FRAME.unpack_from, self.received
        try:
            while at < end:
                stop = at + head
                if stop <= end:
                    length, number, kind = unpack(data, at)
                    if length > self.longest:
                        raise ValueError(length)
                    begin, stop = stop, stop + length
                if stop > end:
                    self._begun.append(data[at:])
                    self._missing = stop - end
                    return
                received(number, kind, data[begin:stop])
                at = stop
        except (ValueError, struct.error):
            self.transport.abort()
