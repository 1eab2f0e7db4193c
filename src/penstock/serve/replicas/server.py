"""The replica's side of the connections from its ingresses: runs an ASGI application under the
protocol of `frames`.

A call is a scope of the type "penstock.call" with a `messages.Call` as `call`. It is answered as
HTTP is. Its task is cancelled when nobody waits for the answer any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import uvicorn
from starlette.types import ASGIApp, Message, Scope
from uvicorn.server import ServerState

from penstock.serve.config.settings import Limits
from penstock.serve.http_server import HttpConnection
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

_log = logging.getLogger("penstock.serve")
_unpack_ask = msgspec.msgpack.Decoder(tuple[str, str, list[tuple[str, str]], int]).decode
_unpack_call = msgspec.msgpack.Decoder(Call).decode


class WireOrHttp(asyncio.Protocol):
    """A new connection to a replica: HTTP, unless it begins with the preface. One that begins with
    neither within `limits.head_timeout_s` is closed.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: Limits,
    ) -> None:
        self._config = config
        self._state = server_state
        self._http = partial(HttpConnection, config, server_state, app_state, _loop, limits=limits)
        self._head_timeout_s = limits.head_timeout_s
        self._seen = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self._timer = asyncio.get_running_loop().call_later(self._head_timeout_s, transport.close)
        # It is shut down as the others are.
        self._state.connections.add(self)  # type: ignore[arg-type]

    def connection_lost(self, error: Exception | None) -> None:
        self._timer.cancel()
        self._state.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """Hand the connection over to the protocol of its first bytes."""
        seen = self._seen = self._seen + data
        framed = seen.startswith(PREFACE)
        if not framed and PREFACE.startswith(seen):
            return
        self._timer.cancel()
        self._state.connections.discard(self)
        successor: Any
        if framed:
            self.transport.write(PREFACE)
            successor, seen = WireServer(self._config.loaded_app, self._state), seen[len(PREFACE) :]
        else:
            successor = self._http()
        self.transport.set_protocol(successor)
        successor.connection_made(self.transport)
        if seen:
            successor.data_received(seen)

    def shutdown(self) -> None:
        self.transport.close()


class WireServer(FramedConnection):
    """All exchanges with one ingress. `state` is uvicorn's list of what a shutdown waits for."""

    longest = 1 << 24  # who has shown no key yet can make it hold this much

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        super().__init__()
        self._app = app
        self._state = state
        self._asked: dict[int, _Asked] = {}
        self._closing = False

    @property
    def busy(self) -> bool:
        """Whether exchanges are under way."""
        return bool(self._asked)

    def shutdown(self) -> None:
        """Close after the answers that are under way."""
        self._closing = True
        self._close_if_unused()

    def received(self, number: int, kind: int, payload: bytes) -> None:
        if kind == ASK:
            scope, length = self._http_scope(*_unpack_ask(payload))
            self._begin(number, scope, length)
        elif kind == CALL:
            call = _unpack_call(payload)
            self._begin(number, {"type": "penstock.call", "call": call}, call.length)
        elif (asked := self._asked.get(number)) is None:
            return
        elif kind == BODY:
            asked.add(payload)
        elif kind == TAKEN:
            asked.taken(COUNT.unpack(payload)[0])
        elif kind == LEAVE:
            asked.leave()
        else:
            raise ValueError(kind)

    def _begin(self, number: int, scope: Scope, length: int) -> None:
        if number in self._asked:
            raise ValueError(number)
        asked = self._asked[number] = _Asked(self, number, length)
        answer: Any = self._app(scope, asked.receive, asked.send)
        task = asyncio.create_task(answer)
        if scope["type"] == "penstock.call":
            asked.on_leave = task.cancel
        self._state.tasks.add(task)
        task.add_done_callback(partial(self._answered, asked, number))

    def _answered(self, asked: _Asked, number: int, task: asyncio.Task[None]) -> None:
        self._state.tasks.discard(task)
        # The application has logged the cause.
        if not task.cancelled() and (error := task.exception()):
            _log.debug("an answer was broken off", exc_info=error)
        if not asked.over:
            self.put(number, BROKEN)
        del self._asked[number]
        self._close_if_unused()

    def _http_scope(
        self, method: str, target: str, headers: list[tuple[str, str]], length: int
    ) -> tuple[Scope, int]:
        path, _, query = target.partition("?")
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "scheme": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [
                *((name.encode("latin-1"), value.encode("latin-1")) for name, value in headers),
                (b"content-length", str(length).encode()),
            ],
            "client": self.transport.get_extra_info("peername"),
            "server": self.transport.get_extra_info("sockname"),
        }
        return scope, length

    def _close_if_unused(self) -> None:
        if self._closing and self.open and not self._asked:
            self.flush()
            self.transport.close()

    # For the event loop
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._state.connections.add(self)  # type: ignore[arg-type]

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._state.connections.discard(self)
        for asked in self._asked.values():
            asked.leave()


class _Asked:
    """One exchange, as its application sees it."""

    def __init__(self, connection: WireServer, number: int, length: int) -> None:
        self.over = False  # answered, or left
        self.on_leave: Callable[[], object] = lambda: None
        self._connection = connection
        self._number = number
        self._to_come = length
        self._body: list[bytes] = []
        self._read = False
        self._known_length = False
        self._credit = WINDOW
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    async def receive(self) -> Message:
        """The body; after it, that the ingress has left, or has all that it wanted."""
        while not self.over:
            if self._body or not (self._read or self._to_come):
                body, self._body = b"".join(self._body), []
                self._read = not self._to_come
                return {"type": "http.request", "body": body, "more_body": not self._read}
            self._news.clear()
            await self._news.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """The head, then the body's parts."""
        if self.over:
            return
        if message["type"] == "http.response.start":
            headers = message.get("headers", ())
            self._known_length = any(name == b"content-length" for name, _ in headers)
            decoded = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
            self._connection.put(self._number, HEAD, pack((message["status"], decoded)))
            return
        body = message.get("body", b"")
        # A stream's part is whole events, and stays in one piece.
        size = PIECE if self._known_length else len(body)
        for at in range(0, len(body), size or 1):
            part = body[at : at + size]
            while self._credit <= 0 or not self._connection.writable.is_set():
                await self._room_for_more()
                if self.over:
                    return
            self._credit -= len(part)
            self._connection.put(self._number, PART, part)
        if not message.get("more_body", False) and not self.over:
            self._connection.put(self._number, END)
            self._end()

    async def _room_for_more(self) -> None:
        if self._credit <= 0:
            self._room.clear()
            await self._room.wait()
        else:
            await self._connection.writable.wait()

    # For the connection
    def add(self, piece: bytes) -> None:
        """More of the request's body has come."""
        if len(piece) > self._to_come:
            raise ValueError(len(piece))
        self._to_come -= len(piece)
        self._body.append(piece)
        self._news.set()

    def taken(self, size: int) -> None:
        """The ingress has passed this many bytes on."""
        self._credit += size
        self._room.set()

    def leave(self) -> None:
        """The ingress waits for the answer no more."""
        if not self.over:
            self._end()
            self.on_leave()

    def _end(self) -> None:
        self.over = True
        self._news.set()
        self._room.set()
