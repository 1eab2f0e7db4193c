"""Proxies of the environment, against a proxy on loopback."""

import asyncio
import base64
from urllib.error import URLError

import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer, unused_port

from penstock.balance.limiter import Limiter, Limits
from penstock.errors import ConfigError, UpstreamError
from penstock.http.client import HttpClient
from penstock.http.endpoint import Headers, endpoint, proxy_for
from penstock.http.standard import opened

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Sets variables; no others are there."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return monkeypatch.setenv


@pytest.mark.parametrize(
    ("given", "address", "proxy"),
    [
        ({}, ("https", "a.example", 443), None),
        ({"HTTPS_PROXY": "http://p:1"}, ("https", "a.example", 443), "http://p:1"),
        ({"https_proxy": "http://p:1"}, ("https", "a.example", 443), "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1"}, ("http", "a.example", 80), None),
        ({"HTTP_PROXY": "p:1"}, ("http", "a.example", 80), "http://p:1"),
        ({"ALL_PROXY": "http://p:1"}, ("https", "a.example", 443), "http://p:1"),
        (
            {"ALL_PROXY": "http://p:1", "HTTPS_PROXY": "http://q:2"},
            ("https", "a.example", 443),
            "http://q:2",
        ),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "a.example"}, ("https", "a.example", 443), None),
        (
            {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "b.example,.example"},
            ("https", "a.example", 443),
            None,
        ),
        (
            {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "a.example:8443"},
            ("https", "a.example", 443),
            "http://p:1",
        ),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, ("https", "a.example", 443), None),
        ({"HTTP_PROXY": "http://p:1"}, ("http", "127.0.0.1", 8000), None),
        ({"HTTP_PROXY": "http://p:1"}, ("http", "localhost", 8000), None),
        ({"HTTP_PROXY": "http://p:1"}, ("http", "::1", 8000), None),
        ({"HTTP_PROXY": "http://p:1"}, ("http", "10.0.0.1", 8000), "http://p:1"),
        ({"HTTP_PROXY": ""}, ("http", "a.example", 80), None),
    ],
)
def test_which_proxy_an_address_has(environment, given, address, proxy):
    for name, value in given.items():
        environment(name, value)
    assert proxy_for(*address) == proxy


@pytest.mark.parametrize("wrong", ["socks5://user:secret@p:1", "https://p:1", "http://"])
def test_a_proxy_that_cannot_be_used_is_named_with_its_variable(environment, wrong):
    environment("HTTPS_PROXY", wrong)
    with pytest.raises(ConfigError, match="HTTPS_PROXY: must be an http:// URL") as caught:
        endpoint("POST", "https://a.example/v1")
    assert "secret" not in f"{caught.value} {caught.value.value}"


async def ask(url):
    client = HttpClient(Headers({"Authorization": "Bearer sk-1234567"}))
    await client.open()
    try:
        return await client.send(endpoint("POST", url), Limiter(Limits(concurrency=1)), data=b"{}")
    finally:
        await client.close()


async def test_a_request_goes_through_its_proxy(environment):
    seen = []

    async def proxy(request):
        seen.append(
            (str(request.url), request.headers["Host"], request.headers.get("Proxy-Authorization"))
        )
        return web.json_response({"ok": True})

    async with RawTestServer(proxy) as server:
        environment("HTTP_PROXY", f"http://user:word@127.0.0.1:{server.port}")
        reply = await ask("http://model.example/v1/x")
    assert (reply.status, reply.body) == (200, b'{"ok": true}')
    credentials = base64.b64encode(b"user:word").decode()
    assert seen == [("http://model.example/v1/x", "model.example", f"Basic {credentials}")]


async def test_https_is_tunnelled_and_what_the_proxy_says_is_told(environment):
    seen = []

    async def refuse(reader, writer):
        seen.append(await reader.readuntil(b"\r\n"))
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        environment("HTTPS_PROXY", f"http://user:word@127.0.0.1:{port}")
        with pytest.raises(UpstreamError, match="its proxy answered 407") as caught:
            await ask("https://model.example/v1/x")
    assert seen == [b"CONNECT model.example:443 HTTP/1.1\r\n"]
    assert not caught.value.retryable
    assert "word" not in str(caught.value)


async def test_a_proxy_that_is_not_there_is_not_the_server(environment):
    environment("HTTP_PROXY", f"127.0.0.1:{unused_port()}")
    with pytest.raises(
        UpstreamError, match=r"http://model\.example/v1: its proxy cannot be reached"
    ) as caught:
        await ask("http://model.example/v1")
    assert caught.value.retryable


async def test_a_session_of_ones_own_chooses_for_itself(environment):
    environment("HTTP_PROXY", "http://127.0.0.1:9")
    asked = []

    class Session:
        def request(self, method, url, **options):
            asked.append(options)
            raise ValueError("enough")

        async def close(self): ...

    client = HttpClient(Headers({}), session_factory=Session)  # type: ignore[arg-type]
    await client.open()
    with pytest.raises(UpstreamError):
        await client.send(
            endpoint("POST", "http://a.example"), Limiter(Limits(concurrency=1)), data=b"{}"
        )
    await client.close()
    assert "proxy" not in asked[0]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_the_standard_library_reaches_this_machine_without_a_proxy(environment, host):
    async def answer(request):
        return web.json_response({"ok": True})

    environment("http_proxy", f"http://127.0.0.1:{unused_port()}")
    async with RawTestServer(answer) as server:
        url = f"http://{host}:{server.port}/x"
        with await asyncio.to_thread(opened, url, 5.0) as reply:
            assert reply.read() == b'{"ok": true}'
    with pytest.raises(URLError):
        await asyncio.to_thread(opened, "http://model.example/x", 5.0)
