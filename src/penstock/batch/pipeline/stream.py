"""What a processor gives for a data set: its rows, computed as they are asked for."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from penstock import background
from penstock.batch.flow import Flow
from penstock.batch.job.counts import Counts
from penstock.batch.job.plan import Plan
from penstock.batch.job.policy import ErrorPolicy
from penstock.batch.pipeline.processor_rows import ProcessorRows
from penstock.batch.pipeline.stage_chain import StageChain
from penstock.batch.read import open_source
from penstock.batch.rows.dedupe import AnswerCache
from penstock.batch.rows.row import Outcome, Row
from penstock.batch.write.parts import RowSet
from penstock.batch.write.sinks import Reorder, Sink
from penstock.engines.base import LLMEngine
from penstock.errors import ConfigError

if TYPE_CHECKING:
    from penstock.batch.pipeline.processor import Processor

AHEAD_ROWS = 1024
"""Finished rows that wait for whoever takes them; while there are more, none is asked for."""
AHEAD_BYTES = 32 << 20


class RowStream:
    """The output rows of a processor, for `for` or `async for`. Nothing runs before; each iteration
    runs anew.

    Rows come in the order of the input, or with `order` "done" as they finish, while later ones are
    still being worked on. Leaving the loop early stops the work. In a plain `for` the work goes on
    in a thread. `counts` tell of the latest iteration.
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
        if any(isinstance(engine, LLMEngine) for engine in self._engines()) and _in_event_loop():
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
        """The first rows, at most so many. Raises `ConfigError` for a negative number."""
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
        with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
            answers = AnswerCache(Path(folder))
            try:
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
                answers.close()
                await source.close()


class _Outbox(Sink):
    """Hands rows on to whoever takes them, as many at a time as there are.

    Rows that failed before any has succeeded wait for the first good one, to have its columns too,
    but never when nothing is under way: whoever takes rows may be the one who is to give the next.
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
        """The rows that are ready, at least one; none after the last."""
        while not self._finished and not (
            self._ready and (self._released or self._form.columns_known)
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
        """Nothing is under way: what is ready need wait for nothing."""
        self._released = True
        self._news.set()

    def finish_now(self) -> None:
        """No more rows will come."""
        self._finished = True
        self._news.set()


async def _next(batches: AsyncGenerator[list[dict[str, Any]], None]) -> list[dict[str, Any]] | None:
    return await anext(batches, None)


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
