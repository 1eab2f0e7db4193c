"""The ingress's side of the way to a replica. What goes over it is told in `frames`."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterable

import msgspec

from penstock.errors import ReplicaLostError
from penstock.serve.replicas.frames import (
    ASK,
    BODY,
    BROKEN,
    COUNT,
    END,
    HEAD,
    LEAVE,
    PART,
    PIECE,
    PREFACE,
    TAKEN,
    WINDOW,
    FramedConnection,
)

CONNECT_TIMEOUT_S = 5.0
KEEPALIVE = {socket.TCP_KEEPIDLE: 15, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}
"""Seconds without a byte, then seconds between so many probes. Who waits for a machine that went
away without a word would wait forever.
"""

Headers = Iterable[tuple[str, str]]
_pack = msgspec.msgpack.Encoder().encode
_unpack_head = msgspec.msgpack.Decoder(tuple[int, list[tuple[str, str]]]).decode


class Reply:
    """An answer whose head has come. `read` until it gives nothing more, then `done` is true."""

    def __init__(self, connection: Connection, number: int) -> None:
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self._connection = connection
        self._number = number
        self._ready: list[bytes] = []
        self._complete = False
        self._broken = ""
        self._taken = 0
        self._waiter: asyncio.Future[None] | None = None

    def header(self, name: str) -> str | None:
        """A header's value, by its lower-case name."""
        return next((value for key, value in self.headers if key == name), None)

    @property
    def done(self) -> bool:
        """Whether all of the body was read."""
        return self._complete and not self._ready

    async def begun(self) -> None:
        """Return when the head is here. Raises `ReplicaLostError` if it does not come."""
        while not self.status:
            await self._wait()

    async def read(self) -> bytes:
        """What has come, waiting for something; empty at the end. Raises `ReplicaLostError` if it
        ends too early.
        """
        while not self._ready:
            if self._complete:
                return b""
            await self._wait()
        ready, self._ready = self._ready, []
        data = ready[0] if len(ready) == 1 else b"".join(ready)
        self._taken += len(data)
        if self._taken > WINDOW // 2 and not self._complete:
            self._connection.put(self._number, TAKEN, COUNT.pack(self._taken))
            self._taken = 0
        return data

    async def body(self) -> bytes:
        parts = []
        while part := await self.read():
            parts.append(part)
        return b"".join(parts)

    def unread(self, data: bytes) -> None:
        """Let `data` be read again."""
        self._ready.insert(0, data)

    def close(self) -> None:
        """Be done with it: an answer that is not complete ends on the replica, too."""
        self._connection.leave(self._number, early=not self._complete)

    async def _wait(self) -> None:
        if self._broken:
            raise ReplicaLostError(self._broken)
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    # For the connection
    def take(self, kind: int, payload: bytes) -> None:
        """A frame of this answer has come."""
        if kind == PART:
            self._ready.append(payload)
        elif kind == HEAD:
            self.status, self.headers = _unpack_head(payload)
        elif kind == END:
            self._complete = True
        elif kind == BROKEN:
            self._broken = "the replica broke this answer off"
        else:
            raise ValueError(kind)
        self._wake()

    def lose(self, why: str) -> None:
        """Nothing will come any more."""
        self._broken = self._broken or why
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class Address:
    """Where a replica listens, and the connection to it. Belongs to the event loop that uses it."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self._connection: Connection | None = None

    async def request(self, method: str, path: str, headers: Headers, body: bytes) -> Reply:
        """Ask, and return when the head of the answer is here. Raises `ReplicaLostError`."""
        if self._connection is None or self._connection.lost:
            self._connection = Connection(self.host, self.port)
        return await self._connection.ask(method, path, headers, body)

    def close(self) -> None:
        """Let the connection end with the answers that are under way. The next request makes a new
        one.
        """
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.retire()


class Connection(FramedConnection):
    """Many exchanges with one replica. It stands, or says why not, some time after it is made."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__()
        self.lost = False
        self._name = f"{host}:{port}"
        self._replies: dict[int, Reply] = {}
        self._asked = 0
        self._retired = False
        self._connecting = asyncio.create_task(self._connect(host, port))

    async def ask(self, method: str, path: str, headers: Headers, body: bytes) -> Reply:
        """Send a request and wait for the head of its answer."""
        self._asked = number = self._asked + 1
        reply = self._replies[number] = Reply(self, number)
        try:
            self.put(number, ASK, _pack((method, path, list(headers), len(body))))
            for at in range(0, len(body), PIECE):
                await self.until_writable()
                self.put(number, BODY, body[at : at + PIECE])
            await reply.begun()
        except BaseException:
            reply.close()
            raise
        return reply

    def leave(self, number: int, *, early: bool) -> None:
        """Be done with an exchange; `early` tells the replica."""
        if self._replies.pop(number, None) is None:
            return
        if early and not self.lost:
            self.put(number, LEAVE)
        self._end_if_unused()

    def retire(self) -> None:
        """Close when no exchange is under way any more."""
        self._retired = True
        self._end_if_unused()

    def _end_if_unused(self) -> None:
        if not self._retired or self._replies:
            return
        self._connecting.cancel()
        if self.open:
            self.flush()
            self.transport.close()

    async def _connect(self, host: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await loop.create_connection(lambda: self, host, port)
        except (OSError, TimeoutError) as error:
            self._lose(error, f"{self._name} cannot be reached: {error}")

    def _lose(self, error: Exception | None, why: str) -> None:
        super().connection_lost(error)
        self.lost = True
        for reply in self._replies.values():
            reply.lose(why)

    # For the event loop
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.write(PREFACE)
        self._watch()
        self.flush()

    def connection_lost(self, error: Exception | None) -> None:
        self._lose(error, f"the connection to {self._name} broke")

    def received(self, number: int, kind: int, payload: bytes) -> None:
        reply = self._replies.get(number)
        if reply is not None:
            reply.take(kind, payload)

    def _watch(self) -> None:
        """Let the kernel notice when the other machine is gone."""
        fileno = self.transport.get_extra_info("socket").fileno()
        if fileno < 0:  # closed already
            return
        # Uvloop's own socket objects take no options.
        with socket.socket(fileno=os.dup(fileno)) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in KEEPALIVE.items():
                same.setsockopt(socket.IPPROTO_TCP, option, value)
