"""One engine's way from cold to ready and back: loading, sleeping, unloading, and starting again after a death."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Literal

from penstock.engines.base import LLMEngine
from penstock.engines.supervision.probe import probe
from penstock.engines.supervision.quarantine import Quarantine
from penstock.errors import EngineDeadError, EngineStartError, EngineTimeoutError, PenstockError, UnsupportedError

RESTART_DELAYS_S = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Waits before the successive restarts of an engine that dies without finishing a request in between; when they are
used up it has failed.
"""
RETRY_DELAYS_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Waits before a failed engine may be tried again, after the first failure, the second, and so on."""

_log = logging.getLogger(__name__)


class Lifecycle:
    """Starts and stops one engine, one change at a time.

    `make_room` is awaited before the engine takes memory, `free_room` is called when it has given it back;
    `before_start` is awaited before the engine starts, `on_ready` with the engine running, before anybody may use it.
    `on_change` is called when the phase has become "ready" or "failed". `quarantine` is asked, and told, what a death
    proves.
    """

    def __init__(
        self,
        engine: LLMEngine,
        *,
        start_timeout_s: float,
        make_room: Callable[[], Awaitable[None]],
        free_room: Callable[[], None],
        before_start: Callable[[], Awaitable[None]],
        on_ready: Callable[[], Awaitable[None]],
        on_change: Callable[[], None],
        quarantine: Quarantine,
    ) -> None:
        self.engine = engine
        self.phase: Literal["cold", "loading", "ready", "asleep", "failed"] = "cold"
        self.reason = ""
        self.generation = 0
        """How many times the engine was started."""
        self.restarts = 0
        """How many of these starts followed its death."""
        self._start_timeout_s = start_timeout_s
        self._make_room = make_room
        self._free_room = free_room
        self._before_start = before_start
        self._on_ready = on_ready
        self._on_change = on_change
        self._quarantine = quarantine
        self._timed_out = False
        self._task: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()
        self._failures = 0
        self._restarts = 0
        self._retry_at = 0.0

    def load(self) -> None:
        """Begin to load, or to wake, unless that is done or under way; `ready` waits for it."""
        if self.phase not in ("ready", "loading"):
            self._begin(self._load())

    def restart(self, generation: int) -> bool:
        """Begin to start a dead engine again, and say so; not if that was done since `generation`."""
        if self.phase != "ready" or generation != self.generation:
            return False
        self._begin(self._restart())
        return True

    async def ready(self) -> None:
        """Wait until the engine is ready. Raises what keeps it from that."""
        while self.phase == "loading" and self._task is not None:
            await asyncio.wait([self._task])
        if self.phase != "ready":
            raise self.failure()

    def failure(self) -> PenstockError:
        """A new error that tells why the engine cannot be used."""
        if self.phase != "failed":
            return EngineDeadError(f"'{self.engine.model_source}' is not loaded")
        error = EngineTimeoutError(self.reason) if self._timed_out else EngineStartError(self.reason)
        error.retry_after = max(self._retry_at - asyncio.get_running_loop().time(), 0.0)
        return error

    @property
    def may_retry(self) -> bool:
        """Whether a failed engine has waited long enough to be tried again."""
        return asyncio.get_running_loop().time() >= self._retry_at

    def worked(self) -> None:
        """A request was finished: the engine is of use, and its next death counts as the first."""
        self._restarts = 0

    async def sleep(self, level: int) -> None:
        """Give the memory back until `load`. An engine without a sleep of its own is stopped."""
        async with self._changing:
            if self.phase != "ready":
                return
            try:
                await self.engine.sleep(level)
            except UnsupportedError:
                await self.engine.stop()
            self.phase = "asleep"
            self._free_room()

    async def unload(self) -> None:
        """Stop the engine and free its memory. It may be loaded again."""
        task, self.phase, self.reason = self._task, "cold", ""
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task])
        async with self._changing:
            try:
                await self.engine.stop()
            finally:
                self._free_room()

    def _begin(self, change: Coroutine[Any, Any, None]) -> None:
        self.phase, self.reason = "loading", ""
        self._task = asyncio.create_task(change)

    async def _load(self) -> None:
        async with self._changing:
            try:
                await self._start()
            except Exception as error:
                await self._failed(error)

    async def _restart(self) -> None:
        async with self._changing:
            error: Exception = EngineDeadError(f"it died {self._restarts + 1} times without finishing a request")
            while self._restarts < len(RESTART_DELAYS_S):
                delay = RESTART_DELAYS_S[self._restarts]
                self._restarts += 1
                _log.warning("'%s': the engine died; restart %d", self.engine.model_source, self._restarts)
                await asyncio.sleep(delay)
                try:
                    await self.engine.stop()
                    await self._start(self._prove)
                    self.restarts += 1
                    return
                except Exception as failed:
                    error = failed
            await self._failed(error)

    async def _prove(self) -> None:
        """Where deaths follow one another, see whether the engine lives without its requests. Raises if it does not."""
        if self._restarts < 2 and not self._quarantine.wants_probe:
            return
        try:
            await probe(self.engine)
        except EngineDeadError:
            self._quarantine.absolve()
            raise
        self._quarantine.answered()
        self._restarts = 0

    async def _start(self, prove: Callable[[], Awaitable[None]] | None = None) -> None:
        waits_for = "memory"
        try:
            async with asyncio.timeout(self._start_timeout_s):
                await self._make_room()
                waits_for = "the engine"
                await self._before_start()
                await self.engine.start()
                if await self.engine.is_sleeping():
                    await self.engine.wakeup()
                await self._on_ready()
                if prove is not None:
                    await prove()
        except TimeoutError:
            raise EngineTimeoutError(f"waited {self._start_timeout_s:g} s for {waits_for}") from None
        self.generation += 1
        self._failures = 0
        self.phase = "ready"
        self._on_change()

    async def _failed(self, error: Exception) -> None:
        with contextlib.suppress(Exception):  # what is told is the first error
            await self.engine.stop()
        self._free_room()
        self._timed_out = isinstance(error, EngineTimeoutError)
        known = isinstance(error, PenstockError)
        why = str(error) if known else f"{type(error).__name__}: {error}"
        self.reason = f"the {self.engine.name} engine cannot serve '{self.engine.model_source}': {why}"
        _log.error("%s", self.reason, exc_info=None if known else error)
        delay = RETRY_DELAYS_S[min(self._failures, len(RETRY_DELAYS_S) - 1)]
        self._retry_at = asyncio.get_running_loop().time() + delay
        self._failures += 1
        self._restarts = 0
        self.phase = "failed"
        self._on_change()
