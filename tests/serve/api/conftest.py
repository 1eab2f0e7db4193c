"""An ingress over simulated engines: called in the test's own loop, or served by uvicorn on an
ephemeral port.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from penstock.engines.simulated.engine import SimulatedEngine
from penstock.engines.tasks import TASKS, Batches
from penstock.engines.templates.chat_template import ChatTemplate
from penstock.engines.token_engine import GenerateRequest
from penstock.errors import EngineError
from penstock.llm_config import LLMConfig
from penstock.serve.api.ingress import IngressApp, OpenAiIngress
from penstock.serve.config.settings import HttpSettings
from penstock.serve.http_server import HttpServer, address, listen
from penstock.serve.models.handle import ModelCard, ModelState
from penstock.serve.models.local import build_local_handles
from penstock.types import (
    Classification,
    Classifications,
    ClassifyRequest,
    Delta,
    Transcription,
    TranscriptionSegment,
    Usage,
)

PROMPT_WITH_TOOLS = (
    "{% for m in messages %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.arguments.city }}{% endfor %}\n{% endfor %}"
    "{{ tools | tojson if tools }}"
)


class ScriptedEngine(SimulatedEngine):
    """Says what it is told to, in the pieces it is given. The prompts it was given are in
    `prompts`.
    """

    def __init__(self, pieces: list[str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.template = ChatTemplate(PROMPT_WITH_TOOLS)
        self.pieces = pieces
        self.fail_after: int | None = None
        self.hold = asyncio.Event()
        self.hold.set()
        self.prompts: list[str | list[int]] = []
        self.sampled: list[Any] = []

    async def continue_prompt(self, request: GenerateRequest) -> Batches:
        self.prompts.append(request.prompt)
        self.sampled.append(request.sampling)
        if self.pieces is None:
            async for batch in super().continue_prompt(request):
                yield batch
            return
        usage = Usage(7, len(self.pieces), 2)
        if not request.stream:
            await self.hold.wait()
            text, ids = "".join(self.pieces), (1,) * len(self.pieces)
            yield [Delta(text=text, token_ids=ids, finish_reason="stop", usage=usage)]
            return
        for number, piece in enumerate(self.pieces):
            await self.hold.wait()
            if number == self.fail_after:
                raise EngineError("the engine broke")
            last = number == len(self.pieces) - 1
            delta = Delta(text=piece, token_ids=(number,))
            yield [replace(delta, finish_reason="stop", usage=usage) if last else delta]
            await asyncio.sleep(0)

    async def classify(self, request: ClassifyRequest) -> Classifications:
        """By the length of a text, which is also its count of tokens."""
        shares = [1 / (1 + len(text)) for text in request.inputs]
        items = [Classification("short" if x > 0.2 else "long", [x, 1 - x]) for x in shares]
        return Classifications(items, Usage(sum(map(len, request.inputs))))

    async def transcriptions(self, request: Any) -> Transcription:
        text = f"{len(request.audio)} bytes in {request.language}"
        timed = request.timestamps and request.language != "en"
        segments = (TranscriptionSegment(0.0, 1.5, text),) if timed else None
        return Transcription(text, Usage(3, 4), segments, request.language, 1.5)


class Handle:
    """The smallest handle: an engine in this process."""

    def __init__(
        self, model_id: str, engine: SimulatedEngine, adapters: list[str] | None = None
    ) -> None:
        self.model_id = model_id
        self.engine = engine
        self.engine_name = engine.name
        self.now = ModelState("ready")
        self.calls: list[tuple[str, dict[str, Any]]] = []
        for name in adapters or []:
            engine.adapters[name] = f"/{name}"
        for task in TASKS:
            setattr(self, task, getattr(engine, task))

    def card(self) -> ModelCard:
        return ModelCard(id=self.model_id, context_length=self.engine.options.max_model_len)

    def state(self) -> ModelState:
        return self.now

    async def check_before_load(self, task: str, *requests: Any) -> None:
        pass

    async def engine_metrics(self) -> dict[str, float]:
        return await self.engine.metrics()

    async def adapters(self) -> list[str]:
        return sorted(self.engine.adapters)

    async def control(self, method: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        self.calls.append((method, dict(options)))
        return [{"replica": "0", "ok": True, "result": method}]

    async def start(self) -> None:
        await self.engine.start()

    async def stop(self, drain_timeout_s: float = 30.0) -> None:
        await self.engine.stop()


class Untouchable(Handle):
    """A model that must not be asked to do anything."""

    def __init__(self, model_id: str, state: ModelState) -> None:
        super().__init__(model_id, SimulatedEngine())
        self.now = state
        for method in (*TASKS, "start"):
            setattr(self, method, self._refuse)

    def _refuse(self, *_: Any) -> Any:
        raise AssertionError("a model was called")


class Served:
    """An ingress, its handles, and clients for it."""

    def __init__(
        self, *handles: Handle, lora_paths: dict[str, str] | None = None, **settings: Any
    ) -> None:
        self.handles = {handle.model_id: handle for handle in handles}
        self.app: IngressApp = OpenAiIngress(
            self.handles,  # type: ignore[arg-type]
            lora_paths=lora_paths,
            settings=HttpSettings(**settings),
        )

    @property
    def ingress(self) -> Any:
        return self.app.ingress

    def client(self, **kwargs: Any) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app=self.app)
        return httpx.AsyncClient(transport=transport, base_url="http://test", **kwargs)


@pytest.fixture
def served() -> type[Served]:
    return Served


@pytest.fixture
def handle() -> type[Handle]:
    return Handle


@pytest.fixture
def untouchable() -> type[Untouchable]:
    return Untouchable


@pytest.fixture
def scripted() -> type[ScriptedEngine]:
    return ScriptedEngine


@pytest.fixture
async def ingress() -> AsyncGenerator[Served, None]:
    """One model "sim" with two adapters, started."""
    one = Handle("sim", SimulatedEngine(), ["german", "summary"])
    await one.start()
    yield Served(one)
    await one.stop()


@pytest.fixture
async def client(ingress: Served) -> AsyncGenerator[httpx.AsyncClient, None]:
    async with ingress.client() as made:
        yield made


@asynccontextmanager
async def _on_demand(
    *models: tuple[str, str, str, dict[str, Any]],
) -> AsyncGenerator[httpx.AsyncClient, None]:
    configs = [
        LLMConfig.from_dict(
            {
                "model_loading_config": {"model_id": name, "model_source": source},
                "llm_engine": engine,
                "engine_kwargs": kwargs,
                "deployment_config": {"autoscaling_config": {"min_replicas": 0}},
            }
        )
        for name, engine, source, kwargs in models
    ]
    handles = build_local_handles(configs)
    transport = httpx.ASGITransport(app=OpenAiIngress(handles, settings=HttpSettings()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as made:
        yield made
    await asyncio.gather(*(handle.stop(0) for handle in handles.values()))


@pytest.fixture(scope="session")
def on_demand() -> Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]:
    """A client of an ingress whose models load when they are called, as a context. Each has a name,
    an engine, a source and the engine's options.
    """
    return _on_demand


@pytest.fixture
def running() -> Iterator[Callable[..., str]]:
    """Serve what a factory makes, by uvicorn in a thread; gives the URL. The factory runs in the
    server's loop.
    """
    stops: list[Callable[[], None]] = []

    def start(make: Callable[[], Served]) -> str:
        listening = listen("127.0.0.1", 0)
        ready = threading.Event()
        held: dict[str, Any] = {}

        async def main() -> None:
            served = make()
            server = held["server"] = HttpServer(served.app, listening)
            held["loop"] = asyncio.get_running_loop()
            for one in served.handles.values():
                await one.start()
            await server.run(served.handles.values(), on_listening=ready.set)  # type: ignore[arg-type]

        url = address(listening)
        thread = threading.Thread(target=asyncio.run, args=(main(),))
        thread.start()
        assert ready.wait(10)

        def stop() -> None:
            held["loop"].call_soon_threadsafe(held["server"].stop)
            thread.join(20)
            assert not thread.is_alive()

        stops.append(stop)
        return url

    yield start
    for stop in stops:
        stop()


@pytest.fixture
def url(running: Callable[..., str]) -> str:
    """A served model "sim" with an adapter."""
    return running(lambda: Served(Handle("sim", SimulatedEngine(), ["german"])))


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    """Lets the loop turn until something is so."""

    async def wait(so: Callable[[], bool]) -> None:
        while not so():  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0)

    return wait


def events(text: str) -> list[str]:
    """The data of server-sent events."""
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]


@pytest.fixture(name="events")
def events_fixture() -> Callable[[str], list[str]]:
    return events
