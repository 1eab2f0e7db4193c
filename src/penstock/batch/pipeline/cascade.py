"""The step of a job with a small and a large model: rows that the small one is unsure of go to the
large one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncGenerator, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from penstock.batch.decisions.thresholds import ALL_TO_LARGE, least_confidence
from penstock.batch.job.policy import ErrorPolicy, Limits
from penstock.batch.job.result import Counts
from penstock.batch.pipeline.pipeline import ROW_LIMIT, Asked, Attempts, Tries, rolling
from penstock.batch.read.sources import Source, read_ahead
from penstock.batch.rows.cascaded import CascadedAnswers
from penstock.batch.rows.decisions import ColumnDecisions
from penstock.batch.rows.intake import prepare
from penstock.batch.rows.row import Outcome, Row
from penstock.batch.write.state_files import replace_file
from penstock.engines.base import LLMEngine
from penstock.engines.side_by_side import all_of
from penstock.engines.supervisor import supervisor_of
from penstock.errors import JobError, JobLimitError, PenstockError
from penstock.types import Usage

_SAMPLE = 200
_FEWEST = 60
_log = logging.getLogger(__name__)


class Choice(Struct, frozen=True):
    """What was chosen before the first row. `least`: an answer of the small model stands if it has
    at least this confidence; None: no answer stands. `answers`: those of the large model to the
    sampled rows, by the digests of their requests.
    """

    least: float | None
    answers: dict[str, Outcome]


class CascadeStep:
    """Asks the first of two `engines`, and the second if the first has too little confidence.

    The confidence that it needs is chosen before the first row, on a random sample of rows that
    both engines answer: see `least_confidence` for `target` and `delta`. A job that is resumed
    takes the choice from the file `memory`.
    """

    def __init__(
        self,
        engines: tuple[LLMEngine, LLMEngine],
        form: ColumnDecisions | CascadedAnswers,
        source: Source,
        *,
        limit: int | None = None,
        target: float = 0.95,
        delta: float = 0.05,
        seed: int = 0,
        most_attempts: int = 3,
        policy: ErrorPolicy | None = None,
        limits: Limits | None = None,
        row_timeout: float | None = None,
    ) -> None:
        self.engines = engines
        self.memory: Path | None = None
        self.counts = Counts()
        self._form: Any = form
        self._source = source
        self._limit = limit
        self._target, self._delta = target, delta
        self._seed = seed
        self._most_attempts = most_attempts
        self._policy = policy
        self._limits = limits or Limits()
        self._row_timeout = row_timeout
        self._ending = False
        self._choice = Choice(None, {})

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[int, None]:
        async with contextlib.AsyncExitStack() as stack:
            self._attempts: list[Attempts] = []
            for engine, check in zip(
                self.engines, (self._form.check_small, self._form.check_engine), strict=True
            ):
                supervisor = supervisor_of(engine)
                check(await stack.enter_async_context(supervisor.running()))
                self._attempts.append(
                    Attempts(
                        supervisor,
                        lambda: not self._ending,
                        most=self._most_attempts,
                        policy=self._policy,
                    )
                )
            together = rolling(self.engines[0].capabilities)
            began = time.perf_counter()
            self._choice = await self._in_time(self._chosen(together))
            self.counts.row_seconds = time.perf_counter() - began
            yield together

    async def answer(self, row: Row, tries: Tries) -> Outcome:
        known = self._choice.answers.get(row.digest.hex())
        if known is not None:
            return msgspec.structs.replace(known)
        small, usage = await self._ask(0, row, tries)
        needed = ALL_TO_LARGE if self._choice.least is None else self._choice.least
        if self._form.confidence(small) >= needed:
            return self._outcome(small, usage, 0)
        self.counts.large_calls += 1
        large, more = await self._ask(1, row, tries)
        return self._outcome(large, usage + more, 1)

    def asked(self, row: Row) -> Asked | None:
        return None

    def end(self) -> None:
        self._ending = True

    async def _ask(self, place: int, row: Row, tries: Tries) -> Any:
        ask = partial(self._form.ask_one, self.engines[place], row, small=place == 0)
        return await self._attempts[place].answer(ask, None, tries, lambda: row.digest)

    def _outcome(self, answered: Any, usage: Usage, place: int) -> Outcome:
        found: Outcome = self._form.outcome_of(answered, usage, self.engines[place].model_source)
        return found

    async def _in_time(self, choosing: Coroutine[Any, Any, Choice]) -> Choice:
        try:
            async with asyncio.timeout(self._limits.seconds) as limit:
                return await choosing
        except TimeoutError:
            if not limit.expired():
                raise
            raise JobLimitError("the deadline is reached, before the first row") from None

    async def _chosen(self, together: int) -> Choice:
        """The choice of an earlier run, else a new one."""
        if self.memory is not None and self.memory.exists():
            try:
                return msgspec.json.decode(self.memory.read_bytes(), type=Choice)
            except (OSError, msgspec.DecodeError) as error:
                raise JobError(
                    f"{self.memory} is damaged ({error}); --fresh begins again"
                ) from None
        rows = await self._drawn()
        slots = asyncio.Semaphore(together)

        async def both(row: Row) -> tuple[Any, Any, Outcome] | None:
            async with slots:
                tries = Tries()
                try:
                    async with asyncio.timeout(self._row_timeout) as limit:
                        ROW_LIMIT.set(limit)
                        small, usage = await self._ask(0, row, tries)
                        large, more = await self._ask(1, row, tries)
                except JobError:
                    raise
                except (PenstockError, TimeoutError):
                    return None  # the row will fail in the job too, and tells nothing here
                finally:
                    self.counts.engine_calls += tries.count
                outcome = self._outcome(large, usage + more, 1)
                outcome.attempts = tries.count
                return small, large, outcome

        found = await all_of(both(row) for row in rows)
        self.counts.large_calls += len(rows)
        form = self._form
        pairs = [each for each in found if each is not None]
        sure = [form.confidence(small) for small, _, _ in pairs]
        agree = [form.compared(small) == form.compared(large) for small, large, _ in pairs]
        least = least_confidence(sure, agree, self._target, self._delta)
        if least > max(sure, default=0.0):
            _log.warning(
                "A sample of %d rows shows no confidence from which the small model reaches the"
                " target, so all rows go to the large one.",
                len(pairs),
            )
        choice = Choice(
            None if least == ALL_TO_LARGE else least,
            {
                row.digest.hex(): each[2]
                for row, each in zip(rows, found, strict=True)
                if each is not None
            },
        )
        if self.memory is not None:
            # Rows that failed are left out, so that `retry_failed` asks them again.
            good = {name: one for name, one in choice.answers.items() if one.error is None}
            replace_file(self.memory, msgspec.json.encode(Choice(choice.least, good)))
        return choice

    async def _drawn(self) -> list[Row]:
        """A random sample of the rows: at most a fifth of them, or `_FEWEST` if that is more."""
        draw = random.Random(self._seed)
        kept: list[Row] = []
        good = 0
        ahead = read_ahead(self._source, 0, self._limit, self._form.columns)
        async with contextlib.aclosing(ahead) as batches:
            async for batch in batches:
                async for rows in self._form.ready(batch):
                    for row in rows:
                        if prepare(self._form, row) is not None:
                            continue
                        good += 1
                        if len(kept) < _SAMPLE:
                            kept.append(row)
                        elif (place := draw.randrange(good)) < _SAMPLE:
                            kept[place] = row
        draw.shuffle(kept)
        return kept[: max(_FEWEST, good // 5)]
