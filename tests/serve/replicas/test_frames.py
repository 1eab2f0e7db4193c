"""Both sides of the way to replicas, on one event loop, with applications that say what a test
wants them to.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from penstock.errors import ReplicaLostError
from penstock.serve.config.settings import Limits
from penstock.serve.replicas import client as wire, frames as wire_frames, server as wire_server
from penstock.serve.replicas.client import Address, Reply
from penstock.serve.replicas.frames import ASK, BODY, FRAME, PART, PREFACE, TAKEN, FramedConnection
from penstock.serve.replicas.messages import pack
from penstock.serve.replicas.server import WireOrHttp
from replica_cluster import until

_REQUEST = pack(("GET", "/", [], 1))
ASKED = FRAME.pack(len(_REQUEST), 1, ASK) + _REQUEST


class Served:
    """An application on a port of its own, and the way to it."""

    def __init__(self, listening: asyncio.Server, state: ServerState) -> None:
        self.state = state
        self.port = int(listening.sockets[0].getsockname()[1])
        self.address = Address("127.0.0.1", self.port)

    async def ask(self, path: str = "/", body: bytes = b"", headers: wire.Headers = ()) -> Reply:
        return await self.address.connected().ask("POST", path, headers, body)

    async def closed(self) -> None:
        await until(lambda: not self.state.connections)


@asynccontextmanager
async def served(app: ASGIApp) -> AsyncGenerator[Served, None]:
    config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False, ws="none")
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(
        lambda: WireOrHttp(config, state, {}, limits=Limits()), "127.0.0.1", 0
    )
    one = Served(listening, state)
    try:
        yield one
    finally:
        one.address.close()
        listening.close()
        for connection in list(state.connections):
            connection.transport.abort()
        await one.closed()
        await asyncio.gather(*state.tasks)


async def read_body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message["body"]
        more = message["more_body"]
    return body


async def begin(send: Send, status: int = 200, **headers: str) -> None:
    told = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": told})


async def give(send: Send, body: bytes, *, more: bool = False) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = await read_body(receive)
    await begin(send, 201, content_type="text/plain", content_length=str(len(body)))
    await give(send, body)


def whole_after(go_on: asyncio.Event) -> ASGIApp:
    """An application whose answer has begun, and is given when it may go on."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await begin(send)
        await go_on.wait()
        await give(send, b"whole")

    return app


async def parts_of(reply: Reply) -> list[bytes]:
    parts = []
    while part := await reply.read():
        parts.append(part)
    return parts


class TestExchanges:
    async def test_the_application_sees_a_request(self) -> None:
        seen: list[Scope] = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            seen.append(scope)
            await echo(scope, receive, send)

        async with served(app) as one, asyncio.timeout(10):
            reply = await one.ask(
                "/v1/x?a=b", b"hello", [("authorization", "Bearer k"), ("x-y", "é")]
            )
            assert (reply.status, reply.header("content-type")) == (201, "text/plain")
            assert await reply.body() == b"hello"
            assert reply.done
        (scope,) = seen
        assert (scope["method"], scope["path"], scope["query_string"]) == ("POST", "/v1/x", b"a=b")
        assert dict(scope["headers"]) == {
            b"authorization": b"Bearer k",
            b"x-y": "é".encode("latin-1"),
            b"content-length": b"5",
        }

    async def test_http_is_spoken_on_the_same_port(self) -> None:
        async with served(echo) as one, httpx.AsyncClient() as client:
            answers = [
                await client.post(f"http://127.0.0.1:{one.port}/", content=b"hello")
                for _ in range(2)
            ]
            assert [(answer.status_code, answer.text) for answer in answers] == [(201, "hello")] * 2
            assert await (await one.ask(body=b"both")).body() == b"both"

    async def test_a_preface_may_come_in_pieces(self) -> None:
        async with served(echo) as one, asyncio.timeout(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
            payload = pack(("POST", "/", [], 0))
            writer.write(PREFACE[:4])
            await until(
                lambda: any(
                    getattr(connection, "_seen", b"") == PREFACE[:4]
                    for connection in one.state.connections
                )
            )
            writer.write(PREFACE[4:] + FRAME.pack(len(payload), 7, ASK) + payload)
            assert await reader.readexactly(len(PREFACE)) == PREFACE
            _, number, kind = FRAME.unpack(await reader.readexactly(FRAME.size))
            assert (number, kind) == (7, wire_frames.HEAD)
            writer.close()
            await writer.wait_closed()

    async def test_many_share_a_connection(self) -> None:
        waiting = 0
        all_there = asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            nonlocal waiting
            waiting += 1
            if waiting == 100:
                all_there.set()
            await all_there.wait()
            await echo(scope, receive, send)

        async with served(app) as one, asyncio.timeout(10):
            replies = await asyncio.gather(
                *(one.ask(body=str(number).encode()) for number in range(100))
            )
            assert len(one.state.connections) == 1
            assert [await reply.body() for reply in replies] == [
                str(number).encode() for number in range(100)
            ]

    async def test_a_long_body_goes_in_pieces_and_comes_back_in_pieces(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module in (wire, wire_server):
            monkeypatch.setattr(module, "PIECE", 1000)
        body = bytes(range(256)) * 50
        async with served(echo) as one, asyncio.timeout(10):
            reply = await one.ask(body=body)
            assert await reply.body() == body

    async def test_the_parts_of_a_stream_are_not_cut(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(wire_server, "PIECE", 10)
        go_on = asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await begin(send)
            await give(send, b"a" * 100, more=True)
            await go_on.wait()
            await give(send, b"b" * 100)

        async with served(app) as one, asyncio.timeout(10):
            reply = await one.ask()
            first = await reply.read()
            go_on.set()
            assert [first, *await parts_of(reply)] == [b"a" * 100, b"b" * 100]

    async def test_a_request_that_is_refused_unread_harms_no_other(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(wire, "PIECE", 1000)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["path"] == "/refused":
                await begin(send, 413)
                await give(send, b"too much")
            else:
                await echo(scope, receive, send)

        async with served(app) as one, asyncio.timeout(10):
            refused, good = await asyncio.gather(
                one.ask("/refused", b"x" * 100_000), one.ask("/", b"y" * 5000)
            )
            assert (refused.status, await refused.body()) == (413, b"too much")
            assert await good.body() == b"y" * 5000

    async def test_data_that_was_read_may_be_read_again(self) -> None:
        async with served(echo) as one, asyncio.timeout(10):
            reply = await one.ask(body=b"hello")
            reply.unread(await reply.body())
            assert not reply.done
            assert await reply.body() == b"hello"


class TestLeaving:
    async def test_the_replica_learns_that_nobody_waits(self) -> None:
        left = asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await read_body(receive)
            await begin(send)
            await give(send, b"some", more=True)
            assert (await receive())["type"] == "http.disconnect"
            await give(send, b"to nobody", more=True)
            left.set()

        async with served(app) as one, asyncio.timeout(10):
            with closing(await one.ask()) as reply:
                assert await reply.read() == b"some"
            await left.wait()

    async def test_so_it_does_before_there_is_an_answer(self) -> None:
        asked, left = asyncio.Event(), asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await read_body(receive)
            asked.set()
            assert (await receive())["type"] == "http.disconnect"
            left.set()

        async with served(app) as one, asyncio.timeout(10):
            asking = asyncio.create_task(one.ask())
            await asked.wait()
            asking.cancel()
            await left.wait()

    async def test_a_closed_address_ends_its_answers_first(self) -> None:
        go_on = asyncio.Event()
        async with served(whole_after(go_on)) as one, asyncio.timeout(10):
            with closing(await one.ask()) as reply:
                one.address.close()
                go_on.set()
                assert await reply.body() == b"whole"
            await one.closed()
            assert await (await one.ask()).body() == b"whole"  # on a new connection

    async def test_a_server_that_goes_ends_its_answers_first(self) -> None:
        go_on = asyncio.Event()
        async with served(whole_after(go_on)) as one, asyncio.timeout(10):
            # Has not said what it speaks.
            _, silent = await asyncio.open_connection("127.0.0.1", one.port)
            reply = await one.ask()
            await until(lambda: len(one.state.connections) == 2)
            for connection in list(one.state.connections):
                connection.shutdown()
            go_on.set()
            assert await reply.body() == b"whole"
            await one.closed()
            silent.close()
            await silent.wait_closed()


class TestLosing:
    async def test_an_answer_that_breaks_off_says_so_after_its_whole_parts(self) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["path"] == "/breaks":
                await begin(send)
                await give(send, b"some", more=True)
                raise RuntimeError("the application fails")
            await echo(scope, receive, send)

        async with served(app) as one, asyncio.timeout(10):
            good, breaks = await asyncio.gather(one.ask(body=b"hello"), one.ask("/breaks"))
            assert await breaks.read() == b"some"
            with pytest.raises(ReplicaLostError):
                await breaks.read()
            assert await good.body() == b"hello"

    async def test_all_that_is_under_way_is_lost_with_the_connection(self) -> None:
        asked = asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["path"] == "/echo":
                await echo(scope, receive, send)
                return
            if scope["path"] == "/begun":
                await begin(send)
                await give(send, b"some", more=True)
            else:
                await read_body(receive)
                asked.set()
            while (await receive())["type"] != "http.disconnect":
                pass

        async with served(app) as one, asyncio.timeout(10):
            begun = await one.ask("/begun")
            waits = asyncio.create_task(one.ask("/waits"))
            await asked.wait()
            (connection,) = one.state.connections
            connection.transport.abort()
            with pytest.raises(ReplicaLostError, match="broke"):
                await waits
            assert await begun.read() == b"some"
            with pytest.raises(ReplicaLostError):
                await begun.read()
            # On a new connection.
            assert await (await one.ask("/echo", b"again")).body() == b"again"

    async def test_nobody_there(self) -> None:
        async with served(echo) as one:
            pass
        asking = [one.ask(body=b"x") for _ in range(3)]
        for lost in await asyncio.gather(*asking, return_exceptions=True):
            assert isinstance(lost, ReplicaLostError)
            assert "cannot be reached" in str(lost)

    async def test_a_server_of_something_else_is_a_lost_replica(self) -> None:
        async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
            await writer.drain()
            writer.close()

        listening = await asyncio.start_server(refuse, "127.0.0.1", 0)
        address = Address("127.0.0.1", listening.sockets[0].getsockname()[1])
        async with asyncio.timeout(10):
            with pytest.raises(ReplicaLostError):
                await address.connected().ask("POST", "/", [], b"")
        listening.close()

    @pytest.mark.parametrize(
        "frames",
        [
            FRAME.pack(1 << 31, 1, ASK),
            FRAME.pack(3, 1, ASK) + b"\xc1\xc1\xc1",
            ASKED + FRAME.pack(2, 1, BODY) + b"xx",
            ASKED + FRAME.pack(0, 1, PART),
            ASKED + FRAME.pack(1, 1, TAKEN) + b"x",
            ASKED + ASKED,
        ],
        ids=[
            "too long",
            "no request",
            "more than was told",
            "of the wrong side",
            "no number",
            "the same number",
        ],
    )
    async def test_who_speaks_otherwise_is_cut_off(self, frames: bytes) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        async with served(app) as one, asyncio.timeout(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
            writer.write(PREFACE + frames)
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() in (PREFACE, b"")
            await one.closed()
            writer.close()
            with contextlib.suppress(ConnectionResetError):
                await writer.wait_closed()

    async def test_the_kernel_watches_who_is_waited_for(self) -> None:
        async with served(echo) as one, asyncio.timeout(10):
            reply = await one.ask()
            connection = reply._connection.transport.get_extra_info("socket")
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert (
                connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
                == wire.KEEPALIVE[socket.TCP_KEEPIDLE]
            )


class TestSlowReaders:
    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (wire, wire_server):
            monkeypatch.setattr(module, "WINDOW", 1000)

    async def test_one_that_does_not_read_holds_up_its_own_answer_alone(self) -> None:
        sent = 0

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            nonlocal sent
            await begin(send)
            if scope["path"] == "/much":
                for _ in range(200):
                    await give(send, b"x" * 100, more=True)
                    sent += 100
            else:
                for _ in range(50):
                    await give(send, b"y" * 100, more=True)
            await give(send, b"")

        async with served(app) as one, asyncio.timeout(10):
            slow = await one.ask("/much")
            for _ in range(5):
                assert len(await (await one.ask("/other")).body()) == 5000
            assert sent == 1000
            assert sum(map(len, await parts_of(slow))) == 20_000

    async def test_one_that_leaves_frees_its_answer(self) -> None:
        ended = asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await begin(send)
            for _ in range(20):
                await give(send, b"x" * 100, more=True)
            ended.set()

        async with served(app) as one, asyncio.timeout(10):
            reply = await one.ask()
            await reply.read()
            reply.close()
            await ended.wait()

    async def test_an_ingress_that_reads_nothing_stops_the_application(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(wire_server, "WINDOW", 1 << 40)
        sent = 0

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            nonlocal sent
            await begin(send)
            for _ in range(2000):
                await give(send, b"x" * 50_000, more=True)
                sent += 50_000
                await asyncio.sleep(0)
            await give(send, b"")

        async with served(app) as one, asyncio.timeout(30):
            reply = await one.ask()
            reply._connection.transport.pause_reading()
            connection: Any = next(iter(one.state.connections))
            await until(lambda: not connection.writable.is_set())
            held = sent
            for _ in range(100):
                await asyncio.sleep(0)
            assert sent <= held + 50_000
            reply._connection.transport.resume_reading()
            assert sum(map(len, await parts_of(reply))) == 100_000_000


class Recorded(FramedConnection):
    """Keeps what comes and what it writes."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[tuple[int, int, bytes]] = []
        self.writes: list[bytes] = []

    def received(self, number: int, kind: int, payload: bytes) -> None:
        self.frames.append((number, kind, payload))

    def write(self, data: bytes) -> None:
        self.writes.append(data)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 12, 13, 14, 50, 1000])
def test_frames_come_whole_however_the_bytes_are_cut(size: int) -> None:
    frames = [
        (1, PART, b"hello"),
        (2, PART, b""),
        (1 << 40, PART, b"x" * 100),
        (3, BODY, b"\0" * 13),
    ]
    data = b"".join(
        FRAME.pack(len(payload), number, kind) + payload for number, kind, payload in frames
    )
    one = Recorded()
    for at in range(0, len(data), size):
        one.data_received(data[at : at + size])
    assert one.frames == frames


async def test_what_is_put_in_one_turn_is_one_write() -> None:
    one: Any = Recorded()
    one.put(1, PART, b"before it stands")
    one.connection_made(one)
    await asyncio.sleep(0)
    for number in range(64):
        one.put(number, PART, b"token")
    assert len(one.writes) == 1
    await asyncio.sleep(0)
    assert len(one.writes) == 2
    assert one.writes[1].count(b"token") == 64
