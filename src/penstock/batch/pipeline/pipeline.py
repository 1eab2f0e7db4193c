"""Gets the rows of a job answered by one step: an engine, or the stages of a processor."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

from penstock.batch.job.counts import Counts
from penstock.batch.job.policy import ErrorPolicy
from penstock.batch.rows.form import EngineForm, RowForm
from penstock.batch.rows.repair import Repair, Request
from penstock.batch.rows.retry import Attempts, Tries, rolling
from penstock.batch.rows.row import Outcome, Row
from penstock.engines.base import LLMEngine
from penstock.engines.model_files import adapter_path
from penstock.engines.supervisor import supervisor_of
from penstock.errors import JobError, PenstockError
from penstock.types import ChatRequest


class Asked(NamedTuple):
    """What an engine is asked for a row, where that shows before anything has been done with it."""

    engine: LLMEngine
    request: Request
    repair: Repair


class Step(Protocol):
    """What answers rows. Once it is told to `end`, nothing is tried again."""

    def running(self) -> AbstractAsyncContextManager[int]:
        """Start it, for as long as the context lasts. Gives how many rows it wants at a time."""

    def answer(self, row: Row, tries: Tries) -> Awaitable[Outcome]:
        """The row's outcome, `tries` being kept up to date. Raises `PenstockError`."""

    def asked(self, row: Row) -> Asked | None:
        """What an engine will be asked for a prepared row, if known. Raises `PenstockError`."""

    def end(self) -> None: ...


class Pipeline:
    """A job's step, running.

    `most_in_flight` is how many rows it wants at a time. When `ending`, nothing is tried again.
    """

    def __init__(self, step: Step, form: RowForm, counts: Counts) -> None:
        self.step = step
        self.most_in_flight = 0
        self.ending = False
        self._answer = step.answer
        self._form = form
        self._counts = counts

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[Pipeline, None]:
        """The step, started and seen to be able to answer, for as long as the context lasts."""
        try:
            async with self.step.running() as self.most_in_flight:
                yield self
        finally:
            self._form.close()

    def end(self) -> None:
        self.ending = True
        self.step.end()

    async def outcome(self, row: Row) -> Outcome | None:
        """The row's outcome, good or bad; None if the job ends before it has had its attempts.

        Raises `JobError` if there is no use in going on.
        """
        tries = Tries()
        began = time.perf_counter_ns()
        try:
            outcome = await self._answer(row, tries)
            outcome.attempts = tries.count
        except JobError:
            raise
        except PenstockError as error:
            if self.ending and error.retryable:
                return None  # it gets its attempts when the job resumes
            outcome = self._form.failure(row, error, tries.stage, tries.count)
        finally:
            self._counts.engine_calls += tries.count
        outcome.latency_ms = (time.perf_counter_ns() - began) // 1000 / 1000
        return outcome


@dataclass
class EngineStep:
    """The step of a job without a processor: a row's request, put to the job's engine.

    `adapter` is the one adapter of all rows, if any.
    """

    engine: LLMEngine
    form: EngineForm
    adapter: str | None
    most_attempts: int
    policy: ErrorPolicy
    ending: bool = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[int, None]:
        if self.adapter is not None:
            # An unknown name need not wait for the model to load.
            adapter_path(self.engine, self.adapter)
        supervisor = supervisor_of(self.engine)
        self._attempts = Attempts(
            supervisor, lambda: self.ending, most=self.most_attempts, policy=self.policy
        )
        async with supervisor.running() as engine:
            if self.adapter is not None:
                await supervisor.adapter(self.adapter)
            self.form.check_engine(engine)
            yield rolling(engine.capabilities)

    def answer(self, row: Row, tries: Tries) -> Awaitable[Outcome]:
        name = row.request.adapter
        adapter = None if name is None else (name, None)
        ask = partial(self.form.ask, self.engine, row)
        return self._attempts.answer(ask, adapter, tries, lambda: row.digest)

    def asked(self, row: Row) -> Asked | None:
        if not isinstance(row.request, ChatRequest):
            return None
        return Asked(self.engine, row.request, self.form.repair)

    def end(self) -> None:
        self.ending = True
