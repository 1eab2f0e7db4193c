"""What all requests to one ingress share."""

from __future__ import annotations

import asyncio
from typing import Any

from penstock.errors import ShuttingDownError
from penstock.serve.api.metrics import Metrics
from penstock.serve.api.public_errors import model_sources
from penstock.serve.config.settings import HttpSettings
from penstock.serve.http.interrupt import Interrupt
from penstock.serve.models.names import ModelNames

LAST_WORDS_S = 1.0
"""How long aborted requests may take to tell their clients."""


class IngressState:
    """The models, settings, metrics, and the requests under way."""

    def __init__(self, models: ModelNames, settings: HttpSettings) -> None:
        self.models = models
        self.settings = settings
        self.metrics = Metrics(models.handles)
        self.sources = model_sources(models.handles.values())
        """Paths of models, which only who runs the server is told."""
        self.openapi: dict[str, Any] = {}
        """The description of the API."""
        self.draining = False
        self.inflight = 0
        """Requests whose head has come."""
        self.answering = 0
        """Those of them that make an engine work, and whose body has come."""
        self.live: set[Interrupt] = set()
        """Requests that wait for an engine, each to be ended early if it must."""
        self.watchers: set[Interrupt] = set()
        """Requests without an end of their own."""
        self._idle = asyncio.Event()
        self._idle.set()

    def begin(self) -> None:
        """Count a request in."""
        self.inflight += 1
        self._idle.clear()

    def end(self) -> None:
        """Count a request out."""
        self.inflight -= 1
        if not self.inflight:
            self._idle.set()

    async def drain(self, timeout_s: float, hurry: asyncio.Event | None = None) -> bool:
        """Take no more requests; wait for those under way, then abort them. Tells whether none was
        aborted.

        `hurry`, once set, ends the waiting.
        """
        self.draining = True
        for watcher in list(self.watchers):
            watcher.fire(ShuttingDownError("the server is shutting down"))
        if await self._wait_idle(timeout_s, hurry):
            return True
        for interrupt in list(self.live):
            interrupt.fire(ShuttingDownError("the server is shutting down"))
        # They have their errors to send; a client that does not read its own is not waited for.
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
