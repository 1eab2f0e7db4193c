"""Gets a request answered: tries again what may pass, and finds the request that kills the engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Protocol, TypeVar

from penstock.balance.backoff import backoff
from penstock.balance.pauses import PATIENCE_S
from penstock.batch.job.counts import Counts
from penstock.batch.job.policy import ErrorPolicy
from penstock.batch.rows.requests import EngineForm
from penstock.batch.rows.row import Outcome, Row
from penstock.engines.base import Capabilities
from penstock.engines.supervision.keeper import EngineKeeper
from penstock.errors import EngineDeadError, EngineError, JobError, PenstockError, QuarantinedError, told

LONGEST_PAUSE = 5.0
ROW_LIMIT: ContextVar[asyncio.Timeout | None] = ContextVar("row_limit", default=None)
"""The limit on the row's time, if it has one. It stands still while the row waits for an engine that others killed."""

T = TypeVar("T")


class Tries:
    """How often a request was put to the engine."""

    def __init__(self) -> None:
        self.count = 0


class Attempts:
    """Asks an engine, each request up to `most` times, deaths of the engine not counted.

    `pause` is that before the second attempt, in seconds; it doubles up to 5 s. While `is_ending` says so,
    nothing is tried again. `policy` says which failures may pass beyond those that say so themselves.
    """

    def __init__(
        self,
        keeper: EngineKeeper,
        is_ending: Callable[[], bool],
        *,
        most: int = 3,
        pause: float = 0.1,
        policy: ErrorPolicy | None = None,
    ) -> None:
        self._policy = policy or ErrorPolicy("keep")
        self._is_ending = is_ending
        self._keeper = keeper
        self._most = most
        self._pause = pause

    async def answer(
        self, ask: Callable[[], Awaitable[T]], adapter: str | None, tries: Tries, key: Callable[[], bytes]
    ) -> T:
        """What `ask` returns, `adapter` having been made ready for it. `key` gives the digest that names the request.

        Raises the failure of the last attempt, `QuarantinedError` if the request kills the engine, or `JobError` if
        that is beyond help. A death of the engine spends no attempt: `Quarantine` finds out whose fault it was.
        """
        keeper = self._keeper
        clock = _RowClock(ROW_LIMIT.get())
        attempts = 0
        with keeper.quarantine.visit(key) as visit:
            while True:
                failure: PenstockError
                if keeper.quarantine.troubled:
                    clock.stop()
                try:
                    async with visit:
                        clock.go_on()
                        generation = keeper.generation
                        tries.count += 1
                        return await self._ask(ask, adapter)
                except EngineDeadError:
                    if self._is_ending():
                        keeper.quarantine.reopen()  # those that wait end too
                        raise
                    clock.stop()
                    await keeper.revive(generation)
                    continue
                except QuarantinedError:
                    raise
                except PenstockError as error:
                    failure = error
                except Exception as error:
                    failure = EngineError(told(error))
                attempts += 1
                keeper.progressed()  # it lives
                too_long = (failure.retry_after or 0.0) > PATIENCE_S  # the row is an error row that can be retried
                given_up = attempts >= self._most or failure.given_up or too_long
                if given_up or self._is_ending() or not self._policy.retries(failure):
                    raise failure
                await asyncio.sleep(self._pause_after(attempts, failure))

    async def _ask(self, ask: Callable[[], Awaitable[T]], adapter: str | None) -> T:
        if adapter is not None:
            await self._keeper.adapter(adapter)
        answer = await ask()
        self._keeper.progressed()
        return answer

    def _pause_after(self, attempts: int, failure: PenstockError) -> float:
        pause = backoff(attempts, first=self._pause, longest=LONGEST_PAUSE)
        return max(pause, failure.retry_after or 0.0)


class _RowClock:
    """Stops a row's limit while the row waits for what is not its own fault."""

    def __init__(self, limit: asyncio.Timeout | None) -> None:
        self._limit = limit
        self._left: float | None = None

    def stop(self) -> None:
        limit = self._limit
        if limit is None or self._left is not None or limit.expired():
            return
        when = limit.when()
        if when is not None:
            self._left = when - asyncio.get_running_loop().time()
            limit.reschedule(None)

    def go_on(self) -> None:
        if self._limit is not None and self._left is not None:
            self._limit.reschedule(asyncio.get_running_loop().time() + self._left)
            self._left = None


class Asker(Protocol):
    """Gets the rows of a job answered.

    `most_in_flight` is how many rows it wants at a time. When `ending` is set, nothing is tried again.
    """

    ending: bool
    most_in_flight: int

    async def outcome(self, row: Row) -> Outcome | None:
        """The row's outcome, good or bad; None if the job ends before it has had its attempts.

        Raises `JobError` if there is no use in going on.
        """


class EngineAsker:
    """Puts each row's one request to a running engine."""

    def __init__(
        self,
        keeper: EngineKeeper,
        form: EngineForm,
        counts: Counts,
        *,
        most: int = 3,
        policy: ErrorPolicy | None = None,
    ) -> None:
        self.most_in_flight = rolling(keeper.engine.capabilities)
        self.ending = False
        self._attempts = Attempts(keeper, lambda: self.ending, most=most, policy=policy)
        self.engine = keeper.engine
        self.form = form
        self._counts = counts

    async def outcome(self, row: Row) -> Outcome | None:
        tries = Tries()
        began = time.perf_counter()
        try:
            outcome = await self._attempts.answer(
                lambda: self.form.ask(self.engine, row), row.request.adapter, tries, lambda: row.digest
            )
            outcome.attempts = tries.count
        except JobError:
            raise
        except PenstockError as error:
            if self.ending and error.retryable:
                return None  # it gets its attempts when the job resumes
            outcome = self.form.failure(row, error, "engine", tries.count)
        finally:
            self._counts.engine_calls += tries.count
        outcome.latency_ms = round((time.perf_counter() - began) * 1000, 3)
        return outcome


def rolling(capabilities: Capabilities) -> int:
    """How many requests keep an engine full."""
    concurrency = capabilities.max_concurrency
    return capabilities.batch_in_flight or max(concurrency + 2, concurrency + concurrency // 4)
