"""The queue in front of an engine: a number of requests run, a number wait, the rest is refused.

There are two classes. A batch request never keeps an online request waiting: batch requests have a
queue of their own, behind the online one. An engine that shares its steps between the classes
(`engine_shares_steps`) gets the same number of text generations of either class. All other batch
requests get slots that are idle.

While the engine cannot take requests (it is busy, loading, restarting or paused), the same gate is
closed, so that waiting is bounded and in order in every case.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Literal

from penstock.errors import OverloadedError

RETRY_AFTER_S = 1.0
Kind = Literal["online", "batch", "idle", "slotless"]
"""The kind of slot that a request needs: any, one for batch rows, one that is idle, or none."""
QUEUES: tuple[Kind, ...] = ("online", "batch", "idle")
Entry = tuple[int, int, asyncio.Future[None]]


class Admission:
    """Lets requests in by priority (lower first), then by arrival. `max_waiting` None: no limit.

    `on_idle` is called whenever the last request has left and none waits.
    """

    def __init__(self, max_waiting: int | None, on_idle: Callable[[], None] = lambda: None) -> None:
        self.max_running = 1
        self.max_waiting = max_waiting
        self.engine_shares_steps = False
        self.running = 0
        """Requests inside, of both classes."""
        self.batch_running = 0
        """Requests inside of the kind "batch"."""
        self.slotless = 0
        """Requests inside without a slot."""
        self._on_idle = on_idle
        self._open = False
        self._queues: dict[Kind, list[Entry]] = {kind: [] for kind in QUEUES}
        self._waiting = 0
        self._arrivals = count()
        self._drains: list[asyncio.Future[None]] = []

    @property
    def waiting(self) -> int:
        return self._waiting

    @property
    def load(self) -> int:
        """The number of requests that are being answered or wait."""
        return self.running + self.waiting

    @property
    def idle(self) -> bool:
        """Whether no request runs or waits."""
        return not (self.running or self._waiting)

    async def enter(self, priority: int = 0, kind: Kind = "online") -> None:
        """Wait for a slot; give it back with `leave`. Raises `OverloadedError` if the queue of the
        class is full.
        """
        queue = self._queues[kind]
        if self._open and not queue and self._has_room(kind):
            self.running += 1
            self.batch_running += kind == "batch"
            return
        if self.max_waiting is not None and len(queue) >= self.max_waiting:
            raise OverloadedError(
                f"the queue is full: {len(queue)} requests wait already", RETRY_AFTER_S
            )
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (priority, next(self._arrivals), admitted)
        heappush(queue, entry)
        self._waiting += 1
        try:
            await admitted
        except asyncio.CancelledError:
            if entry in queue:
                queue.remove(entry)
                heapify(queue)
                self._waiting -= 1
            elif not admitted.cancelled() and admitted.exception() is None:
                self.running -= 1  # the caller was cancelled just when it was let in
                self.batch_running -= kind == "batch"
                self._admit()
            self._notify_if_idle()
            raise

    def leave(self, kind: Kind = "online") -> None:
        self.running -= 1
        self.batch_running -= kind == "batch"
        self.slotless -= kind == "slotless"
        self._admit()
        self._notify_if_idle()

    def enter_at_once(self) -> None:
        """Enter without a slot, for a cheap request; `leave("slotless")` ends it."""
        self.running += 1
        self.slotless += 1

    def open(self) -> None:
        self._open = True
        self._admit()
        self._wake_drains()

    def close(self) -> None:
        """Close the gate: requests inside go on, others wait."""
        self._open = False

    def refuse_waiting(self, reason: Callable[[], Exception]) -> None:
        """Refuse every request in the queue; `reason` makes the error for each."""
        waiting = [entry for queue in self._queues.values() for entry in queue]
        for queue in self._queues.values():
            queue.clear()
        self._waiting = 0
        for _, _, admitted in waiting:
            if not admitted.done():
                admitted.set_exception(reason())
        self._notify_if_idle()

    async def drained(self) -> None:
        """Return when no request is inside, or when the gate was opened again."""
        while self.running and not self._open:
            await self._change()

    async def emptied(self) -> None:
        """Return when no request is inside and none waits."""
        while not self.idle:
            await self._change()

    async def _change(self) -> None:
        drained: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._drains.append(drained)
        await drained

    def _has_room(self, kind: Kind) -> bool:
        if kind == "batch" and self.engine_shares_steps:
            return self.batch_running < self.max_running
        if kind != "online" and self._queues["online"]:
            return False
        # A batch row in a slot for batch rows takes no online slot: the engine makes it wait.
        in_slots = self.running - self.slotless - self.batch_running * self.engine_shares_steps
        return in_slots < self.max_running

    def _admit(self) -> None:
        while self._waiting and self._open:
            ready = [kind for kind in QUEUES if self._queues[kind] and self._has_room(kind)]
            if not ready:
                return
            # Online requests first; those that need an idle slot in the order of their arrival.
            kind = min(ready, key=lambda kind: (kind != "online", self._queues[kind][0][:2]))
            _, _, admitted = heappop(self._queues[kind])
            self._waiting -= 1
            if not admitted.done():
                self.running += 1
                self.batch_running += kind == "batch"
                admitted.set_result(None)

    def _notify_if_idle(self) -> None:
        if not self.running:
            self._wake_drains()
            if not self._waiting:
                self._on_idle()

    def _wake_drains(self) -> None:
        drains, self._drains = self._drains, []
        for drained in drains:
            if not drained.done():
                drained.set_result(None)
