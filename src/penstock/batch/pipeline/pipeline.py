"""Gets the rows of a job answered by one step, an engine or the stages of a processor: retries a
failure that may pass, and finds the request that kills the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from msgspec import Struct

from penstock.balance.backoff import Retry
from penstock.batch.job.policy import ErrorPolicy
from penstock.batch.job.result import Counts
from penstock.batch.rows.repair import Repair, Request
from penstock.batch.rows.requests import EngineForm
from penstock.batch.rows.row import Outcome, Row, RowForm, Stage
from penstock.engines.base import Capabilities, LLMEngine
from penstock.engines.disk.sources import adapter_path
from penstock.engines.supervisor import Supervisor, supervisor_of
from penstock.errors import (
    ConfigError,
    EngineDeadError,
    EngineError,
    JobError,
    PenstockError,
    QuarantinedError,
    RequestError,
    class_and_text,
)
from penstock.types import ChatRequest

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
ROW_LIMIT: ContextVar[asyncio.Timeout | None] = ContextVar("row_limit", default=None)
"""The limit on the row's time, if it has one. It stands still while the row waits for an engine
that others killed.
"""

T = TypeVar("T")


class Asked(NamedTuple):
    """What an engine is asked for a row, if that is known before any stage has run."""

    engine: LLMEngine
    request: Request
    repair: Repair


class Step(Protocol):
    """What answers rows. After `end`, nothing is tried again."""

    def running(self) -> AbstractAsyncContextManager[int]:
        """The step runs while the context lasts. Yields how many rows it wants at a time."""

    def answer(self, row: Row, tries: Tries) -> Awaitable[Outcome]:
        """The row's outcome. Keeps `tries` up to date. Raises `PenstockError`."""

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
        """The step runs, and has been checked to suit the rows, while the context lasts."""
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

        Raises `JobError` if there is no use in going on, `ConfigError` for an option of the job
        that this engine refuses.
        """
        tries = Tries()
        began = time.perf_counter_ns()
        try:
            outcome = await self._answer(row, tries)
            outcome.attempts = tries.count or outcome.attempts  # no tries: the step knew the answer
        except JobError:
            raise
        except PenstockError as error:
            if self.ending and error.retryable:
                return None  # the row gets its attempts when the job resumes
            if isinstance(error, RequestError) and error.param in self._form.job_params:
                raise ConfigError(str(error), field=error.param) from error
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

    def keep(self, folder: Path, key: int, generation: int) -> int | None:
        """Keep what must outlive a run in the state directory `folder` of the job with this `key`,
        in this `generation` of its journal. Returns how many rows the flow should have in memory;
        None: its usual number.
        """
        return None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[int, None]:
        if self.adapter is not None:
            # An unknown name need not wait for the model to load.
            adapter_path(self.engine, self.adapter)
        supervisor = supervisor_of(self.engine)
        self._attempts = Attempts(
            supervisor, lambda: not self.ending, most=self.most_attempts, policy=self.policy
        )
        async with supervisor.running() as engine:
            if self.adapter is not None:
                await supervisor.adapter(self.adapter)
            self.form.check_engine(engine)
            yield rolling(engine.capabilities)

    def answer(self, row: Row, tries: Tries) -> Awaitable[Outcome]:
        name = getattr(row.request, "adapter", None)
        adapter = None if name is None else (name, None)
        ask = partial(self.form.ask, self.engine, row)
        return self._attempts.answer(ask, adapter, tries, lambda: row.digest)

    def asked(self, row: Row) -> Asked | None:
        if not isinstance(row.request, ChatRequest):
            return None
        return Asked(self.engine, row.request, self.form.repair)

    def end(self) -> None:
        self.ending = True


class Tries(Struct):
    """How often a row was asked, and at which stage it is."""

    count: int = 0
    stage: Stage = "engine"


class Attempts:
    """Asks an engine, each request up to `most` times. Deaths of the engine do not count.

    The wait before the second attempt is `FIRST_PAUSE`; it doubles up to `LONGEST_PAUSE`. Once
    `goes_on` returns False, nothing is tried again. Failures are retried if they are retryable
    themselves, or if `policy` says so for their kind.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        goes_on: Callable[[], bool],
        *,
        most: int = 3,
        policy: ErrorPolicy | None = None,
    ) -> None:
        self._policy = policy or ErrorPolicy("keep")
        self._goes_on = goes_on
        self._supervisor = supervisor
        self._retry = Retry(most=most, first_s=FIRST_PAUSE, longest_s=LONGEST_PAUSE)

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
        or `JobError` if the engine cannot be restarted. A death of the engine spends no attempt:
        `Quarantine` finds the request that caused it.
        """
        supervisor = self._supervisor
        limit = ROW_LIMIT.get()
        clock = None if limit is None else _RowClock(limit)
        attempts = 0
        with supervisor.quarantine.visit(key, self._goes_on) as visit:
            while True:
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
                except Exception as error:
                    failure = (
                        error
                        if isinstance(error, PenstockError)
                        else EngineError(class_and_text(error))
                    )
                if supervisor.phase == "failed" and self._goes_on():
                    raise JobError(_beyond_help(supervisor)) from supervisor.error
                if isinstance(failure, EngineDeadError):
                    raise failure
                attempts += 1
                # None: no attempt is left, or the pause would be too long.
                pause = self._retry.pause(failure, attempts)
                if pause is None or not self._goes_on() or not self._policy.retries(failure):
                    raise failure
                await asyncio.sleep(pause)


def _beyond_help(supervisor: Supervisor) -> str:
    if not isinstance(supervisor.error, EngineDeadError):
        return f"the engine died and does not start again: {supervisor.error}"
    return (
        f"the engine died {supervisor.deaths} times without finishing a row, at last of the least"
        f" that can be asked: {supervisor.error}"
    )


class _RowClock:
    """Stops the clock of a row's time limit while the row waits for an engine that others
    killed.
    """

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
