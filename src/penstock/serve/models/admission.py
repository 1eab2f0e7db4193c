"""The one queue in front of an engine: so many requests run, so many wait, the rest is turned away.

Whatever keeps requests from the engine (it is busy, loading, starting again, paused) closes the
same gate, so that waiting is bounded and in order in every case.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count

from penstock.errors import OverloadedError

RETRY_AFTER_S = 1.0


class Admission:
    """Lets requests in by priority (lower first), then by arrival. `max_waiting` None is no limit.

    `on_idle` is called whenever the last request has left and none waits.
    """

    def __init__(self, max_waiting: int | None, on_idle: Callable[[], None] = lambda: None) -> None:
        self.max_running = 1
        self.max_waiting = max_waiting
        self.running = 0
        self._on_idle = on_idle
        self._open = False
        self._queue: list[tuple[int, int, asyncio.Future[None]]] = []
        self._arrivals = count()
        self._drains: list[asyncio.Future[None]] = []

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def load(self) -> int:
        """Requests that it has: those being answered, and those that wait."""
        return self.running + len(self._queue)

    @property
    def idle(self) -> bool:
        """Whether no request runs or waits."""
        return not self.running and not self._queue

    async def enter(self, priority: int = 0) -> None:
        """Wait for a slot; give it back with `leave`. Raises `OverloadedError` if the queue is
        full.
        """
        if self._open and not self._queue and self.running < self.max_running:
            self.running += 1
            return
        if self.max_waiting is not None and len(self._queue) >= self.max_waiting:
            raise OverloadedError(
                f"the queue is full: {len(self._queue)} requests wait already", RETRY_AFTER_S
            )
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (priority, next(self._arrivals), admitted)
        heappush(self._queue, entry)
        try:
            await admitted
        except asyncio.CancelledError:
            if entry in self._queue:
                self._queue.remove(entry)
                heapify(self._queue)
            elif not admitted.cancelled() and admitted.exception() is None:
                self.running -= 1  # the caller went away in the moment when it was let in
                self._admit()
            self._settle()
            raise

    def leave(self) -> None:
        self.running -= 1
        self._admit()
        self._settle()

    def enter_at_once(self) -> None:
        """Take part without a slot, for what is cheap; give it back with `leave`."""
        self.running += 1

    def open(self) -> None:
        self._open = True
        self._admit()
        self._wake_drains()

    def close(self) -> None:
        """Close the gate: those inside go on, the others wait."""
        self._open = False

    def refuse_waiting(self, reason: Callable[[], Exception]) -> None:
        """Turn away everyone in the queue; `reason` makes the error of each."""
        queue, self._queue = self._queue, []
        for _, _, admitted in queue:
            if not admitted.done():
                admitted.set_exception(reason())
        self._settle()

    async def drained(self) -> None:
        """Return when nobody is inside, or the gate was opened again."""
        while self.running and not self._open:
            await self._change()

    async def emptied(self) -> None:
        """Return when nobody is inside and nobody waits."""
        while not self.idle:
            await self._change()

    async def _change(self) -> None:
        drained: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._drains.append(drained)
        await drained

    def _admit(self) -> None:
        while self._open and self._queue and self.running < self.max_running:
            _, _, admitted = heappop(self._queue)
            if not admitted.done():
                self.running += 1
                admitted.set_result(None)

    def _settle(self) -> None:
        if not self.running:
            self._wake_drains()
            if not self._queue:
                self._on_idle()

    def _wake_drains(self) -> None:
        drains, self._drains = self._drains, []
        for drained in drains:
            if not drained.done():
                drained.set_result(None)
