"""Gets a request answered: tries again what may pass, and finds the request that kills the engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from penstock.backoff import backoff
from penstock.batch.counts import Counts
from penstock.batch.keeper import EngineKeeper
from penstock.batch.policy import ErrorPolicy
from penstock.batch.requests import EngineForm
from penstock.batch.rows import Outcome, Row
from penstock.engines.base import Capabilities
from penstock.errors import EngineDeadError, EngineError, JobError, PenstockError, told

LONGEST_PAUSE = 5.0
PATIENCE = 60.0
"""In seconds. A failure that names a longer pause is not waited out: the row is an error row that can be retried."""

T = TypeVar("T")


class Tries:
    """How often a request was put to the engine."""

    def __init__(self) -> None:
        self.count = 0


class Attempts:
    """Asks an engine, each request up to `most` times.

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

    async def answer(self, ask: Callable[[], Awaitable[T]], adapter: str | None, tries: Tries) -> T:
        """What `ask` returns, `adapter` having been made ready for it.

        Raises the failure of the last attempt, or `JobError` if the engine is beyond help.
        """
        keeper = self._keeper
        deaths = 0
        while True:
            tries.count += 1
            generation = keeper.generation
            failure: PenstockError
            try:
                if not deaths:
                    return await self._ask(ask, adapter)
                # It was there when the engine died, and may be the cause. Such requests go in small groups, and alone
                # when that has killed the engine too: the one that does it spends its own attempts, not the others'.
                async with keeper.suspected(alone=deaths > 1):
                    generation = keeper.generation
                    return await self._ask(ask, adapter)
            except EngineDeadError as error:
                deaths += 1
                failure = error
                if not self._is_ending():
                    await keeper.revive(generation)
            except PenstockError as error:
                failure = error
            except Exception as error:
                failure = EngineError(told(error))
            given_up = tries.count >= self._most or (failure.retry_after or 0.0) > PATIENCE
            if given_up or self._is_ending() or not self._policy.retries(failure):
                keeper.progressed()  # this request is done with, well or not
                raise failure
            await asyncio.sleep(self._pause_after(tries.count, failure))

    async def _ask(self, ask: Callable[[], Awaitable[T]], adapter: str | None) -> T:
        if adapter is not None:
            await self._keeper.adapter(adapter)
        answer = await ask()
        self._keeper.progressed()
        return answer

    def _pause_after(self, attempts: int, failure: PenstockError) -> float:
        pause = backoff(attempts, first=self._pause, longest=LONGEST_PAUSE)
        return max(pause, failure.retry_after or 0.0)


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
            outcome = await self._attempts.answer(lambda: self.form.ask(self.engine, row), row.request.adapter, tries)
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
