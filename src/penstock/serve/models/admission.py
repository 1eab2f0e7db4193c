"""The queue in front of an engine: so many requests run, so many wait, the rest is turned away.

There are two classes. A request of the batch class never keeps one of the online class waiting: it
has a queue of its own behind theirs. An engine that shares itself between the classes step by step
(`apart`) gets as many requests of either; any other gets batch requests into slots that are idle.

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
Entry = tuple[int, int, asyncio.Future[None]]


class Admission:
    """Lets requests in by priority (lower first), then by arrival. `max_waiting` None is no limit.

    `on_idle` is called whenever the last request has left and none waits.
    """

    def __init__(self, max_waiting: int | None, on_idle: Callable[[], None] = lambda: None) -> None:
        self.max_running = 1
        self.max_waiting = max_waiting
        self.apart = False
        self.running = 0
        """Requests inside, of both classes."""
        self.batch_running = 0
        self._on_idle = on_idle
        self._open = False
        self._queue: list[Entry] = []
        self._batch_queue: list[Entry] = []
        self._arrivals = count()
        self._drains: list[asyncio.Future[None]] = []

    @property
    def waiting(self) -> int:
        return len(self._queue) + len(self._batch_queue)

    @property
    def load(self) -> int:
        """Requests that it has: those being answered, and those that wait."""
        return self.running + self.waiting

    @property
    def idle(self) -> bool:
        """Whether no request runs or waits."""
        return not (self.running or self._queue or self._batch_queue)

    async def enter(self, priority: int = 0, batch: bool = False) -> None:
        """Wait for a slot; give it back with `leave`. Raises `OverloadedError` if the queue of the
        class is full.
        """
        queue = self._batch_queue if batch else self._queue
        if self._open and not queue and self._has_room(batch):
            self.running += 1
            self.batch_running += batch
            return
        if self.max_waiting is not None and len(queue) >= self.max_waiting:
            raise OverloadedError(
                f"the queue is full: {len(queue)} requests wait already", RETRY_AFTER_S
            )
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (priority, next(self._arrivals), admitted)
        heappush(queue, entry)
        try:
            await admitted
        except asyncio.CancelledError:
            if entry in queue:
                queue.remove(entry)
                heapify(queue)
            elif not admitted.cancelled() and admitted.exception() is None:
                self.running -= 1  # the caller went away in the moment when it was let in
                self.batch_running -= batch
                self._admit()
            self._settle()
            raise

    def leave(self, batch: bool = False) -> None:
        self.running -= 1
        self.batch_running -= batch
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
        waiting = self._queue + self._batch_queue
        self._queue.clear()
        self._batch_queue.clear()
        for _, _, admitted in waiting:
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

    def _has_room(self, batch: bool) -> bool:
        if not batch:
            # A batch request in a slot of its own kind is not in the way; the engine makes it wait.
            return self.running - self.batch_running * self.apart < self.max_running
        if self.apart:
            return self.batch_running < self.max_running
        return not self._queue and self.running < self.max_running

    def _admit(self) -> None:
        for queue, batch in ((self._queue, False), (self._batch_queue, True)):
            while self._open and queue and self._has_room(batch):
                _, _, admitted = heappop(queue)
                if not admitted.done():
                    self.running += 1
                    self.batch_running += batch
                    admitted.set_result(None)

    def _settle(self) -> None:
        if not self.running:
            self._wake_drains()
            if not (self._queue or self._batch_queue):
                self._on_idle()

    def _wake_drains(self) -> None:
        drains, self._drains = self._drains, []
        for drained in drains:
            if not drained.done():
                drained.set_result(None)
