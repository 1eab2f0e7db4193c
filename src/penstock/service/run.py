"""A batch that this server runs or is about to run: its turn, its early end, and whether it can be
answered within its window.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from contextvars import Context
from functools import partial
from typing import Literal

from penstock.balance.backoff import span
from penstock.batch.job.execution import Interrupts
from penstock.batch.job.result import Counts
from penstock.errors import BatchCancelledError, BatchExpiredError, EngineError, PenstockError
from penstock.service.batches import Batch, Fault
from penstock.service.lines import ServedStep

FEWEST_LINES = 32
"""The speed is unknown before this many answers."""
MOST_LINES = 20_000
"""After this many answers, the old ones count half."""


class Run:
    """The run of a batch. It begins lines while it holds one of the `turns`."""

    def __init__(self, batch: Batch, turns: asyncio.Semaphore) -> None:
        self.batch = batch
        self.step: ServedStep | None = None
        self.counts: Counts | None = None
        self.interrupts = Interrupts()  # of no signals: the server handles signals
        self.over = asyncio.Event()
        """Set when the batch is cancelled or has expired: lines without an answer get none."""
        self.ends_as: Literal["cancelled", "expired"] = "expired"
        """The status of the batch after that."""
        self.fault: Fault | None = None
        """Why the batch fails, though some of its lines may have answers."""
        self.task: asyncio.Task[None]
        self._why: Callable[[], PenstockError] | None = None
        self._turns = turns
        self._has_turn = asyncio.Event()
        self._holding: asyncio.Task[None] | None = None
        self._paused = batch.paused
        if batch.status == "cancelling":
            self.cancel()
        elif batch.expires_at <= time.time():
            self.expire()

    def cancel(self) -> None:
        self._cut_short("cancelled", "cancelled", BatchCancelledError)

    def expire(self) -> None:
        self._cut_short("expired", "over: it has expired", BatchExpiredError)

    def fail(self, fault: Fault) -> None:
        """Let the batch fail with this fault, and its lines without an answer with an error."""
        self.fault = fault
        text = f"the line was not answered before the batch failed: {fault.message}"
        self._finish_with(partial(EngineError, text))

    def pause(self, paused: bool) -> None:
        """With `paused`, begin no further line; else resume the batch."""
        if paused != self._paused:
            self._paused = paused
            if paused:
                self.leave_turn()
            else:
                self.want_turn()

    def begin(self, step: ServedStep) -> None:
        """Answer lines with this step from now on."""
        self.step = step
        step.pause(not self._has_turn.is_set())
        if self._why is not None:
            step.finish_with(self._why)

    def drain(self) -> None:
        """End the run when the lines under way have their answers; another server goes on."""
        # A run without a turn does not end by itself.
        if self.interrupts.on_first is not None and self._has_turn.is_set():
            self.interrupts.received = signal.SIGTERM
            self.interrupts.on_first()
        else:
            self.task.cancel()

    def want_turn(self) -> None:
        """Take a turn as soon as one is free, unless the batch is paused."""
        if self._holding is None and not self._paused:
            self._holding = asyncio.create_task(self._hold_turn(), context=Context())

    def leave_turn(self) -> None:
        """Give the turn back, or leave the queue for it."""
        if self._holding is not None:
            self._holding.cancel()
            self._holding = None
        self._has_turn.clear()
        if self.step is not None:
            self.step.pause(True)

    async def turn(self) -> None:
        """Return when the run has its turn, or when it is over and needs none."""
        waits = [asyncio.ensure_future(one.wait()) for one in (self._has_turn, self.over)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()

    async def _hold_turn(self) -> None:
        async with self._turns:
            self._has_turn.set()
            if self.step is not None:
                self.step.pause(False)
            await asyncio.get_running_loop().create_future()  # until `leave_turn`

    def _cut_short(
        self, status: Literal["cancelled", "expired"], word: str, error: type[PenstockError]
    ) -> None:
        if not self.over.is_set():
            self.ends_as = status
            self.over.set()
            text = f"the line was not answered before the batch was {word}"
            self._finish_with(partial(error, text))

    def _finish_with(self, why: Callable[[], PenstockError]) -> None:
        self._why = self._why or why
        if self.step is not None:
            self.step.finish_with(self._why)


class Speed:
    """Measures how many lines a second a model answers while it has batches."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._running: list[Run] = []
        self._since = 0.0
        self._seconds = 0.0
        self._lines = 0

    def begin(self, run: Run) -> None:
        """The run begins to answer lines."""
        if not self._running:
            self._since = self._clock()
        self._running.append(run)

    def end(self, run: Run) -> None:
        """The run answers no more lines."""
        self._running.remove(run)
        self._lines += answered(run.counts)
        if not self._running:
            self._seconds += self._clock() - self._since
        if self._lines > MOST_LINES:
            self._lines //= 2
            self._seconds /= 2

    def seconds_for(self, lines: int) -> float | None:
        """The time that `lines` lines take; None if too few were answered to tell."""
        seconds = self._seconds + (self._clock() - self._since if self._running else 0.0)
        done = self._lines + sum(answered(run.counts) for run in self._running)
        return lines * seconds / done if done >= FEWEST_LINES else None


def answered(counts: Counts | None) -> int:
    """How many lines a run has answered, without those of earlier runs."""
    return 0 if counts is None else counts.rows - counts.resumed


def too_late(lines: int, ahead: int, seconds: float | None, left: float) -> list[Fault]:
    """The fault of a batch that cannot be answered in time: its `lines`, and those `ahead` of it,
    take `seconds` together, and only `left` seconds are left. Empty if it can.
    """
    if seconds is None or seconds <= left:
        return []
    message = (
        f"{lines:,} lines, and {ahead:,} of batches before, would take about"
        f" {span(seconds)} at the speed of this server, and the window leaves"
        f" {span(max(left, 0.0))}. Give a longer completion_window, or fewer lines"
    )
    return [Fault(code="completion_window_too_short", message=message, param="completion_window")]
