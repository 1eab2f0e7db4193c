"""Gets a request answered: tries again what may pass, and finds the request that kills the
engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TypeVar

from msgspec import Struct

from penstock.balance.backoff import Retry
from penstock.batch.job.policy import ErrorPolicy
from penstock.batch.rows.row import Stage
from penstock.engines.base import Capabilities
from penstock.engines.supervisor import Supervisor
from penstock.errors import (
    EngineDeadError,
    EngineError,
    JobError,
    PenstockError,
    QuarantinedError,
    told,
)

LONGEST_PAUSE = 5.0
ROW_LIMIT: ContextVar[asyncio.Timeout | None] = ContextVar("row_limit", default=None)
"""The limit on the row's time, if it has one. It stands still while the row waits for an engine
that others killed.
"""

T = TypeVar("T")


class Tries(Struct):
    """How often a row was asked, and at which stage it is."""

    count: int = 0
    stage: Stage = "engine"


class Attempts:
    """Asks an engine, each request up to `most` times, deaths of the engine not counted.

    `pause` is that before the second attempt, in seconds; it doubles up to 5 s. While `is_ending`
    says so, nothing is tried again. `policy` says which failures may pass beyond those that say so
    themselves.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        is_ending: Callable[[], bool],
        *,
        most: int = 3,
        pause: float = 0.1,
        policy: ErrorPolicy | None = None,
    ) -> None:
        self._policy = policy or ErrorPolicy("keep")
        self._is_ending = is_ending
        self._supervisor = supervisor
        self._retry = Retry(most=most, first_s=pause, longest_s=LONGEST_PAUSE)

    async def answer(
        self,
        ask: Callable[[], Awaitable[T]],
        adapter: tuple[str, str | None] | None,
        tries: Tries,
        key: Callable[[], bytes],
    ) -> T:
        """What `ask` returns, with the adapter (its name, and where it lies if known) made ready.
        `key` gives the digest that names the request.

        Raises the failure of the last attempt, `QuarantinedError` if the request kills the engine,
        or `JobError` if the engine is beyond help. A death of the engine spends no attempt:
        `Quarantine` finds out whose fault it was.
        """
        supervisor = self._supervisor
        limit = ROW_LIMIT.get()
        clock = None if limit is None else _RowClock(limit)
        attempts = 0
        with supervisor.quarantine.visit(key, self._goes_on) as visit:
            while True:
                failure: PenstockError
                if clock is not None and supervisor.quarantine.troubled:
                    clock.stop()
                try:
                    async with visit:
                        if clock is not None:
                            clock.go_on()
                        tries.count += 1
                        try:
                            if adapter is not None:
                                await supervisor.adapter(*adapter)
                            return await ask()
                        except EngineDeadError:
                            if clock is not None:
                                clock.stop()
                            raise
                    continue  # the engine died, and runs again
                except QuarantinedError:
                    raise
                except PenstockError as error:
                    failure = error
                except Exception as error:
                    failure = EngineError(told(error))
                if supervisor.phase == "failed" and not self._is_ending():
                    raise JobError(_beyond_help(supervisor)) from supervisor.error
                if isinstance(failure, EngineDeadError):
                    raise failure
                attempts += 1
                # None where the row can be retried later.
                pause = self._retry.pause(failure, attempts)
                if pause is None or self._is_ending() or not self._policy.retries(failure):
                    raise failure
                await asyncio.sleep(pause)

    def _goes_on(self) -> bool:
        return not self._is_ending()


def _beyond_help(supervisor: Supervisor) -> str:
    if not isinstance(supervisor.error, EngineDeadError):
        return f"the engine died and does not start again: {supervisor.error}"
    return (
        f"the engine died {supervisor.deaths} times without finishing a row, at last of the least"
        f" that can be asked: {supervisor.error}"
    )


class _RowClock:
    """Stops a row's limit while the row waits for what is not its own fault."""

    def __init__(self, limit: asyncio.Timeout) -> None:
        self._limit = limit
        self._left: float | None = None

    def stop(self) -> None:
        limit = self._limit
        if self._left is not None or limit.expired():
            return
        when = limit.when()
        if when is not None:
            self._left = when - asyncio.get_running_loop().time()
            limit.reschedule(None)

    def go_on(self) -> None:
        if self._left is not None:
            self._limit.reschedule(asyncio.get_running_loop().time() + self._left)
            self._left = None


def rolling(capabilities: Capabilities) -> int:
    """How many requests keep an engine full."""
    concurrency = capabilities.max_concurrency
    return capabilities.batch_in_flight or max(concurrency + 2, concurrency + concurrency // 4)
