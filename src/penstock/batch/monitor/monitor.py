"""Shows a running job to others, and lets them steer it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from penstock.batch.job.result import Counts, ending
from penstock.batch.monitor import status as statuses
from penstock.batch.monitor.control import ControlSocket
from penstock.batch.monitor.status import State, Status
from penstock.errors import printable

if TYPE_CHECKING:
    from penstock.batch.flow import Flow

_INTERVAL = 1.0
_RECENT = 10


class Monitor:
    """Of the job with this state directory, inside `async with`. `stop` ends it as a signal would,
    `held` says whether the directory is still the job's: in another's nothing is written.

    `begin` is called when rows begin to move. `finished` says whether all are, when the job ends.
    """

    def __init__(
        self,
        folder: Path,
        status: Status,
        counts: Counts,
        *,
        stop: Callable[[], None],
        held: Callable[[], bool],
    ) -> None:
        self._folder = folder
        self._status = status
        self._counts = counts
        self._stop = stop
        self._held = held
        self.finished = True
        self._flow: Flow | None = None
        self._paused = False
        self._stopping = False
        self._began = time.monotonic()
        self._recent: deque[tuple[float, int, int]] = deque(maxlen=_RECENT)
        self._socket = ControlSocket(folder, self._answer)
        self._task: asyncio.Task[None] | None = None
        status.pid = os.getpid()
        status.started = time.time()

    def begin(self, flow: Flow) -> None:
        """Watch this flow, and steer it as asked so far."""
        self._flow = flow
        if self._paused:
            flow.pause()

    async def __aenter__(self) -> Monitor:
        statuses.register(self._folder)
        await self._socket.start()
        self._task = asyncio.create_task(self._write())
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._socket.stop(remove=self._held())
        self._recent.clear()  # the speeds are those of the whole run now
        self._save(ending(error, finished=self.finished), error)

    async def _write(self) -> None:
        while True:
            counts = self._counts
            self._recent.append((time.monotonic(), counts.rows, counts.completion_tokens))
            self._save(self._state())
            await asyncio.sleep(_INTERVAL)

    def _state(self) -> State:
        if self._stopping:
            return "stopping"
        if self._paused:
            return "paused"
        return "loading" if self._flow is None else "running"

    def _save(self, state: State, error: BaseException | None = None) -> None:
        failed = state == "failed" and error is not None
        self._status.error = printable(str(error)) if failed else None
        if self._held():
            statuses.save(self._folder, self._now(state))

    def _now(self, state: State) -> Status:
        counts, status = self._counts, self._status
        for name in (
            *("rows", "total", "failed", "errors", "resumed", "kept", "from_cache", "deduplicated"),
            *("prompt_tokens", "completion_tokens", "engine_calls"),
        ):
            setattr(status, name, getattr(counts, name))
        now = time.monotonic()
        status.state = state
        status.updated = time.time()
        status.seconds = round(now - self._began, 3)
        before = (self._began, counts.resumed, 0)
        if len(self._recent) > 1:
            before = self._recent[0]
        seconds = max(now - before[0], 1e-3)
        status.rows_per_second = round(max(counts.rows - before[1], 0) / seconds, 3)
        status.tokens_per_second = round((counts.completion_tokens - before[2]) / seconds, 3)
        return status

    async def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        word = asked.get("do")
        if word == "tail":
            return {"rows": self._latest(asked.get("after"))}
        if word == "pause" and not self._stopping:
            self._paused = True
            if self._flow is not None:
                self._flow.pause()
        elif word == "resume":
            self._paused = False
            if self._flow is not None:
                self._flow.go_on()
        elif word == "cancel":
            self._stopping = True
            self._stop()
        answer: dict[str, Any] = msgspec.to_builtins(self._now(self._state()))
        return answer

    def _latest(self, after: Any) -> list[dict[str, Any]]:
        rows = [] if self._flow is None else list(self._flow.latest)
        return [
            {
                "number": number,
                "row": index,
                "status": "ok" if outcome.error is None else "error",
                "response": outcome.response,
                "parsed": outcome.parsed,
                "error": None if outcome.error is None else outcome.error.message,
            }
            for number, index, outcome in rows
            if not isinstance(after, int) or number > after
        ]
