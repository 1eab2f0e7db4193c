"""A server over an engine that does what the test says, and ways to watch it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

from penstock.engines.simulated.engine import SimulatedEngine
from penstock.engines.tasks import Batches, Deltas
from penstock.engines.token_engine import GenerateRequest
from penstock.errors import EngineDeadError
from penstock.llm_config import LLMConfig
from penstock.serve.models.server import LLMServer
from penstock.types import ChatRequest, Delta, Usage

ASK = ChatRequest([{"role": "user", "content": "Hello"}])


class Scripted(SimulatedEngine):
    """Gives "a", then waits for the test before it gives "b" and ends. Dies and refuses to start
    when told so.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(engine_kwargs=options)
        self.starts = self.stops = 0
        self.start_errors: list[Exception] = []
        self.seen: list[Any] = []
        self.silent_deaths = 0
        self.fatal = "\0"
        self.go_on = asyncio.Event()
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.died = asyncio.Event()

    async def start(self) -> None:
        self.starts += 1
        await self.may_start.wait()
        if self.start_errors:
            raise self.start_errors.pop(0)
        self.died = asyncio.Event()
        await super().start()

    async def stop(self) -> None:
        self.stops += 1
        self.kill()

    def kill(self) -> None:
        self._alive = False
        self.died.set()

    async def continue_prompt(self, request: GenerateRequest) -> Batches:
        await self.check_health()
        self.seen.append(request)
        if self.silent_deaths or self.fatal in str(request.prompt):
            self.silent_deaths = max(self.silent_deaths - 1, 0)
            self.kill()
            raise EngineDeadError("killed")
        yield [Delta(text="a", token_ids=(1,))]
        ended = {asyncio.create_task(event.wait()) for event in (self.go_on, self.died)}
        try:
            await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in ended:
                task.cancel()
        if self.died.is_set():
            raise EngineDeadError("killed")
        yield [Delta(text="b", token_ids=(2,), finish_reason="stop", usage=Usage(5, 2))]


class Sleeping(Scripted):
    """Has a sleep of its own."""

    asleep = False

    async def sleep(self, level: int = 1) -> None:
        self.asleep = True

    async def wakeup(self) -> None:
        self.asleep = False

    async def is_sleeping(self) -> bool:
        return self.asleep


class Pausing(Scripted):
    """Has a pause of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.asked: list[str] = []
        self.resume_errors: list[Exception] = []

    async def pause(self, mode: str = "wait") -> None:
        await self.check_health()
        self.asked.append(mode)

    async def resume(self) -> None:
        await self.check_health()
        if self.resume_errors:
            raise self.resume_errors.pop()
        self.asked.append("resume")


def config(**fields: Any) -> LLMConfig:
    return LLMConfig.from_dict(
        {"model_loading_config": {"model_id": "m"}, "llm_engine": "simulated", **fields}
    )


def limits(running: int, waiting: int) -> dict[str, int]:
    return {"max_ongoing_requests": running, "max_queued_requests": waiting}


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def texts(stream: Deltas) -> str:
    return "".join([delta.text async for delta in stream])


async def begun(server: LLMServer, request: ChatRequest = ASK) -> asyncio.Task[list[Delta]]:
    """A stream whose caller has seen a part, and the task that takes the rest."""
    stream = server.chat(request)
    assert (await anext(stream)).text == "a"

    async def rest() -> list[Delta]:
        async with aclosing(stream):
            return [delta async for delta in stream]

    return asyncio.create_task(rest())
