"""Streams that end early: by the client, by the engine, by the server."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from penstock.engines.simulated.engine import SimulatedEngine
from penstock.serve.http_server import HttpServer, ending_signals, listen
from wire import Wire

ASK = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": True}


@pytest.fixture
async def slow() -> Any:
    """An engine whose answers do not end by themselves before the test does."""
    engine = SimulatedEngine(engine_kwargs={"time_per_token_ms": 1, "output_tokens": 30_000})
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture
def terminal() -> Iterator[None]:
    """SIGHUP as it is for a program in a terminal, whatever started the tests."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("path", "marker"),
    [
        ("/v1/chat/completions", '"code":"engine_error"'),
        ("/v1/completions", '"code":"engine_error"'),
        ("/v1/responses", "event: response.failed"),
        ("/v1/messages", "event: error"),
    ],
)
async def test_a_failure_in_the_middle_is_an_event(
    scripted: Any, served: Any, handle: Any, path: str, marker: str
) -> None:
    engine = scripted(["a", "b", "c"])
    engine.fail_after = 2
    await engine.start()
    site = served(handle("m", engine))
    async with site.client() as client:
        body = {**ASK, "prompt": "x", "input": "x", "max_tokens": 9}
        wanted = {
            "/v1/chat/completions": ("model", "messages", "stream"),
            "/v1/completions": ("model", "prompt", "stream"),
            "/v1/responses": ("model", "input", "stream"),
            "/v1/messages": ("model", "messages", "stream", "max_tokens"),
        }[path]
        answer = await client.post(path, json={key: body[key] for key in wanted})
        assert answer.status_code == 200
        assert '"a"' in answer.text
        assert marker in answer.text
        assert "the engine broke" in answer.text
        assert site.ingress.metrics.of("m").generation_tokens._value.get() == 2
        engine.fail_after = 0
        answer = await client.post(path, json={key: body[key] for key in wanted})
        assert answer.status_code == 500
        assert answer.json()["error"]["message"] == "the engine broke"


async def test_drain_lets_requests_finish_and_refuses_new_ones(
    scripted: Any, served: Any, handle: Any, until: Any
) -> None:
    engine = scripted(["a", "b"])
    await engine.start()
    engine.hold.clear()
    site = served(handle("m", engine))
    wire = Wire(site.app, ASK)
    await until(lambda: bool(site.ingress.live))
    draining = asyncio.create_task(site.ingress.drain(60))
    await until(lambda: bool(site.ingress.draining))
    async with site.client() as client:
        assert (await client.get("/health")).status_code == 503
        refused = await client.post("/v1/chat/completions", json=ASK)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "shutting_down"
        assert int(refused.headers["retry-after"]) > 0
    engine.hold.set()
    assert await draining is True
    await wire.end()
    assert wire.text.endswith("data: [DONE]\n\n")
    assert "error" not in wire.text


async def test_drain_aborts_what_takes_too_long(
    slow: Any, served: Any, handle: Any, until: Any
) -> None:
    site = served(handle("m", slow))
    streams = [Wire(site.app, ASK) for _ in range(8)]
    await asyncio.gather(*(wire.some() for wire in streams))
    whole = Wire(site.app, {**ASK, "stream": False})
    await until(lambda: len(site.ingress.live) == 9)
    assert await site.ingress.drain(0) is False
    await asyncio.gather(*(wire.end() for wire in [*streams, whole]))
    for wire in streams:
        assert '"code":"shutting_down"' in wire.text
        assert wire.whole
    assert whole.status == 503
    assert slow.running == 0
    assert site.ingress.metrics.of("m").generation_tokens._value.get() >= 8


class Stalled(Wire):
    """Sends the beginning of its body, and no more."""

    async def _receive(self) -> dict[str, Any]:
        if self._request:
            return {"type": "http.request", "body": self._request.pop()[:20], "more_body": True}
        return await super()._receive()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/audio/transcriptions"])
async def test_a_body_that_does_not_come_keeps_no_server_from_its_end(
    slow: Any, served: Any, handle: Any, until: Any, path: str
) -> None:
    site = served(handle("m", slow))
    kind = "multipart/form-data; boundary=x" if "audio" in path else "application/json"
    wire = Stalled(site.app, ASK, path, kind)
    await until(lambda: bool(site.ingress.live))
    assert await site.ingress.drain(0) is False
    await wire.end()
    assert wire.status == 503
    assert '"code":"shutting_down"' in wire.text
    gone = Stalled(site.app, ASK, path, kind)
    site.ingress.draining = False
    await until(lambda: bool(site.ingress.live))
    gone.left.set()
    await gone.end()
    assert b'status="499"' in await site.ingress.metrics.render()


async def test_what_is_ready_goes_out_in_one_write(served: Any, untouchable: Any) -> None:
    from penstock.engines.tasks import BatchedDeltas
    from penstock.serve.models.handle import ModelState
    from penstock.types import Delta, Usage

    burst = untouchable("m", ModelState("ready"))
    gate = asyncio.Event()

    async def batches() -> Any:
        yield [Delta(text="first")]
        await gate.wait()
        last = Delta(text="last", finish_reason="stop", usage=Usage(1, 11))
        yield [*(Delta(text=str(number)) for number in range(9)), last]

    burst.chat = lambda request: BatchedDeltas(batches())
    wire = Wire(served(burst).app, ASK)
    await wire.some()
    assert [message["type"] for message in wire.sent] == [
        "http.response.start",
        "http.response.body",
    ]
    assert b'"first"' in wire.sent[1]["body"]
    gate.set()
    await wire.end()
    assert len(wire.sent) == 3
    assert wire.sent[2]["body"].count(b"data: ") == 11


async def test_request_ids_are_taken_made_and_told(client: Any, scripted: Any) -> None:
    ask = {"messages": ASK["messages"]}
    given = await client.post("/v1/chat/completions", json=ask, headers={"x-request-id": "my-id.7"})
    assert given.headers["x-request-id"] == "my-id.7"
    assert given.json()["id"].startswith("chatcmpl-my-id.7-")
    again = await client.post("/v1/chat/completions", json=ask, headers={"x-request-id": "my-id.7"})
    assert again.headers["x-request-id"] == "my-id.7"
    assert again.json()["id"] != given.json()["id"]
    for bad in ("a b", "x" * 500, 'a"b'):
        made = await client.post("/v1/chat/completions", json=ask, headers={"x-request-id": bad})
        assert made.headers["x-request-id"] != bad
        assert len(made.headers["x-request-id"]) == 32


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_lets_requests_finish(
    scripted: Any, served: Any, handle: Any, until: Any, terminal: None, number: signal.Signals
) -> None:
    engine = scripted(["a", "b"])
    engine.hold.clear()
    model = handle("m", engine)
    site = served(model)
    with listen("127.0.0.1", 0) as listening:
        server = HttpServer(site.app, listening)
        begun = asyncio.Event()
        running = asyncio.create_task(server.run([model], on_listening=begun.set))
        await begun.wait()
        wire = Wire(site.app, ASK)
        await until(lambda: bool(site.ingress.live))
        os.kill(os.getpid(), number)
        if number is signal.SIGHUP:  # a terminal that closes sends several
            os.kill(os.getpid(), number)
        await until(lambda: bool(site.ingress.draining))
        engine.hold.set()
        await running
        await wire.end()
    assert wire.text.endswith("data: [DONE]\n\n")
    assert "error" not in wire.text


def test_nohup_keeps_a_server_from_ending_with_its_terminal(terminal: None) -> None:
    assert signal.SIGHUP in ending_signals()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert signal.SIGHUP not in ending_signals()
