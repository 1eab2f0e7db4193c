"""The connection to replicas, against a server that says exactly what a test wants it to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from penstock.errors import ReplicaLostError
from penstock.serve import wire
from penstock.serve.wire import Address

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"


@asynccontextmanager
async def server(answer: Answer) -> AsyncGenerator[tuple[Address, list[bytes]], None]:
    """Reads a request's head and body, lets `answer` write; gives its address and the heads it has read."""
    heads: list[bytes] = []
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                heads.append(head)
                length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(length)
                await answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            serving.discard(task)
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    address = Address("127.0.0.1", port)
    try:
        yield address, heads
    finally:
        address.close()
        listening.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving)


async def chunked(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n")


async def test_a_chunked_body() -> None:
    async with server(chunked) as (address, heads):
        reply = await address.request("POST", "/x", [("a", "b")], b"body")
        assert (reply.status, reply.header("content-type")) == (200, "text/plain")
        assert await reply.body() == b"hello world"
        assert reply.done
        assert heads[0].startswith(b"POST /x HTTP/1.1\r\n")
        assert b"\r\na: b\r\n" in heads[0]


async def test_a_body_of_known_length_in_pieces() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 10\r\n\r\n01234")
        await writer.drain()
        writer.write(b"56789")

    async with server(answer) as (address, _):
        reply = await address.request("POST", "/", [], b"")
        assert reply.status == 404
        assert await reply.body() == b"0123456789"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
async def test_chunks_come_whole_however_the_bytes_are_cut(size: int) -> None:
    message = HEAD + b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n"

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for at in range(0, len(message), size):
            writer.write(message[at : at + size])
            await writer.drain()
            await asyncio.sleep(0)

    async with server(answer) as (address, _):
        reply = await address.request("POST", "/", [], b"")
        parts = []
        while part := await reply.read():
            parts.append(part)
        assert b"".join(parts) == b"hello world"
        assert set(parts) <= {b"hello", b" world", b"hello world"}


async def test_a_connection_is_used_again_only_after_an_answer_that_was_read() -> None:
    clients = []

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clients.append(writer.get_extra_info("peername"))
        writer.write(HEAD + b"5\r\nhello\r\n")
        if len(clients) != 3:
            writer.write(b"0\r\n\r\n")

    async with server(answer) as (address, _):
        for number in range(4):
            reply = await address.request("POST", "/", [], b"")
            if number == 2:
                assert await reply.read() == b"hello"
            else:
                assert await reply.body() == b"hello"
            reply.close()
    assert clients[0] == clients[1] == clients[2] != clients[3]


async def test_a_kept_connection_that_was_closed_is_replaced() -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await chunked(reader, writer)
        writer.close()

    async with server(once) as (address, heads):
        for _ in range(3):
            reply = await address.request("POST", "/", [], b"")
            assert await reply.body() == b"hello world"
            reply.close()
        assert len(heads) == 3


async def test_an_answer_that_breaks_off_says_so_after_its_whole_chunks() -> None:
    async def breaks(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"5\r\nhello\r\n6\r\n wo")
        await writer.drain()
        writer.close()

    async with server(breaks) as (address, _):
        reply = await address.request("POST", "/", [], b"")
        assert await reply.read() == b"hello"
        with pytest.raises(ReplicaLostError):
            await reply.read()


async def test_nobody_there() -> None:
    async with server(chunked) as (address, _):
        pass
    with pytest.raises(ReplicaLostError, match="cannot be reached"):
        await Address("127.0.0.1", address.port).request("POST", "/", [], b"")


async def test_what_is_no_http_is_a_lost_replica() -> None:
    async def talks_otherwise(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail\r\n\r\n")

    async with server(talks_otherwise) as (address, _):
        with pytest.raises(ReplicaLostError, match="no HTTP"):
            await address.request("POST", "/", [], b"")


async def test_a_slow_reader_slows_the_replica_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MOST_HELD", 1000)
    chunk = b"64\r\n" + b"x" * 100 + b"\r\n"

    async def much(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        for _number in range(200):
            writer.write(chunk)
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    async with server(much) as (address, _):
        reply = await address.request("POST", "/", [], b"")
        total = 0
        while part := await reply.read():
            total += len(part)
        assert total == 20_000


async def test_the_kernel_watches_who_is_waited_for() -> None:
    async with server(chunked) as (address, _):
        reply = await address.request("POST", "/", [], b"")
        connection = reply._connection._transport.get_extra_info("socket")
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == wire.KEEPALIVE[socket.TCP_KEEPIDLE]
        await reply.body()
        reply.close()
