"""Heads of requests, with the parser that is there: h11, or httptools beside vLLM."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable
from typing import Any

import pytest
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from penstock.engines.simulated.engine import SimulatedEngine
from penstock.serve.config.settings import Limits

BODY = json.dumps({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}).encode()
HEALTH = b"GET /health HTTP/1.1\r\nhost: localhost\r\n"
ASK = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
ENDED = b"connection: close\r\n\r\n"
OFFER = {
    "Connection": "Upgrade, HTTP2-Settings",
    "Upgrade": "h2c",
    "HTTP2-Settings": "AAMAAABkAAQAoAAAAAIAAAAA",
    "content-type": "application/json",
}
"""What Java's HTTP client and `curl --http2` send with each request."""


@pytest.fixture
def connect(running: Callable[..., str], served: Any, handle: Any) -> Callable[[], socket.socket]:
    """A connection to a served model; it has a minute for the head of a request."""
    limits = Limits(head_timeout_s=60)
    url = running(lambda: served(handle("sim", SimulatedEngine()), limits=limits))

    def made() -> socket.socket:
        return socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=20)

    return made


def rest(client: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    got = b""
    while part := client.recv(65536):
        got += part
    client.close()
    return got


class TestHeads:
    @pytest.mark.parametrize(
        "begun",
        [
            HEALTH + b"x-long: ",
            HEALTH + b"\r\n" + HEALTH + b"x-long: ",
            ASK + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx-long: ",
        ],
        ids=["first", "second", "trailer"],
    )
    def test_a_head_has_a_bound(self, connect: Any, begun: bytes) -> None:
        client = connect()
        client.sendall(begun)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            client.sendall(b"a" * (1 << 27))
        client.close()
        client = connect()
        client.sendall(HEALTH + b"x-long: " + b"a" * 60_000 + b"\r\n" + ENDED)
        assert rest(client).startswith(b"HTTP/1.1 200 ")

    def test_a_head_that_is_too_large_is_said_to_be_so(self, connect: Any) -> None:
        client = connect()
        client.sendall(HEALTH + b"x-long: " + b"a" * (1 << 16))
        assert rest(client).startswith(b"HTTP/1.1 431 ")

    @pytest.mark.parametrize("target", [b"http://localhost/health", b"HTTP://a:80/health?"])
    def test_a_target_may_name_the_server(self, connect: Any, target: bytes) -> None:
        client = connect()
        client.sendall(HEALTH.replace(b"/health", target) + ENDED)
        assert rest(client).startswith(b"HTTP/1.1 200 ")

    def test_an_offer_of_another_protocol_is_passed_over(self, connect: Any, caplog: Any) -> None:
        client = http.client.HTTPConnection("")
        client.sock = connect()
        for _ in range(2):
            client.request("POST", "/v1/chat/completions", BODY, OFFER)
            assert client.getresponse().read().startswith(b'{"id":"chatcmpl-')
        client.close()
        assert not caplog.records


@pytest.mark.vllm
class TestHeadsBesideVllm(TestHeads):
    def test_the_parser_is_the_other_one(self) -> None:
        assert AutoHTTPProtocol.__name__ == "HttpToolsProtocol"
