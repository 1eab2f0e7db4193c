"""An engine whose every answer and failure a test decides, and a small job's surroundings."""

import asyncio
import json
import signal
from collections.abc import AsyncGenerator, Callable

import pytest

from jobs import numbered
from penstock.batch.write import sinks
from penstock.engines.base import Capabilities, LLMEngine
from penstock.errors import EngineDeadError
from penstock.types import ChatRequest, Delta, Usage


class ScriptedEngine(LLMEngine):
    """AnswerCache a chat with `reply(last message's text)`, raising it if it is an exception.

    `asked` are the texts in the order of their admission, `most` how many were in flight at once.
    With a `gate`, a text in `held` waits until the gate opens.
    """

    name = "scripted"

    def __init__(self, reply: Callable[[str], object] = str.upper, concurrency: int = 4) -> None:
        super().__init__("scripted-model")
        self.capabilities = Capabilities(
            tasks=frozenset({"chat"}),
            context_length=1000,
            max_concurrency=concurrency,
            structured=frozenset({"json_schema"}),
        )
        self.reply = reply
        self.asked: list[str] = []
        self.requests: list[ChatRequest] = []
        self.starts = 0
        self.stops = 0
        self.alive = False
        self.in_flight = 0
        self.most = 0
        self.held: set[str] = set()
        self.gate: asyncio.Event | None = None
        self.resolved: list[tuple[str, str]] = []
        self.awaited: dict[int, asyncio.Event] = {}

    async def was_asked(self, number: int) -> None:
        """Return when `number` requests have come."""
        if len(self.asked) < number:
            await self.awaited.setdefault(number, asyncio.Event()).wait()

    async def start(self) -> None:
        self.starts += 1
        self.alive = True

    async def stop(self) -> None:
        self.stops += 1
        self.alive = False

    async def check_health(self) -> None:
        if not self.alive:
            raise EngineDeadError("not running")

    async def resolve_lora(self, name: str, path: str) -> None:
        await asyncio.sleep(0)
        self.resolved.append((name, path))
        self.adapters[name] = path

    async def chat(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        text = request.messages[-1]["content"]
        self.asked.append(text)
        for number, event in self.awaited.items():
            if len(self.asked) >= number:
                event.set()
        self.requests.append(request)
        self.in_flight += 1
        life = self.starts
        self.most = max(self.most, self.in_flight)
        try:
            await asyncio.sleep(0)
            if self.gate is not None and text in self.held:
                await self.gate.wait()
            if not self.alive or life != self.starts:  # nobody lives on in the next engine
                raise EngineDeadError("died")
            answer = self.reply(text)
            if isinstance(answer, EngineDeadError):
                self.alive = False
            if isinstance(answer, BaseException):
                raise answer
            if isinstance(answer, Delta):
                yield answer
            else:
                whole = answer if isinstance(answer, str) else json.dumps(answer)
                yield Delta(text=whole, finish_reason="stop", usage=Usage(len(text), len(whole), 1))
        finally:
            self.in_flight -= 1


@pytest.fixture
def make_engine() -> type[ScriptedEngine]:
    return ScriptedEngine


@pytest.fixture
def ctrl_c():
    """SIGINT as it is in an interactive program, whatever started the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def small_parts(monkeypatch):
    """Output in several parts, and no pauses before another try."""
    monkeypatch.setattr(sinks, "PART_ROWS", 40)
    monkeypatch.setattr("penstock.batch.pipeline.pipeline.LONGEST_PAUSE", 0.0)


@pytest.fixture
def source(tmp_path):
    """300 rows as JSON lines."""
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in numbered(300)))
    return path
