"""SIGTERM under load, in a process of its own: no stream is cut off without a word, and the exit
code is 0.
"""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from serve_process import ServeProcess, serving, simulated

pytestmark = pytest.mark.slow

STREAMS = 64


def begin(connection: socket.socket, **body: Any) -> None:
    """Ask for a stream."""
    data = json.dumps(
        {"messages": [{"role": "user", "content": "hello"}], "stream": True, **body}
    ).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type:"
        " application/json\r\n"
    )
    connection.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)


def ask(server: ServeProcess, **body: Any) -> socket.socket:
    """A connection on which a stream has begun."""
    connection = socket.create_connection(server.address, timeout=60)
    begin(connection, **body)
    assert connection.recv(1 << 12).startswith(b"HTTP/1.1 200")
    return connection


def rest(connection: socket.socket) -> bytes:
    received = b""
    while part := connection.recv(1 << 16):
        received += part
    return received


def drain(server: ServeProcess, bodies: list[dict[str, Any]]) -> list[bytes]:
    """What the streams bring after the signal, each to its end; the server must exit with 0."""
    with ExitStack() as stack, ThreadPoolExecutor(len(bodies)) as threads:
        streams = [stack.enter_context(ask(server, **body)) for body in bodies]
        ends = [threads.submit(rest, stream) for stream in streams]
        assert server.stop() == 0
        return [end.result() for end in ends]


def check(ends: list[bytes]) -> tuple[int, int]:
    """How many were whole, and how many ended with an error event. There is no third way."""
    aborted = sum(b'"code":"shutting_down"' in end for end in ends)
    whole = sum(b'"finish_reason":"' in end and b'"error"' not in end for end in ends)
    assert all(end.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") for end in ends)
    assert whole + aborted == len(ends)
    return whole, aborted


def test_what_takes_too_long_ends_with_an_error_event() -> None:
    with serving(
        *simulated(time_per_token_ms=5, output_tokens=30_000), "--drain-timeout", "0.5"
    ) as server:
        assert check(drain(server, [{}] * STREAMS)) == (0, STREAMS)


def test_what_has_the_time_is_finished() -> None:
    with serving(
        *simulated(time_per_token_ms=5, output_tokens=100), "--drain-timeout", "30"
    ) as server:
        assert check(drain(server, [{}] * STREAMS)) == (STREAMS, 0)


def test_a_client_that_reads_nothing_is_not_waited_for() -> None:
    with serving(*simulated(), "--drain-timeout", "0.2") as server, socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(server.address)
        begin(deaf, ignore_eos=True, max_tokens=32_000)
        with ask(server, ignore_eos=True, max_tokens=32_000) as reading:
            assert reading.recv(1 << 12)
        assert server.stop() == 0
        assert "Traceback" not in server.log


def test_on_the_real_engine_some_finish_and_some_do_not() -> None:
    options = json.dumps({"inference_precision": "f32", "max_num_seqs": STREAMS})
    bodies = [{"ignore_eos": True, "max_tokens": tokens} for tokens in (20, 900) * (STREAMS // 2)]
    with serving("demo", "--engine-kwargs", options, "--drain-timeout", "0.2") as server:
        check(drain(server, bodies))
        assert "Traceback" not in server.log
