"""Gets a row answered: tries again what may pass, and finds the row that kills the engine."""

from __future__ import annotations

import asyncio
import random
import time

from penstock.batch.counts import Counts
from penstock.batch.keeper import EngineKeeper
from penstock.batch.requests import RequestForm
from penstock.batch.rows import Outcome, Row
from penstock.errors import EngineDeadError, EngineError, OverloadedError, PenstockError, UnavailableError

LONGEST_PAUSE = 5.0


class Attempts:
    """Asks the engine for rows, each up to `most` times.

    `pause` is that before the second attempt, in seconds; it doubles, with jitter, up to 5 s. When `ending` is
    set, no row is tried again.
    """

    def __init__(
        self, keeper: EngineKeeper, form: RequestForm, counts: Counts, *, most: int = 3, pause: float = 0.1
    ) -> None:
        self.ending = False
        self._keeper = keeper
        self._form = form
        self._counts = counts
        self._most = most
        self._pause = pause
        self._suspects = asyncio.Lock()
        self._random = random.Random(0)

    async def outcome(self, row: Row) -> Outcome | None:
        """The row's outcome, good or bad; None if the job ends before it has had its attempts.

        Raises `JobError` if the engine is beyond help.
        """
        keeper = self._keeper
        began = time.perf_counter()
        attempts = deaths = 0
        while True:
            attempts += 1
            self._counts.engine_calls += 1
            generation = keeper.generation
            failure: PenstockError
            try:
                if not deaths:
                    outcome = await self._ask(row)
                else:
                    # It was there when the engine died, and may be the cause. Such rows go one at a time, so that
                    # the one that kills the engine spends its own attempts and not those of the others.
                    async with self._suspects:
                        generation = keeper.generation
                        outcome = await self._ask(row)
                outcome.attempts = attempts
                outcome.latency_ms = round((time.perf_counter() - began) * 1000, 3)
                return outcome
            except EngineDeadError as error:
                deaths += 1
                failure = error
                if not self.ending:
                    await keeper.revive(generation)
            except PenstockError as error:
                failure = error
            except Exception as error:
                failure = EngineError(f"{type(error).__name__}: {error}")
            if self.ending and failure.retryable:
                return None  # it gets its attempts when the job resumes
            if not failure.retryable or attempts >= self._most:
                outcome = self._form.failure(row, failure, "engine", attempts)
                outcome.latency_ms = round((time.perf_counter() - began) * 1000, 3)
                return outcome
            await asyncio.sleep(self._pause_after(attempts, failure))

    async def _ask(self, row: Row) -> Outcome:
        if row.request.adapter is not None:
            await self._keeper.adapter(row.request.adapter)
        return await self._form.ask(self._keeper.engine, row)

    def _pause_after(self, attempts: int, failure: PenstockError) -> float:
        pause: float = min(self._pause * 2.0 ** (attempts - 1), LONGEST_PAUSE) * (0.5 + self._random.random())
        return max(pause, failure.retry_after) if isinstance(failure, (OverloadedError, UnavailableError)) else pause
