"""What the controller of `penstock.engines.sharing` sees of simulated steps, and does with them.

A batch request that leaves a step keeps its tokens, and goes on where it was.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

from penstock.engines.sharing import Controller, Observed
from penstock.engines.token_engine import GenerateRequest
from penstock.llm_config.batch import BatchConfig


class Item(Protocol):
    """A request inside the step loop, with the number of its tokens."""

    request: GenerateRequest
    emitted: int


T = TypeVar("T", bound=Item)


class SharedSteps(Generic[T]):
    """Lets requests of both classes into `slots`. Before the first batch request it decides
    nothing.
    """

    def __init__(self, config: BatchConfig, slots: int) -> None:
        self.controller = Controller(config)
        self.waiting: deque[T] = deque()
        """Batch requests."""
        self.pause = 0.0
        self._slots = slots
        self._on = False
        self._due: set[int] = set()

    def queue_of(self, item: T, online: deque[T]) -> deque[T]:
        """The queue of a request's class."""
        return self.waiting if item.request.batch else online

    def came(self, item: T) -> None:
        """A request has come just now."""
        if item.request.batch:
            self._on = True
        elif self._on:
            self._due.add(id(item))
            self.controller.arrived(id(item), asyncio.get_running_loop().time())

    def admitted(self, now: float, running: dict[T, None], online: deque[T]) -> list[T]:
        """Let requests in, the batch's as far as the controller allows; others of it leave."""
        new: list[T] = []
        granted = False
        if self._on:
            batch = [item for item in running if item.request.batch]
            seen = Observed(
                len(running) - len(batch), len(online), len(batch), len(self.waiting), self._slots
            )
            rows, _, granted = self.controller.decide(now, seen)
            self.pause = self.controller.lengths(1)
            for item in reversed(batch[rows:]):
                del running[item]
                self.waiting.appendleft(item)
                self.controller.evictions += 1
        while online and len(running) < self._slots - granted:
            new.append(item := online.popleft())
            running[item] = None
        free = self._slots - len(running)
        if self._on:
            free = min(free, rows - sum(item.request.batch for item in running))
        for _ in range(min(free, len(self.waiting))):
            new.append(item := self.waiting.popleft())
            running[item] = None
        return new

    def stepped(self, began: float, ended: float, ready: Iterable[T]) -> None:
        """These have got a token."""
        if not self._on:
            return
        classes = [item.request.batch for item in ready]
        batch = sum(classes)
        self.controller.stepped(began, ended, online=len(classes) - batch, batch=batch)
        for item in ready:
            if id(item) in self._due and item.emitted:
                self._due.discard(id(item))
                self.controller.answered(id(item), ended)

    def gone(self, item: T) -> None:
        """A request has ended, or was given up."""
        if id(item) in self._due:
            self._due.discard(id(item))
            self.controller.gone(id(item))

    def metrics(self) -> dict[str, float]:
        """Those of the controller, once there was batch work."""
        return self.controller.metrics() if self._on else {}
