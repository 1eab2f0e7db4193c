"""The way to a replica: HTTP/1.1 over connections that are kept, with nothing on it but what our own servers send.

A token passes here once for every client that waits for it, so a general client's machinery (events, timeouts a read,
decoding) would cost more than the token. What comes is handed on in whole chunks: a chunk is a write of the replica,
and holds whole events, so a stream that breaks breaks between events.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterable, Mapping
from typing import cast

from penstock.errors import ReplicaLostError

CONNECT_TIMEOUT_S = 5.0
MOST_HELD = 1 << 20
"""Bytes that wait for a slow client before the replica is slowed down."""
MOST_IDLE = 256
"""Idle connections kept to one replica."""
KEEPALIVE = {socket.TCP_KEEPIDLE: 15, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}
"""Seconds without a byte, then seconds between so many probes. Who waits for a machine that went away without a word
would wait forever.
"""

Headers = Iterable[tuple[str, str]]


class Reply:
    """An answer whose head has come. `read` until it gives nothing more, then `done` is true."""

    def __init__(self, status: int, headers: list[tuple[str, str]], connection: Connection) -> None:
        self.status = status
        self.headers = headers
        self._connection = connection

    def header(self, name: str) -> str | None:
        """A header's value, by its lower-case name."""
        return next((value for key, value in self.headers if key == name), None)

    @property
    def done(self) -> bool:
        """Whether all of the body was read."""
        return self._connection.exhausted and not self._connection.ready

    async def read(self) -> bytes:
        """What has come, waiting for something; empty at the end. Raises `ReplicaLostError` if it ends too early."""
        return await self._connection.read()

    async def body(self) -> bytes:
        """All that is left."""
        parts = []
        while part := await self.read():
            parts.append(part)
        return b"".join(parts)

    def unread(self, data: bytes) -> None:
        """Let `data` be read again."""
        self._connection.ready.insert(0, data)

    def close(self) -> None:
        """Be done with it: the connection is kept if the answer was read to its end, and closed if not."""
        self._connection.release()


class Address:
    """Where a replica listens, and the connections to it. Belongs to the event loop that uses it."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self._idle: list[Connection] = []

    async def request(self, method: str, path: str, headers: Headers, body: bytes) -> Reply:
        """Ask, and return when the head of the answer is here. Raises `ReplicaLostError`."""
        lines = [f"{method} {path} HTTP/1.1", f"host: {self.host}", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers]
        message = "\r\n".join([*lines, "", ""]).encode("latin-1") + body
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                try:
                    return await connection.ask(message)
                except ReplicaLostError:
                    if connection.heard:
                        raise
                    # Closed for idleness while we wrote: that says nothing of the replica.
        return await (await self._connect()).ask(message)

    def close(self) -> None:
        """Drop idle connections."""
        for connection in self._idle:
            connection.abort()
        self._idle.clear()

    def keep(self, connection: Connection) -> None:
        """Take back a connection that has no answer under way."""
        if len(self._idle) < MOST_IDLE:
            self._idle.append(connection)
        else:
            connection.abort()

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await loop.create_connection(lambda: Connection(self), self.host, self.port)
        except (OSError, TimeoutError) as error:
            raise ReplicaLostError(f"{self.host}:{self.port} cannot be reached: {error}") from None
        connection.watch()
        return connection


class Connection(asyncio.Protocol):
    """One connection; one answer at a time."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._waiter: asyncio.Future[None] | None = None
        self.open = False
        self._reset()

    def _reset(self) -> None:
        self.heard = False
        self.exhausted = False
        self._reply: Reply | None = None
        self._buffer = b""
        self.ready: list[bytes] = []
        self._held = 0
        self._left: int | None = None  # of a body of known length; None for one in chunks
        self._broken = ""

    # For those who ask
    async def ask(self, message: bytes) -> Reply:
        """Send a request and wait for the head of its answer."""
        self._reset()
        self._transport.write(message)
        try:
            while self._reply is None:
                if self._broken:
                    raise ReplicaLostError(self._broken)
                await self._wait()
        except BaseException:
            self.abort()
            raise
        return self._reply

    async def read(self) -> bytes:
        """The body's next bytes."""
        while not self.ready:
            if self.exhausted:
                return b""
            if self._broken:
                raise ReplicaLostError(self._broken)
            await self._wait()
        ready, self.ready = self.ready, []
        if self._held > MOST_HELD:
            self._transport.resume_reading()
        self._held = 0
        return ready[0] if len(ready) == 1 else b"".join(ready)

    def release(self) -> None:
        """Keep the connection for the next request, or close it."""
        if self.exhausted and self.open:
            self._address.keep(self)
        else:
            self.abort()

    def watch(self) -> None:
        """Let the kernel notice when the other machine is gone."""
        fileno = self._transport.get_extra_info("socket").fileno()
        if fileno < 0:  # closed already
            return
        with socket.socket(fileno=os.dup(fileno)) as same:  # uvloop's own socket objects take no options
            same.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in KEEPALIVE.items():
                same.setsockopt(socket.IPPROTO_TCP, option, value)

    def abort(self) -> None:
        """Close at once, which ends the request on the replica."""
        if self.open:
            self.open = False
            self._transport.abort()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # For the event loop
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not derive from it
        self.open = True

    def connection_lost(self, error: Exception | None) -> None:
        """The other side has closed it, or the network has."""
        self.open = False
        if not self.exhausted and not self._broken:
            self._broken = f"the connection to {self._address.host}:{self._address.port} broke"
        self._wake()

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        self.heard = True
        self._buffer = self._buffer + data if self._buffer else data
        try:
            if self._reply is None and not self._read_head():
                return
            if self._left is None:
                self._read_chunks()
            else:
                self._read_plain()
        except (ValueError, IndexError):
            self._broken = "the replica's answer is no HTTP"
            self.abort()
        if self._held > MOST_HELD and self.open:
            self._transport.pause_reading()
        self._wake()

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        self._buffer = self._buffer[end + 4 :]
        headers = []
        for line in lines:
            name, _, value = line.partition(":")
            headers.append((name.strip().lower(), value.strip()))
        known: Mapping[str, str] = dict(headers)
        if known.get("transfer-encoding", "").lower() != "chunked":
            self._left = int(known.get("content-length", "0"))
        self._reply = Reply(int(first.split(" ", 2)[1]), headers, self)
        return True

    def _read_plain(self) -> None:
        assert self._left is not None
        if self._buffer:
            self._give(self._buffer[: self._left])
            self._left -= len(self._buffer)
            self._buffer = b""
        if self._left <= 0:
            self.exhausted = True

    def _read_chunks(self) -> None:
        buffer, at = self._buffer, 0
        while (line := buffer.find(b"\r\n", at)) >= 0:
            size = int(buffer[at:line].partition(b";")[0], 16)
            begin = line + 2
            if len(buffer) < begin + size + 2:
                break
            if not size:  # our servers send no trailers
                self.exhausted = True
                at = begin + 2
                break
            self._give(buffer[begin : begin + size])
            at = begin + size + 2
        self._buffer = buffer[at:]

    def _give(self, data: bytes) -> None:
        if data:
            self.ready.append(data)
            self._held += len(data)
