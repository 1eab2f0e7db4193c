"""The ingress's side of the connection to a replica. `frames` specifies the protocol."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Iterable
from typing import cast

import msgspec

from penstock.errors import ReplicaLostError
from penstock.serve.replicas.frames import (
    ASK,
    BODY,
    BROKEN,
    CALL,
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
from penstock.serve.replicas.messages import Call, pack

CONNECT_TIMEOUT_S = 5.0
KEEPALIVE = {socket.TCP_KEEPIDLE: 15, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}
"""Seconds without a byte, then seconds between so many probes. Without probes, an ingress would
wait forever for a machine that vanished.
"""

Headers = Iterable[tuple[str, str]]
_log = logging.getLogger(__name__)
_unpack_head = msgspec.msgpack.Decoder(tuple[int, list[tuple[str, str]]]).decode


class Reply:
    """An answer whose head has come. `read` until it gives nothing more; then `done` is true."""

    def __init__(self, connection: Connection, number: int) -> None:
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.done = False
        """Whether all of the body was read."""
        self._connection = connection
        self._number = number
        self._ready: list[bytes] = []
        self._complete = False
        self._broken = ""
        self._taken = 0
        self._news = asyncio.Event()

    def header(self, name: str) -> str | None:
        """A header's value, by its lower-case name."""
        return next((value for key, value in self.headers if key == name), None)

    async def begun(self) -> None:
        """Return when the head is here. Raises `ReplicaLostError` if it does not come."""
        while not self.status:
            if self._broken:
                raise ReplicaLostError(self._broken)
            self._news.clear()
            await self._news.wait()

    async def parts(self) -> list[bytes]:
        """The parts that have come, at least one; none at the end. Raises `ReplicaLostError` if the
        answer ends too early.
        """
        while not self._ready:
            if self._complete:
                self.done = True
                return []
            if self._broken:
                raise ReplicaLostError(self._broken)
            self._news.clear()
            await self._news.wait()
        ready, self._ready = self._ready, []
        self.done = self._complete
        self._taken += sum(map(len, ready))
        if self._taken > WINDOW // 2 and not self._complete:
            self._connection.put(self._number, TAKEN, COUNT.pack(self._taken))
            self._taken = 0
        return ready

    async def read(self) -> bytes:
        """As `parts`, joined; empty at the end."""
        return b"".join(await self.parts())

    async def body(self) -> bytes:
        parts = []
        while not self.done:
            parts += await self.parts()
        return b"".join(parts)

    def unread(self, data: bytes) -> None:
        """Let `data` be read again."""
        self._ready.insert(0, data)
        self.done = False

    def close(self) -> None:
        """End the exchange: an answer that is not complete is aborted on the replica."""
        self._connection.leave(self._number, early=not self._complete)

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
        self._news.set()

    def lose(self, why: str) -> None:
        """Nothing will come any more."""
        self._broken = self._broken or why
        self._news.set()


class Address:
    """The address of a replica, and the connection to it. Bound to the event loop that uses it."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self._connection: Connection | None = None

    def connected(self) -> Connection:
        """The connection; a new one if there is none."""
        if self._connection is None or self._connection.lost:
            self._connection = Connection(self.host, self.port)
        return self._connection

    def close(self) -> None:
        """Let the connection end with its answers. The next request makes a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.retire()


class _Greeting(asyncio.Protocol):
    """Learns whether the other side is a replica that speaks this version of the frames."""

    def __init__(self) -> None:
        self.understood: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._seen = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(PREFACE)

    def data_received(self, data: bytes) -> None:
        self._seen += data
        if not PREFACE.startswith(self._seen):
            self._learn(False)
        elif self._seen == PREFACE:
            self._learn(True)

    def connection_lost(self, error: Exception | None) -> None:
        self._learn(False)

    def _learn(self, understood: bool) -> None:
        if not self.understood.done():
            self.understood.set_result(understood)


class Connection(FramedConnection):
    """Many exchanges with one replica. It connects in the background."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__()
        self.lost = False
        self._name = f"{host}:{port}"
        self._replies: dict[int, Reply] = {}
        self._asked = 0
        self._retired = False
        self._connecting = asyncio.create_task(self._connect(host, port))

    async def ask(self, method: str, path: str, headers: Headers, body: bytes) -> Reply:
        """Return when the head of the request's answer is here. Raises `ReplicaLostError`."""
        return await self._exchange(ASK, pack((method, path, list(headers), len(body))), body)

    async def call(self, call: Call, body: bytes) -> Reply:
        """As `ask`, for a task of the model."""
        return await self._exchange(CALL, pack(call), body)

    async def _exchange(self, kind: int, head: bytes, body: bytes) -> Reply:
        self._asked = number = self._asked + 1
        reply = self._replies[number] = Reply(self, number)
        try:
            self.put(number, kind, head)
            for at in range(0, len(body), PIECE):
                await self.writable.wait()
                self.put(number, BODY, body[at : at + PIECE])
            await reply.begun()
        except BaseException:
            reply.close()
            raise
        return reply

    def leave(self, number: int, *, early: bool) -> None:
        """End an exchange; `early` aborts it on the replica."""
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
                transport, greeting = await loop.create_connection(_Greeting, host, port)
                try:
                    understood = await greeting.understood
                except BaseException:
                    transport.abort()
                    raise
        except (OSError, TimeoutError) as error:
            self._lose(error, f"{self._name} cannot be reached: {error}")
            return
        if not understood:
            transport.abort()
            why = f"{self._name} does not answer as a replica of this version"
            _log.warning("%s: run the same version of Penstock on both sides", why)
            self._lose(None, why)
            return
        transport.set_protocol(self)
        self.connection_made(transport)
        if transport.is_closing():
            self._lose(None, f"the connection to {self._name} broke")

    def _lose(self, error: Exception | None, why: str) -> None:
        super().connection_lost(error)
        self.lost = True
        for reply in self._replies.values():
            reply.lose(why)

    # For the event loop
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
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
