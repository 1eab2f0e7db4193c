"""The client against a real server on loopback that misbehaves."""

import asyncio
import errno
import gzip
import json
import os
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from penstock.balance.limiter import Limiter, Limits
from penstock.errors import ConfigError, EngineDeadError, EngineTimeoutError, UpstreamError
from penstock.http.client import HttpClient, Timeouts, multipart
from penstock.http.endpoint import Headers, endpoint

KEY = "sk-very-secret-1234"


@asynccontextmanager
async def asking(handler, **options):
    """A client and the address of a server whose every request `handler` answers."""
    app = web.Application(client_max_size=4 << 20)
    app.router.add_route("*", "/{path:.*}", handler)
    async with TestServer(app) as server:
        client = HttpClient(Headers({"Authorization": f"Bearer {KEY}"}), **options)
        await client.open()
        try:
            yield client, endpoint("POST", str(server.make_url("/v1/x?secret=1")))
        finally:
            await client.close()


def limiter(**limits):
    return Limiter(Limits(**{"concurrency": 4, **limits}))


async def test_an_answer_is_read_and_the_request_is_what_was_asked():
    async def echo(request):
        assert request.headers["Authorization"] == f"Bearer {KEY}"
        assert request.headers["X-More"] == "1"
        assert request.query_string == "secret=1"
        return web.Response(body=await request.read(), headers={"X-Said": request.method})

    async with asking(echo) as (client, to):
        reply = await client.send(to, limiter(), data=b"{}", headers={"X-More": "1"})
    assert (reply.status, reply.headers["x-said"], reply.body) == (200, "POST", b"{}")


async def test_a_refused_request_gives_its_tokens_back():
    async def refuse(request):
        return web.Response(status=400)

    limit = limiter(tokens_per_minute=60)
    async with asking(refuse) as (client, to):
        for _ in range(3):  # the second would wait for half an hour
            with pytest.raises(UpstreamError):
                await client.send(to, limit, data=b"{}", tokens=1800)
            with pytest.raises(UpstreamError):
                async with client.stream(to, limit, data=b"{}", tokens=1800):
                    pass


async def test_a_pause_in_the_body_of_a_refusal_is_one():
    """Gemini names no other."""
    error = {"message": "slow down", "details": [{"retryDelay": "34s"}]}

    async def refuse(request):
        return web.json_response([{"error": error}], status=429)

    async with asking(refuse) as (client, to):
        with pytest.raises(UpstreamError, match="asks for a pause of 34 s") as caught:
            await client.send(to, limiter(), data=b"{}")
    assert caught.value.retry_after == 34


async def test_a_large_body_arrives_whole_and_without_a_warning():
    async def measure(request):
        assert request.content_type == "application/json"
        return web.json_response(len(await request.read()))

    async with asking(measure) as (client, to):
        for size in (1000, 2 << 20):
            assert (await client.send(to, limiter(), data=b"1" * size)).body == b"%d" % size


async def test_a_large_file_arrives_whole_and_without_a_warning():
    async def measure(request):
        return web.json_response(
            [len(await part.read()) async for part in await request.multipart()]
        )

    async with asking(measure) as (client, to):
        large = b"1" * (2 << 20)
        several = multipart({"a": large, "b": {"content": b"2"}})
        for made, sizes in ((several, [2 << 20, 1]), (multipart({"file": large}), [2 << 20])):
            assert json.loads((await client.send(to, limiter(), data=made)).body) == sizes


async def test_a_list_of_texts_is_a_field_for_each():
    async def show(request):
        return web.json_response([*(await request.post()).items()])

    async with asking(show) as (client, to):
        form = multipart({"a": "1", "b[]": ["2", "3"]})
        found = json.loads((await client.send(to, limiter(), data=form)).body)
    assert found == [["a", "1"], ["b[]", "2"], ["b[]", "3"]]


@pytest.mark.parametrize(
    ("status", "retryable"), [(400, False), (401, False), (429, True), (500, True), (501, False)]
)
async def test_refusals_carry_status_body_and_no_secret(status, retryable):
    async def refuse(request):
        body = {"error": {"message": f"wrong key {KEY}\nreally"}}
        return web.json_response(body, status=status, headers={"Retry-After": "3"})

    async with asking(refuse) as (client, to):
        with pytest.raises(UpstreamError) as caught:
            await client.send(to, limiter())
    error = caught.value
    assert (error.http_status, error.retryable, error.retry_after) == (status, retryable, 3.0)
    assert str(error).endswith(f"/v1/x answered {status}: wrong key *** really")
    assert "wrong key ***" in error.body
    assert KEY not in error.body + str(error) + repr(client)


async def test_redirects_are_not_followed():
    async def redirect(request):
        raise web.HTTPTemporaryRedirect("http://elsewhere.invalid/x?key=1")

    async with asking(redirect) as (client, to):
        with pytest.raises(
            UpstreamError, match=r"not followed; it names http://elsewhere\.invalid/x$"
        ):
            await client.send(to, limiter())


@pytest.mark.parametrize("form", ["declared", "chunked", "compressed"])
async def test_bodies_are_bounded(form):
    async def long(request):
        if form == "compressed":
            return web.Response(
                body=gzip.compress(b"0" * 100_000), headers={"Content-Encoding": "gzip"}
            )
        if form == "declared":
            return web.Response(body=b"0" * 100_000)
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(100):
            await response.write(b"0" * 1000)
        return response

    async with asking(long, max_body_bytes=10_000) as (client, to):
        with pytest.raises(UpstreamError, match="more than 10000 bytes"):
            await client.send(to, limiter())
    async with asking(long, max_body_bytes=100_000) as (client, to):
        assert len((await client.send(to, limiter())).body) == 100_000


async def test_nobody_listens():
    client = HttpClient(Headers())
    await client.open()
    try:
        with pytest.raises(
            UpstreamError, match=f"cannot be reached: {os.strerror(errno.ECONNREFUSED)}"
        ) as caught:
            await client.send(endpoint("POST", f"http://127.0.0.1:{unused_port()}/"), limiter())
    finally:
        await client.close()
    assert caught.value.retryable
    assert caught.value.http_status is None


async def test_a_server_that_hangs_is_a_timeout_and_throttles():
    forever = asyncio.Event()

    async def hang(request):
        await forever.wait()
        return web.Response()

    async with asking(hang, timeouts=Timeouts(try_s=0.05)) as (client, to):
        limit = limiter()
        with pytest.raises(EngineTimeoutError, match=r"no answer within 0\.05 s"):
            await client.send(to, limit)
        assert limit.window == 2
        forever.set()


@pytest.mark.parametrize("streamed", [False, True])
async def test_half_an_answer_is_a_lost_connection(streamed):
    async def half(request):
        response = web.StreamResponse()
        response.content_length = 100
        await response.prepare(request)
        await response.write(b"half")
        request.transport.abort()
        return response

    async with asking(half) as (client, to):
        limit = limiter()

        async def ask():
            if not streamed:
                return await client.send(to, limit)
            async with client.stream(to, limit) as pieces:
                return [piece async for piece in pieces]

        with pytest.raises(UpstreamError, match="the connection was lost") as caught:
            await ask()
        assert caught.value.retryable
        assert limit.running == 0


@pytest.mark.parametrize(
    "said", [b"lalala\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"a" * 20_000 + b"\r\n\r\n"]
)
async def test_what_is_not_http_shows_no_key_of_the_address(said):
    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = HttpClient(Headers())
        await client.open()
        with pytest.raises(UpstreamError) as caught:
            await client.send(
                endpoint("POST", f"http://127.0.0.1:{port}/x?api_key={KEY}"), limiter()
            )
        await client.close()
    assert str(caught.value).startswith(f"http://127.0.0.1:{port}/x: the answer is not HTTP: ")
    assert not caught.value.retryable
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_leaving_a_stream_ends_the_request_and_gives_the_place_back():
    gone = asyncio.Event()

    async def endless(request):
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"data: x\n\n")
                await asyncio.sleep(0)
        except (ConnectionError, asyncio.CancelledError):
            gone.set()
            raise

    async with asking(endless) as (client, to):
        limit = limiter()
        async with client.stream(to, limit) as pieces:
            assert (await anext(pieces)).startswith(b"data: x")
            assert limit.running == 1
        assert limit.running == 0
        async with asyncio.timeout(10):
            await gone.wait()


async def test_a_stream_that_is_refused_fails_like_any_request():
    async def refuse(request):
        return web.Response(status=429, text="slow down")

    async with asking(refuse) as (client, to):
        limit = limiter()
        with pytest.raises(UpstreamError, match="answered 429: slow down"):
            async with client.stream(to, limit):
                raise AssertionError("there is no stream")
        assert limit.window == 2


async def test_closing_ends_what_is_under_way():
    entered, forever = asyncio.Event(), asyncio.Event()

    async def hang(request):
        entered.set()
        await forever.wait()
        return web.Response()

    async with asking(hang) as (client, to):
        task = asyncio.create_task(client.send(to, limiter()))
        await entered.wait()
        await client.close()
        with pytest.raises(EngineDeadError):
            await task
        with pytest.raises(EngineDeadError):
            await client.send(to, limiter())
        forever.set()


@pytest.mark.parametrize("url", ["", "no", "ftp://host/", "http://", "http://host:port/"])
def test_addresses_are_checked(url):
    with pytest.raises(ConfigError, match="http://"):
        endpoint("POST", url)


def test_addresses_show_no_user_and_no_query():
    assert endpoint("post", "http://user:pass@host/a?key=1#x").shown == "http://host/a"
