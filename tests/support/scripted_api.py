"""Real servers to be remote: Penstock's own, in a thread, and one that does as the test says."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from penstock.engines.remote.engine import RemoteEngine
from penstock.llm_config import LLMConfig
from penstock.serve.api.ingress import OpenAiIngress
from penstock.serve.config.settings import HttpSettings
from penstock.serve.http_server import HttpServer, address, listen
from penstock.serve.models.local import build_local_handles


@contextmanager
def penstock_serve(*configs: dict[str, Any], **settings: Any) -> Iterator[str]:
    """The base URL of a Penstock server in a thread of its own."""
    listening = listen("127.0.0.1", 0)
    ready = threading.Event()
    held: dict[str, Any] = {}

    async def main() -> None:
        handles = build_local_handles([LLMConfig.from_dict(config) for config in configs])
        server = held["server"] = HttpServer(
            OpenAiIngress(handles, settings=HttpSettings(**settings)), listening
        )
        held["loop"] = asyncio.get_running_loop()
        await asyncio.gather(*(handle.start() for handle in handles.values()))
        await server.run(handles.values(), on_listening=ready.set)

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    try:
        assert ready.wait(60)
        yield f"{address(listening)}/v1"
    finally:
        held["loop"].call_soon_threadsafe(held["server"].stop)
        thread.join(60)
        assert not thread.is_alive()


def simulated(model_id: str = "sim", **options: Any) -> dict[str, Any]:
    """A served simulated model."""
    loading = {"model_id": model_id, "model_source": "simulated"}
    return {"model_loading_config": loading, "llm_engine": "simulated", "engine_kwargs": options}


class Script:
    """A server whose answers the test gives. `asked` holds what it was asked: (path, body)."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.headers: list[Any] = []
        self.models: Any = {"data": [{"id": "m"}]}
        self.answers: list[Any] = []
        self.base_url = ""
        self._server: TestServer | None = None
        self._port: int | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/v1/models", self._list)
        app.router.add_post("/{path:.*}", self._post)
        self._server = TestServer(app, port=self._port)
        await self._server.start_server()
        self._port = self._server.port  # a second start is where the first one was
        self.base_url = str(self._server.make_url("/v1"))

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.close()
            self._server = None

    async def _list(self, request: web.Request) -> web.StreamResponse:
        self.headers.append(request.headers)
        if callable(self.models):
            answer: web.StreamResponse = await self.models(request)
            return answer
        return web.json_response(self.models)

    async def _post(self, request: web.Request) -> web.StreamResponse:
        multipart = request.content_type.startswith("multipart")
        body: Any = await _form(request) if multipart else await request.json()
        self.asked.append((request.path, body))
        self.headers.append(request.headers)
        # The last answer is given again and again.
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(answer):
            made: web.StreamResponse = await answer(request)
            return made
        return web.json_response(answer)


async def _form(request: web.Request) -> dict[str, Any]:
    """A multipart form, files as bytes."""
    form = await request.post()
    return {
        name: item.file.read() if isinstance(item, web.FileField) else item
        for name, item in form.items()
    }


def chunk(index: int = 0, reason: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta, "finish_reason": reason}]}


USAGE = {
    "choices": [],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": None},
}


def sse(*events: Any, end: str = "done") -> Any:
    """Streams events. `end`: "done", "cut" (the connection breaks), "eof" (no [DONE]), "hang"."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in events:
            await response.write(
                b"data: "
                + (event if isinstance(event, bytes) else json.dumps(event).encode())
                + b"\n\n"
            )
        if end == "done":
            await response.write(b"data: [DONE]\n\n")
        elif end == "cut":
            assert request.transport is not None
            request.transport.abort()
        elif end == "hang":
            await asyncio.Event().wait()
        return response

    return answer


def refusal(status: int, message: str = "no", **fields: Any) -> Any:
    """Answers with an error; `headers` are the response's."""
    headers = fields.pop("headers", None)

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response(
            {"error": {"message": message, **fields}}, status=status, headers=headers
        )

    return answer


@asynccontextmanager
async def remote(*scripts: Script, model: str = "m", start: bool = True, **options: Any) -> Any:
    """A remote engine before scripted servers."""
    many = {"upstreams": [{"base_url": script.base_url} for script in scripts]}
    where = many if len(scripts) > 1 else {"base_url": scripts[0].base_url}
    quick = {"base_retry_wait_s": 0, "cooldown_s": 0.05, "connect_timeout_s": 5, "patience_s": 0}
    engine = RemoteEngine(model, engine_kwargs={**where, **quick, **options})
    try:
        if start:
            await engine.start()
        yield engine
    finally:
        await engine.stop()
