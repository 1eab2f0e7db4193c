"""Runs a processor's stages: each row moves from stage to stage by itself.

`StageChain` has all stages, in this process. `StageProcess` is one worker of one stage, for a
runtime that spreads the workers over processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import logging
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Mapping,
    Sequence,
)
from functools import partial
from typing import Any

from penstock.batch.job.policy import ErrorPolicy
from penstock.batch.pipeline.offload import Offload, ends_task, user_error
from penstock.batch.pipeline.pipeline import Asked, Tries
from penstock.batch.pipeline.processor_rows import failure, unpack_row
from penstock.batch.rows.row import Outcome, Row
from penstock.batch.stages.base import StatefulStage, workers
from penstock.batch.stages.engine import EngineRequests
from penstock.batch.stages.text import ChatTemplates, Tokens
from penstock.engines.side_by_side import all_of
from penstock.errors import (
    ConfigError,
    JobError,
    PenstockError,
    RequestError,
    UserCodeError,
    class_and_text,
    text_of,
)
from penstock.openai.responses import usage_in
from penstock.types import Usage

_log = logging.getLogger(__name__)
_OWN = ("num_input_tokens", "num_generated_tokens", "num_cached_tokens")


class StagePool:
    """The workers of one stage.

    Each has at most `batch_size` rows at a time; the least busy worker takes the next row.
    """

    def __init__(
        self,
        name: str,
        stage: StatefulStage,
        batch_size: int,
        concurrency: int | Sequence[int] = 1,
    ) -> None:
        assert stage.fn is not None
        self.name = name
        self._stage = stage
        self._count = workers({"concurrency": concurrency} | stage.map_batches_kwargs, name)
        self._batch_size = stage.map_batches_kwargs.get("batch_size") or batch_size
        self._workers: list[_Worker] = []
        # Penstock's own workers check for themselves: some take either of two columns.
        own = stage.fn.__module__.startswith("penstock.")
        self._needed = frozenset(() if own else stage.get_required_input_keys())
        self.capacity = 0
        self.places: asyncio.Semaphore | None = None
        """Bounds the rows inside to `capacity`. None before the start, and if the caller keeps that
        bound itself.
        """

    async def start(self) -> None:
        """Make the workers and start them.

        Raises `PenstockError`; `stop` then stops the workers that did start.
        """
        fn, kwargs = self._stage.fn, self._stage.fn_constructor_kwargs
        assert fn is not None
        self._workers = [_Worker(fn) for _ in range(self._count)]
        try:
            for worker in self._workers:
                await worker.make(kwargs)
        except TypeError as error:
            raise ConfigError(
                f"{fn.__name__} cannot be made: {text_of(error)}", field=self.name
            ) from error
        except BaseException as error:
            if ends_task(error):
                raise
            raise user_error(error, f"{fn.__name__} cannot be made") from error
        await all_of(worker.start() for worker in self._workers)
        for worker in self._workers:
            worker.most = getattr(worker.instance, "most_in_flight", None) or self._batch_size
            self.capacity += worker.most
        self.places = asyncio.Semaphore(self.capacity)

    @property
    def worker(self) -> Any:
        return self._workers[0].instance

    async def stop(self) -> None:
        await asyncio.gather(*(worker.stop() for worker in self._workers), return_exceptions=True)

    def end(self) -> None:
        """Nothing is to be tried again."""
        for worker in self._workers:
            if hasattr(worker.instance, "ending"):
                worker.instance.ending = True

    async def process(self, row: dict[str, Any]) -> Mapping[str, Any]:
        """The columns that the stage adds to the row. Raises `PenstockError`."""
        if not self._needed <= row.keys():
            missing = min(self._needed - row.keys())
            raise RequestError(f"the row has no column '{missing}', which {self.name} needs")
        if self.places is not None:
            await self.places.acquire()
        worker = self._workers[0] if self._count == 1 else min(self._workers, key=_room_taken)
        worker.busy += 1
        worker.taken += 1
        try:
            made = await worker.process(row)
        except PenstockError:
            raise
        except BaseException as error:
            if ends_task(error):
                raise
            _log.debug("stage %s failed", self.name, exc_info=True)
            raise user_error(error) from error
        finally:
            worker.busy -= 1
            if self.places is not None:
                self.places.release()
        if made.__class__ is not dict and not isinstance(made, Mapping):
            maker = self._stage.fn and self._stage.fn.__name__
            raise UserCodeError(f"{maker} gave a {type(made).__name__}, no dict")
        return made


class _Worker:
    """One instance of a stage's class. If `process` is a plain method, one thread of the worker's
    own makes the instance and calls its plain methods: what they open may belong to that thread, as
    a connection to SQLite does.

    `busy` is how many rows are inside; it should be at most `most`. `taken` is how many rows have
    come so far.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.instance: Any = None
        self.busy = 0
        self.taken = 0
        self.most = 1
        self.process: Callable[[dict[str, Any]], Awaitable[Any]]
        self._fn = fn
        is_plain = not inspect.iscoroutinefunction(getattr(fn, "process", None))
        self._thread = Offload(in_place=False) if is_plain else None

    async def make(self, kwargs: Mapping[str, Any]) -> None:
        self.instance = await self._call(partial(self._fn, **kwargs))
        process = self.process = self.instance.process
        if not inspect.iscoroutinefunction(process):
            thread = self._thread = self._thread or Offload(in_place=False)
            self.process = lambda row: thread.submit(partial(process, row))

    async def start(self) -> None:
        try:
            await self._method("start")
        except BaseException as error:
            if ends_task(error):
                raise
            raise user_error(error, f"{type(self.instance).__name__} cannot be started") from error

    async def stop(self) -> None:
        try:
            await self._method("stop")
        except BaseException as error:
            if ends_task(error):
                raise
            _log.warning(
                "%s could not be stopped: %s", type(self.instance).__name__, class_and_text(error)
            )
            _log.debug("where that arose", exc_info=True)
        finally:
            if self._thread is not None:
                self._thread.close()

    async def _method(self, name: str) -> None:
        method = getattr(self.instance, name, None)
        if method is not None:
            result = await self._call(method)
            if inspect.isawaitable(result):
                await result

    async def _call(self, call: Callable[[], Any]) -> Any:
        # A busy thread has a row that nobody waits for any more.
        if self._thread is None or not self._thread.idle:
            return call()
        return await self._thread.submit(call)


class StageChain:
    """A processor's stages, one after another: the `Step` of its jobs (`pipeline.py`).

    `batch_size` and `concurrency` are those of a stage that does not say otherwise.

    A row's `request` holds its columns, its outcome's `parsed` the columns that the stages have
    made. A stage retries by itself a failure that it knows may pass. Other failures are retried
    here if `policy` says so, up to `max_attempts` times in all.
    """

    def __init__(
        self,
        stages: Mapping[str, StatefulStage],
        batch_size: int,
        concurrency: int | Sequence[int],
        *,
        policy: ErrorPolicy,
        max_attempts: int = 1,
    ) -> None:
        self._policy = policy
        self._max_attempts = max_attempts
        self._ending = False
        self._pools = [
            StagePool(name, stage, batch_size, concurrency)
            for name, stage in stages.items()
            if stage.fn is not None
        ]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[int, None]:
        try:
            await all_of(pool.start() for pool in self._pools)
            if len(self._pools) == 1:  # the flow sends no more rows than it has room for
                self._pools[0].places = None
            yield sum(pool.capacity for pool in self._pools) or 1  # every stage can be full at once
        finally:
            await asyncio.gather(*(pool.stop() for pool in self._pools))

    async def answer(self, row: Row, tries: Tries) -> Outcome:
        tries.count = 1
        values: dict[str, Any] = row.request
        added: dict[str, Any] = {}
        usage: Usage | None = None
        for pool in self._pools:
            tries.stage = pool.name
            while True:
                try:
                    made = await pool.process(values | added)
                    break
                except JobError:
                    raise
                except PenstockError as error:
                    again = (
                        self._policy.action(error.kind) == "retry"
                        and tries.count < self._max_attempts
                    )
                    if self._ending or not again:
                        raise
                    tries.count += 1
            added |= made
            if (spent := usage_of(made)) is not None:
                usage = spent if usage is None else usage + spent
        return Outcome(None, None, added.get("finish_reason"), usage, parsed=added)

    def asked(self, row: Row) -> Asked | None:
        """What the engine will be asked, to forecast a job. None if a stage before the engine's may
        change that; the stages for templates and tokens do not.
        """
        workers = [pool.worker for pool in self._pools]
        first = next(
            (worker for worker in workers if not isinstance(worker, ChatTemplates | Tokens)), None
        )
        return first.asked(row.request) if isinstance(first, EngineRequests) else None

    def end(self) -> None:
        self._ending = True
        for pool in self._pools:
            pool.end()


def _room_taken(worker: _Worker) -> tuple[float, int]:
    return worker.busy / worker.most, worker.taken


def usage_of(columns: Mapping[str, Any]) -> Usage | None:
    """The token counts in a stage's columns, of an engine or of an HTTP API; None if there are
    none.
    """
    if "num_input_tokens" in columns:
        prompt, answer, cached = map(columns.get, _OWN)
        return Usage(
            prompt if isinstance(prompt, int) else 0,
            answer if isinstance(answer, int) else 0,
            cached if isinstance(cached, int) else 0,
        )
    counted = columns.get("usage")
    if counted is None and isinstance(answer := columns.get("http_response"), dict):
        counted = answer.get("usage")
    if not isinstance(counted, dict):
        return None
    usage = usage_in(counted)
    return usage if usage != Usage() else None


class StageProcess:
    """One worker of a stage, in the event loop of its process. Its first rows start it."""

    def __init__(self, name: str, stage: StatefulStage, batch_size: int, *, keep: bool) -> None:
        single = copy.copy(stage)
        most = workers(stage.map_batches_kwargs, name)
        single.map_batches_kwargs = {**stage.map_batches_kwargs, "concurrency": 1, "compute": None}
        if getattr(stage.fn, "shares_rates", False):
            single.fn_constructor_kwargs = {**stage.fn_constructor_kwargs, "processes": most}
        self._pool = StagePool(name, single, batch_size)
        self._name = name
        self._keep = keep
        self._starting: asyncio.Task[None] | None = None

    async def __call__(self, rows: Sequence[bytes]) -> list[bytes]:
        if self._starting is None:
            self._starting = asyncio.create_task(self._pool.start())
        await asyncio.shield(self._starting)
        return list(await asyncio.gather(*(self._process(data) for data in rows)))

    async def _process(self, data: bytes) -> bytes:
        row = unpack_row(data)
        if row.error is not None:
            return data
        try:
            row.columns = {**row.columns, **await self._pool.process(dict(row.columns))}
        except Exception as error:
            row.error = failure(error, self._name, self._keep)
        return row.pack()
