"""Clients that leave: the engine is freed at once, and nothing stays behind."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from penstock.engines.simulated.engine import SimulatedEngine
from penstock.llm_config import LLMConfig
from penstock.serve.api.ingress import OpenAiIngress
from penstock.serve.models.local import build_local_handles
from random_model import SMALL_27M, TINY, Shape, write_random_model
from wire import Wire

ASK = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": True}
ENDLESS = {**ASK, "ignore_eos": True, "temperature": 0}
CLIENTS = 1000


@pytest.fixture
async def slow() -> Any:
    """An engine whose answers do not end by themselves before the test does, and whose steps
    outlast many turns of the loop.
    """
    engine = SimulatedEngine(engine_kwargs={"time_per_token_ms": 50, "output_tokens": 30_000})
    await engine.start()
    yield engine
    await engine.stop()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_its_slot_within_two_steps(
    slow: Any, served: Any, handle: Any, stream: bool, until: Any
) -> None:
    site = served(handle("m", slow))
    wire = Wire(site.app, {**ASK, "stream": stream})
    await until(lambda: bool(slow.running))
    if stream:
        await wire.some()
    before = (await slow.metrics())["steps"]
    wire.left.set()
    await until(lambda: not slow.running)
    assert (await slow.metrics())["steps"] - before <= 2
    await wire.end()
    assert site.ingress.inflight == 0
    assert not site.ingress.live
    assert b'status="499"' in await site.ingress.metrics.render()
    assert (site.ingress.metrics.of("m").generation_tokens._value.get() > 0) is stream


def local_openvino(path: Any, shape: Shape) -> Any:
    """The handle of a random model in a process of its own."""
    write_random_model(path, shape)
    options = {
        "max_num_seqs": 8,
        "inference_precision": "f32",
        "num_threads": 1,
        "kv_cache_memory_bytes": 64 << 20,
    }
    loading = {"model_id": "m", "model_source": str(path)}
    return build_local_handles(
        [LLMConfig.from_dict({"model_loading_config": loading, "engine_kwargs": options})]
    )["m"]


@pytest.mark.slow
async def test_on_the_real_engine_too(tmp_path: Any) -> None:
    model = local_openvino(tmp_path / "model.gguf", SMALL_27M)
    await model.start()
    app = OpenAiIngress({"m": model})
    wires = [Wire(app, ENDLESS) for _ in range(8)]
    for wire in wires:
        await wire.some()
    for left, wire in enumerate(wires, 1):
        # The step in which the engine tells its count is over when the count is here.
        before = (await model.engine_metrics())["steps"] + 1
        wire.left.set()
        await wire.end()
        after = await model.engine_metrics()
        assert after["requests_running"] == len(wires) - left
        assert after["steps"] - before <= 2
    assert app.ingress.inflight == 0
    await model.stop(0)


class Counts:
    """What a server may hold on to: tasks of its loop, file descriptors of the process."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __call__(self) -> tuple[int, int]:
        return len(asyncio.all_tasks(self._loop)), len(os.listdir("/proc/self/fd"))


def connect(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=30)


def leave(url: str, number: int, body: dict[str, Any]) -> None:
    """Connect and go away: before a word, in the middle of the request, before the answer, or in
    its middle; by closing or by a reset.
    """
    data = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type:"
        " application/json\r\n"
    )
    request = f"{head}content-length: {len(data)}\r\n\r\n".encode() + data
    with connect(url) as connection:
        if number % 2:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        match number // 2 % 4:
            case 0:
                pass
            case 1:
                connection.sendall(request[: len(request) // 2])
            case 2:
                connection.sendall(request)
            case 3:
                connection.sendall(request)
                assert connection.recv(1 << 12).startswith(b"HTTP/1.1 200")


def leave_all(url: str, body: dict[str, Any]) -> None:
    """All clients, some at a time."""
    numbers = iter(range(CLIENTS))
    taking = threading.Lock()

    def some() -> None:
        while True:
            with taking:
                number = next(numbers, None)
            if number is None:
                return
            leave(url, number, body)

    threads = [threading.Thread(target=some) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def eventually(so: Callable[[], bool]) -> bool:
    """Whether it comes to be so. Another thread's work: there is no event to wait for."""
    deadline = time.monotonic() + 60
    while not so() and time.monotonic() < deadline:
        time.sleep(0.001)
    return so()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["simulated", "openvino"])
def test_a_thousand_leave_nothing_behind(
    running: Any, served: Any, handle: Any, tmp_path: Any, engine: str
) -> None:
    made: dict[str, Any] = {}

    def make() -> Any:
        if engine == "simulated":
            model = handle(
                "m",
                SimulatedEngine(engine_kwargs={"time_per_token_ms": 1, "output_tokens": 30_000}),
            )
        else:
            model = local_openvino(tmp_path / "model.gguf", TINY)
        site = made["site"] = served(model)
        made["counts"] = Counts(asyncio.get_running_loop())
        return site

    url = running(make)
    ingress = made["site"].ingress
    # What is made once and kept, such as the server's pool of threads, is made now.
    for number in range(8):
        leave(url, number, ENDLESS)
    (model,) = made["site"].handles.values()

    def idle() -> bool:
        waiting = (
            model.engine.running
            if engine == "simulated"
            else model.state().running + model.state().waiting
        )
        return not (ingress.inflight or ingress.live or waiting)

    assert eventually(idle)
    before = made["counts"]()
    leave_all(url, ENDLESS)
    assert eventually(idle)
    assert eventually(lambda: made["counts"]() <= before), (made["counts"](), before)
    # The slots are free: a whole answer comes.
    with connect(url) as connection:
        body = json.dumps({**ASK, "stream": False, "max_tokens": 3}).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length:"
            f" {len(body)}\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
