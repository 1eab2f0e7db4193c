"""Two servers on one port: when one of them goes, new requests are the other's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx

from penstock.serve.http_server import HttpServer, address, listen


async def until(so: Callable[[], bool]) -> None:
    while not so():  # noqa: ASYNC110 - nobody announces it
        await asyncio.sleep(0)


async def test_a_server_that_goes_leaves_new_requests_to_the_other(
    served: Any, handle: Any, scripted: Any
) -> None:
    async def start(port: int) -> tuple[Any, HttpServer, asyncio.Task[None], str]:
        engine = scripted(["a", "b"])
        one = served(handle("sim", engine))
        listening = listen("127.0.0.1", port, shared=True)
        server = HttpServer(one.app, listening)
        ready = asyncio.Event()
        running = asyncio.create_task(
            server.run(one.handles.values(), on_listening=ready.set, signals=False)
        )
        await ready.wait()
        return engine, server, running, address(listening)

    body = {"model": "sim", "messages": [{"role": "user", "content": "hi"}]}
    first, server, running, url = await start(0)
    chat = f"{url}/v1/chat/completions"
    async with httpx.AsyncClient() as client:
        assert (await client.post(chat, json=body)).status_code == 200  # whose connection is kept
        first.hold.clear()
        under_way = asyncio.create_task(client.post(chat, json=body))
        await until(lambda: len(first.prompts) == 2)
        second, other, others_run, _ = await start(int(url.rpartition(":")[2]))
        server.stop()
        await until(lambda: server.app.ingress.draining)
        answers = [await client.post(chat, json=body) for _ in range(10)]
        assert [answer.status_code for answer in answers] == [200] * 10
        assert (len(first.prompts), len(second.prompts)) == (2, 10)
        first.hold.set()
        answer = await under_way
        assert answer.json()["choices"][0]["message"]["content"] == "ab"
        await running
        other.stop()
        await others_run
