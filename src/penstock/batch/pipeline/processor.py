"""A processor: what happens to each row of a data set, from preprocess over the stages to
postprocess; and the stream of rows that it gives, computed as they are asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import tempfile
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Iterator,
    Mapping,
    Sequence,
)
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, Literal, overload

from penstock import background, lazy
from penstock.batch.flow import Flow
from penstock.batch.job.plan import Plan
from penstock.batch.job.policy import ErrorPolicy
from penstock.batch.job.result import Counts
from penstock.batch.pipeline.configs import ProcessorConfig
from penstock.batch.pipeline.processor_rows import HeldAs, ProcessorRows, RowFunction
from penstock.batch.pipeline.stage_chain import StageChain
from penstock.batch.read import open_source
from penstock.batch.read.sources import HasRows
from penstock.batch.rows.dedupe import AnswerCache
from penstock.batch.rows.row import Outcome, Row
from penstock.batch.stages.base import StatefulStage, check_stage, workers
from penstock.batch.write.parts import RowSet
from penstock.batch.write.sinks import Reorder, Sink
from penstock.engines.base import LLMEngine
from penstock.errors import ConfigError, UnknownStageError, nearest

Listed = (
    Sequence[Mapping[str, Any]] | Iterator[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]]
)
Rows = str | PathLike[str] | Listed | HasRows
"""Inputs that type checkers can tell from a Ray data set, which also has an `__iter__` (it raises).
"""

_log = logging.getLogger(__name__)
_FOR_RAY = ("runtime_env", "placement_group_config", "accelerator_type", "resources_per_bundle")
AHEAD_ROWS = 1024
"""Finished rows that may wait for the stream's reader. While more wait, no further row starts."""
AHEAD_BYTES = 32 << 20


class Processor:
    """Stages in their order, with what comes before and after. Call it on a data set;
    `build_processor` makes it.

    `preprocess` takes a row as a dict and returns the columns that the stages read: they are added
    to the row's own. `postprocess` takes the row with all columns and returns the output row. Both
    are plain functions and may be slow. Of their `map_kwargs`, `concurrency` is the number of
    threads; the others are for Ray.
    """

    def __init__(
        self,
        config: ProcessorConfig,
        stages: Sequence[StatefulStage],
        preprocess: RowFunction | None = None,
        postprocess: RowFunction | None = None,
        preprocess_map_kwargs: Mapping[str, Any] | None = None,
        postprocess_map_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        for name, function in (("preprocess", preprocess), ("postprocess", postprocess)):
            plain = callable(function) and not inspect.iscoroutinefunction(function)
            if function is not None and not plain:
                raise ConfigError(
                    "must be a plain function that takes a row and returns a dict", field=name
                )
        self.config = config
        self.preprocess = preprocess
        self.postprocess = postprocess
        self.preprocess_map_kwargs = dict(preprocess_map_kwargs or {})
        self.postprocess_map_kwargs = dict(postprocess_map_kwargs or {})
        self._threads = (
            workers(self.preprocess_map_kwargs, "preprocess_map_kwargs"),
            workers(self.postprocess_map_kwargs, "postprocess_map_kwargs"),
        )
        self.stages: dict[str, StatefulStage] = {}
        for stage in stages:
            check_stage(stage)
            kind = type(stage).__name__
            same = sum(type(other).__name__ == kind for other in self.stages.values())
            self.stages[f"{kind}_{same}" if same else kind] = stage

    @overload
    def __call__(
        self, dataset: Rows, *, order: Literal["input", "done"] = "input"
    ) -> RowStream: ...

    @overload
    def __call__(self, dataset: Any, *, order: Literal["input", "done"] = "input") -> Any: ...

    def __call__(self, dataset: Any, *, order: Literal["input", "done"] = "input") -> Any:
        """The output rows for a data set: a path, a table or frame, an (async) iterable of dicts, a
        `Job` or its result, or what another processor gives.

        Returns a `RowStream`; for a Ray data set a Ray data set. Raises `ConfigError` for a stage
        that cannot run.
        """
        for name, stage in self.stages.items():  # they may have been changed since they were made
            check_stage(stage)
            workers(stage.map_batches_kwargs, name)
        package = type(dataset).__module__.partition(".")[0]
        if package in lazy.RUNTIME_DATASETS:
            return lazy.load_runtime(lazy.RUNTIME_DATASETS, package)(self, dataset)
        if ignored := [name for name in _FOR_RAY if getattr(self.config, name, None)]:
            names = ", ".join(ignored)
            _log.warning("The rows stay in this process, and only Ray heeds: %s", names)
        return RowStream(self, dataset, order=order)

    def list_stage_names(self) -> list[str]:
        """The stages' names in order: their kinds; the second of a kind ends in `_1`, as in Ray."""
        return list(self.stages)

    def get_stage_by_name(self, name: str) -> StatefulStage:
        """The stage of that name. Raises `ConfigError`, which is a `ValueError` here too."""
        try:
            return self.stages[name]
        except KeyError:
            raise UnknownStageError(
                f"there is no stage '{name}'", value=name, hint=nearest(name, self.stages)
            ) from None

    def log_input_column_names(self) -> None:
        """Log the columns that the first stage reads."""
        if not self.stages:
            _log.info("The processor has no stages.")
            return
        name, stage = next(iter(self.stages.items()))
        lines = [f"The first stage of the processor is {name}."]
        for title, keys in (
            ("Required input columns:", stage.get_required_input_keys()),
            ("Optional input columns:", stage.get_optional_input_keys()),
        ):
            if keys:
                lines += [title, *(f"\t{key}: {meaning}" for key, meaning in keys.items())]
        _log.info("\n".join(lines))

    def rows(self, *, held_as: HeldAs = "values", keep_errors: bool | None = None) -> ProcessorRows:
        """The form of this processor's rows, for one run in the running event loop."""
        return ProcessorRows(
            self.stages,
            self.preprocess,
            self.postprocess,
            threads=self._threads,
            keep_errors=self.config.should_continue_on_error
            if keep_errors is None
            else keep_errors,
            ray_columns=self.config.ray_columns,
            held_as=held_as,
        )

    def __repr__(self) -> str:
        return f"Processor({self.config!r}, stages={self.list_stage_names()})"


class RowStream:
    """The output rows of a processor, for `for` or `async for`. Nothing runs before the loop, and
    each loop runs the processor anew.

    Rows come in the order of the input, or with `order` "done" as they finish, while later ones are
    still being worked on. Leaving the loop early stops the work. In a plain `for` the work goes on
    in a thread. `counts` are those of the latest loop.
    """

    def __init__(
        self, processor: Processor, source: Any, *, order: Literal["input", "done"] = "input"
    ) -> None:
        if order not in ("input", "done"):
            raise ConfigError(f"must be input or done, not {order!r}", field="order", value=order)
        self.counts = Counts()
        self._processor = processor
        self._source = source
        self._order = order

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        async with contextlib.aclosing(self._batches()) as batches:
            async for batch in batches:
                for row in batch:
                    yield row

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if any(isinstance(engine, LLMEngine) for engine in self._engines()) and in_event_loop():
            raise ConfigError(
                "an engine object belongs to its event loop; use `async for` there", field="engine"
            )
        batches = self._batches()
        try:
            while (batch := background.run(_next(batches))) is not None:
                yield from batch
        finally:
            background.finish(batches.aclose())

    iter_rows = __iter__

    def take(self, limit: int = 20) -> list[dict[str, Any]]:
        """The first rows, at most `limit`. Raises `ConfigError` if that is negative."""
        if limit < 0:
            raise ConfigError(f"must be at least 0, not {limit}", field="limit", value=limit)
        rows = iter(self)
        try:
            return list(islice(rows, limit))
        finally:
            rows.close()  # type: ignore[attr-defined]

    def take_all(self) -> list[dict[str, Any]]:
        return list(self)

    def show(self, limit: int = 20) -> None:
        for row in self.take(limit):
            print(row)

    def _engines(self) -> Iterator[Any]:
        yield getattr(self._processor.config, "engine", None)
        if isinstance(self._source, RowStream):
            yield from self._source._engines()

    async def _batches(self) -> AsyncGenerator[list[dict[str, Any]], None]:
        source = await open_source(self._source)
        counts = self.counts = Counts(total=source.rows)
        processor = self._processor
        form = processor.rows()
        sink = _Outbox(form, keep_order=self._order == "input")
        config = processor.config
        policy = ErrorPolicy("keep" if config.should_continue_on_error else "fail")
        chain = StageChain(processor.stages, config.batch_size, config.concurrency, policy=policy)
        plan = Plan(source=source, form=form, step=chain, policy=policy)
        try:
            with (
                tempfile.TemporaryDirectory(prefix="penstock-") as folder,
                contextlib.closing(AnswerCache(Path(folder))) as answers,
            ):
                async with plan.pipeline(counts).running() as pipeline:
                    flow = Flow(plan, pipeline, sink, counts, answers)
                    flow.on_quiet = sink.release
                    running = asyncio.create_task(flow.run())
                    running.add_done_callback(lambda _: sink.finish_now())
                    try:
                        while batch := await sink.take():
                            yield batch
                        await running
                    finally:
                        running.cancel()
                        await asyncio.wait([running])
        finally:
            await source.close()


class _Outbox(Sink):
    """Passes finished rows on to the stream's reader, as many at a time as are ready.

    A failed row waits for the first good row, whose columns it gets too. It does not wait when
    nothing is under way: the reader may also be the one who provides the next input row.
    """

    def __init__(self, form: ProcessorRows, *, keep_order: bool) -> None:
        self._form = form
        self._reorder: Reorder[tuple[Row, Outcome]] = Reorder(RowSet(), keep_order=keep_order)
        self._ready: deque[tuple[Row, Outcome]] = deque()
        self._bytes = 0
        self._news = asyncio.Event()
        self._released = False
        self._finished = False

    def put(self, row: Row, outcome: Outcome, *, journaled: bool = False) -> list[Row]:
        ready = self._reorder.put(row.index, (row, outcome))
        for item in ready:
            self._bytes += item[0].nbytes
            if not item[1].skipped:
                self._ready.append(item)
        self.full = len(self._ready) >= AHEAD_ROWS or self._bytes >= AHEAD_BYTES
        self._released = False
        if self._ready:
            self._news.set()
        return [row for row, _ in ready]

    async def take(self) -> list[dict[str, Any]]:
        """The rows that are ready: at least one, or an empty list after the last."""
        while not self._finished and not (
            self._ready and (self._released or self._form.made.known)
        ):
            self._news.clear()
            await self._news.wait()
        rows = [self._form.output(*item) for item in self._ready]
        self._ready.clear()
        self._bytes = 0
        if self.full:
            self.full = False
            self.on_room()
        return rows

    def release(self) -> None:
        """Nothing is under way: rows that are ready no longer wait for a good one."""
        self._released = True
        self._news.set()

    def finish_now(self) -> None:
        """No more rows will come."""
        self._finished = True
        self._news.set()


async def _next(batches: AsyncGenerator[list[dict[str, Any]], None]) -> list[dict[str, Any]] | None:
    return await anext(batches, None)


def in_event_loop() -> bool:
    """Whether the caller runs in an event loop, which must not wait."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
