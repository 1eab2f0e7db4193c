"""The replica's side of the way from its ingresses: an ASGI application under what `frames` tells
of.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec
import uvicorn
from starlette.types import ASGIApp, Message, Scope
from uvicorn.server import ServerState

from penstock.serve.config.settings import Limits
from penstock.serve.http.connection import HttpConnection
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

_log = logging.getLogger("penstock.serve")
_pack = msgspec.msgpack.Encoder().encode
_unpack_ask = msgspec.msgpack.Decoder(tuple[str, str, list[tuple[str, str]], int]).decode


class WireOrHttp(asyncio.Protocol):
    """What uvicorn makes of a connection to a replica: HTTP, unless it begins with the preface. One
    that says neither within `head_timeout_s` is closed.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        head_timeout_s: float = Limits().head_timeout_s,
    ) -> None:
        self._config, self._state, self._app_state, self._loop = (
            config,
            server_state,
            app_state,
            _loop,
        )
        self._head_timeout_s = head_timeout_s
        self._seen = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Until it has said something, nobody else knows of it."""
        self.transport: Any = transport
        self._timer = asyncio.get_running_loop().call_later(self._head_timeout_s, transport.close)
        # It is shut down as the others are.
        self._state.connections.add(self)  # type: ignore[arg-type]

    def connection_lost(self, error: Exception | None) -> None:
        """It has gone without having said enough."""
        self._timer.cancel()
        self._state.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """Hand over to who understands what comes."""
        self._seen += data
        if len(self._seen) < len(PREFACE) and PREFACE.startswith(self._seen):
            return
        self._timer.cancel()
        self._state.connections.discard(self)
        successor: Any
        if self._seen.startswith(PREFACE):
            successor, rest = (
                WireServer(self._config.loaded_app, self._state),
                self._seen[len(PREFACE) :],
            )
        else:
            successor, rest = self._http(), self._seen
        self.transport.set_protocol(successor)
        successor.connection_made(self.transport)
        if rest:
            successor.data_received(rest)

    def _http(self) -> HttpConnection:
        return HttpConnection(
            self._config,
            self._state,
            self._app_state,
            self._loop,
            head_timeout_s=self._head_timeout_s,
        )

    def shutdown(self) -> None:
        self.transport.close()


class WireServer(FramedConnection):
    """All exchanges with one ingress. `state` is uvicorn's: what it must wait for, and end, when it
    goes down.
    """

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
            self._begin(number, payload)
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

    def _begin(self, number: int, payload: bytes) -> None:
        method, target, headers, length = _unpack_ask(payload)
        if number in self._asked:
            raise ValueError(number)
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
                (name.encode("latin-1"), value.encode("latin-1")) for name, value in headers
            ],
            "client": self.transport.get_extra_info("peername"),
            "server": self.transport.get_extra_info("sockname"),
        }
        scope["headers"].append((b"content-length", str(length).encode()))
        asked = self._asked[number] = _Asked(self, number, length)
        task = asyncio.create_task(self._answer(asked, number, scope))
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)

    async def _answer(self, asked: _Asked, number: int, scope: Scope) -> None:
        try:
            await self._app(scope, asked.receive, asked.send)
        except Exception as error:  # the application has told its log why, if it meant it
            _log.debug("an answer was broken off", exc_info=error)
        finally:
            if not asked.over:
                self.put(number, BROKEN)
            del self._asked[number]
            self._close_if_unused()

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
            told = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
            self._connection.put(self._number, HEAD, _pack((message["status"], told)))
            return
        body = message.get("body", b"")
        # A stream's part is whole events, and stays in one piece.
        if self._known_length and len(body) > PIECE:
            for at in range(0, len(body), PIECE):
                await self._give(body[at : at + PIECE])
        elif body:
            await self._give(body)
        if not message.get("more_body", False) and not self.over:
            self._connection.put(self._number, END)
            self._end()

    async def _give(self, part: bytes) -> None:
        while not self.over and (self._credit <= 0 or not self._connection.writable):
            if self._credit <= 0:
                self._room.clear()
                await self._room.wait()
            else:
                await self._connection.until_writable()
        if not self.over:
            self._credit -= len(part)
            self._connection.put(self._number, PART, part)

    # For the connection
    def add(self, piece: bytes) -> None:
        """More of the request's body has come."""
        if len(piece) > self._to_come:
            raise ValueError(len(piece))
        self._to_come -= len(piece)
        self._body.append(piece)
        self._news.set()

    def taken(self, size: int) -> None:
        """The ingress has passed so much on."""
        self._credit += size
        self._room.set()

    def leave(self) -> None:
        """Nobody waits for the answer any more."""
        self._end()

    def _end(self) -> None:
        self.over = True
        self._news.set()
        self._room.set()
