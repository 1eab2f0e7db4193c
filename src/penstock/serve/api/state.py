"""The state that all requests to one ingress share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from penstock.errors import ShuttingDownError
from penstock.serve.api.metrics import Metrics
from penstock.serve.api.public_errors import model_sources
from penstock.serve.config.settings import HttpSettings
from penstock.serve.http.interrupt import Interrupt
from penstock.serve.models.names import ModelNames

LAST_WORDS_S = 1.0
"""How long aborted requests may take to send their errors."""


class IngressState:
    """The models, settings and metrics of an ingress, and its requests under way."""

    def __init__(self, models: ModelNames, settings: HttpSettings) -> None:
        self.models = models
        self.settings = settings
        self.metrics = Metrics(models.handles)
        self.sources = model_sources(models.handles.values())
        """Paths of models, which only operators may see."""
        self.openapi: dict[str, Any] = {}
        """The OpenAPI document of the ingress's endpoints."""
        self.reply_headers: Callable[[], list[tuple[bytes, bytes]]] = list
        """Gives headers for every reply."""
        self.draining = False
        self.inflight = 0
        """Requests whose head has arrived."""
        self.answering = 0
        """Requests that use an engine, and whose body has arrived."""
        self.live: set[Interrupt] = set()
        """Waits for an engine, which a shutdown ends early."""
        self.watchers: set[Interrupt] = set()
        """Requests without an end of their own."""
        self._idle = asyncio.Event()
        self._idle.set()

    def begin(self) -> None:
        self.inflight += 1
        self._idle.clear()

    def end(self) -> None:
        self.inflight -= 1
        if not self.inflight:
            self._idle.set()

    async def drain(self, timeout_s: float, hurry: asyncio.Event | None = None) -> bool:
        """Take no more requests, wait for those under way, then abort them. Returns whether all
        finished by themselves.

        `hurry`, once set, ends the wait.
        """
        self.draining = True
        for watcher in list(self.watchers):
            watcher.fire(ShuttingDownError("the server is shutting down"))
        if await self._wait_idle(timeout_s, hurry):
            return True
        for interrupt in list(self.live):
            interrupt.fire(ShuttingDownError("the server is shutting down"))
        # They send their errors. The wait does not include clients that stop reading.
        await self._wait_idle(LAST_WORDS_S, None)
        return False

    async def _wait_idle(self, timeout_s: float, hurry: asyncio.Event | None) -> bool:
        waiting = {
            asyncio.ensure_future(event.wait())
            for event in (self._idle, hurry)
            if event is not None
        }
        try:
            await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        return self._idle.is_set()
