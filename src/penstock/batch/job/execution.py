"""Carries a planned job out: takes up its state, starts the engine, moves the rows and publishes
the output. A signal ends it early.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.balance.backoff import job_pauses
from penstock.batch.flow import Flow
from penstock.batch.job.plan import Plan
from penstock.batch.job.result import Counts, Progress, RunResult
from penstock.batch.monitor.control import Monitor
from penstock.batch.monitor.status import Status, id_of
from penstock.batch.pipeline.cascade import CascadeStep
from penstock.batch.pipeline.pipeline import EngineStep
from penstock.batch.rows.dedupe import AnswerCache
from penstock.batch.rows.intake import compare_stream, other_rows
from penstock.batch.write.journal import CASCADE, Journal
from penstock.batch.write.kept import INDEX, Kept
from penstock.batch.write.manifest import StreamSum
from penstock.batch.write.outputs import Output
from penstock.batch.write.parts import PartWriter
from penstock.batch.write.sinks import DurableSink, MemorySink, Sink, StreamSink
from penstock.batch.write.state import State
from penstock.batch.write.text import JsonlWriter
from penstock.errors import JobError, OutputError, printable
from penstock.observability import say

if TYPE_CHECKING:
    from penstock.batch.report import Report
    from penstock.batch.write.tables import Tables


async def execute(plan: Plan, interrupts: Interrupts) -> RunResult:
    """Do the job. Raises `PenstockError`; then, and when cancelled, what was done is kept."""
    try:
        return await _execute(plan, interrupts)
    finally:
        await plan.source.close()


async def _execute(plan: Plan, interrupts: Interrupts) -> RunResult:
    began = time.perf_counter()
    output = plan.output
    if isinstance(output, Output):
        keys = plan.extras.keys
        if keys is not None:
            await keys.check(plan.source, plan.limit, None if plan.fresh else output.folder)
        tables = plan.form.tables(plan.source) if output.columnar else None
        if tables is not None:
            tables.check_storable()
        state = State.open(
            output,
            plan.identity,
            keep_order=plan.keep_order,
            fresh=plan.fresh,
            retry_failed=plan.retry_failed,
            incremental=keys is not None,
            earlier=None if keys is None else keys.earlier_input,
        )
        with contextlib.closing(state):
            if state.complete:
                if plan.source.fingerprint is None:
                    await compare_stream(
                        plan.source, plan.limit, plan.value_columns, state.manifest.stream
                    )
                counts = Counts(**state.manifest.result)
                if plan.extras.report is not None:
                    from penstock.batch.report import write_again

                    generation = state.manifest.generation
                    write_again(
                        plan.extras.report, plan.identity, counts, output.folder, generation
                    )
                return RunResult(counts, output.path, already_complete=True)
            if keys is not None:
                keys.save(output.folder)
            result = await _durable(plan, output, tables, state, interrupts)
    else:
        with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
            result = await _transient(plan, Path(folder), interrupts)
    result.counts.seconds = time.perf_counter() - began
    return result


async def _durable(
    plan: Plan, output: Output, tables: Tables | None, state: State, interrupts: Interrupts
) -> RunResult:
    if isinstance(plan.step, CascadeStep):
        plan.step.memory = output.folder / CASCADE
    if isinstance(plan.step, EngineStep):
        most = plan.step.keep(output.folder, state.manifest.key, state.manifest.generation)
        plan.most_rows = plan.most_rows or most
    # Answers of a resumed job carry the time of its beginning, unless they have one of their own.
    plan.form.created = plan.form.created or state.manifest.created
    journal = state.journal
    done = len(journal.done)
    counts = Counts(
        rows=done,
        errors=dict(journal.errors),
        left_out=journal.left_out,
        resumed=done - state.taken_over,
        kept=state.taken_over,
        total=plan.total,
    )

    def make_writer(path: Path) -> PartWriter:
        if tables is None:
            return JsonlWriter(path, plan.form)
        from penstock.batch.write.parquet import ParquetWriter

        return ParquetWriter(path, tables)

    sink = DurableSink(journal, make_writer, output.part_name, keep_order=plan.keep_order)
    async with contextlib.AsyncExitStack() as files:
        memory = AnswerCache(output.folder, in_memory=plan.most_rows, key=state.manifest.key)
        answers = files.enter_context(contextlib.closing(memory))
        kept = None
        if plan.extras.keys is not None and (earlier := journal.earlier_files()):
            kept = await asyncio.to_thread(
                Kept,
                earlier,
                journal.key,
                output.folder / INDEX,
                failed=not plan.retry_failed,
            )
            files.callback(kept.close)
        owns_folder = partial(getattr, state, "owns_folder")
        monitor = None
        if plan.steered:
            stop = partial(interrupts.request, signal.SIGTERM)
            status = _status(plan, output)
            monitor = Monitor(output.folder, status, counts, stop=stop, owns_folder=owns_folder)
            await files.enter_async_context(monitor)
        report = await _report(files, plan, counts, output.folder, journal.generation, owns_folder)
        finished, stream = await _move(
            plan, sink, counts, answers, journal, interrupts, kept, monitor, report
        )
        if monitor is not None:
            monitor.finished = finished
        if finished and None not in (known := state.manifest.stream, stream) and known != stream:
            raise other_rows(counts.rows)  # the failed rows were tried again, but of another stream
        if finished:
            journal.load()
            if journal.damage:
                raise JobError(f"{journal.damage[0]}: start the job again")
            if len(journal.done) != counts.rows:
                raise JobError(
                    f"{counts.rows} rows were finished, but {len(journal.done)} stand in the"
                    " journal"
                )
            names = [*plan.source.columns, *plan.form.flat_columns]
            await _to_the_end(
                partial(state.publish, counts, stream, lambda: tables and tables.empty(), names)
            )
    return RunResult(counts, output.path, stopped_by=None if finished else interrupts.received)


async def _to_the_end(call: Callable[[], None]) -> None:
    """Run `call` in a thread, and wait for its end even if this is cancelled: until then no other
    run may resume the job.
    """
    working = asyncio.ensure_future(asyncio.to_thread(call))
    cancelled: asyncio.CancelledError | None = None
    while not working.done():
        try:
            await asyncio.wait([working])
        except asyncio.CancelledError as error:
            cancelled = error
    working.result()
    if cancelled is not None:
        raise cancelled


async def _report(
    files: contextlib.AsyncExitStack, plan: Plan, counts: Counts, *state: Any
) -> Report | None:
    """The job's report, if one is asked for. It is written when `files` are closed."""
    if plan.extras.report is None:
        return None
    from penstock.batch.report import Report

    return await files.enter_async_context(
        Report(plan.extras.report, plan.identity, counts, *state)
    )


def _status(plan: Plan, output: Output) -> Status:
    """The status of a job that begins."""
    return Status(
        id_of(output.folder),
        printable(output.path if output.remote else os.path.abspath(output.path)),
        "loading",
        input=printable(plan.source.name),
        model=plan.identity.get("model"),
    )


async def _transient(plan: Plan, folder: Path, interrupts: Interrupts) -> RunResult:
    plan.form.created = int(time.time())
    counts = Counts(total=plan.total)
    kept = MemorySink(keep_order=plan.keep_order)
    sink: Sink = kept
    if plan.output is not None:
        sink = StreamSink(sys.stdout.buffer, plan.form, keep_order=plan.keep_order)
    async with contextlib.AsyncExitStack() as files:
        answers = files.enter_context(contextlib.closing(AnswerCache(folder)))
        report = await _report(files, plan, counts)
        finished, _ = await _move(plan, sink, counts, answers, None, interrupts, report=report)
    result = RunResult(
        counts, "-" if plan.output else None, stopped_by=None if finished else interrupts.received
    )
    result._items, result._form = kept.items, plan.form
    result._tables = partial(plan.form.tables, plan.source)
    return result


async def _move(
    plan: Plan,
    sink: Sink,
    counts: Counts,
    answers: AnswerCache,
    journal: Journal | None,
    interrupts: Interrupts,
    kept: Kept | None = None,
    monitor: Monitor | None = None,
    report: Report | None = None,
) -> tuple[bool, StreamSum | None]:
    """Move the rows into the sink. Returns whether all rows are there, and the checksum of a source
    that is a stream.
    """
    before = job_pauses.set(counts.pauses)
    try:
        async with (
            nullcontext() if plan.extras.cache is None else plan.extras.cache.open() as cache,
            plan.pipeline(counts).running() as pipeline,
        ):
            observer = None if report is None else report.observer
            flow = Flow(plan, pipeline, sink, counts, answers, journal, kept, cache, observer)
            interrupts.on_first = flow.drain
            if monitor is not None:
                monitor.begin(flow)
            async with Progress(counts, plan.progress):
                began = time.perf_counter()
                finished = await flow.run()
            if report is not None:
                report.finished = finished
            if finished:
                await sink.finish()
            # Added to the time of a cascade's sample.
            counts.row_seconds += time.perf_counter() - began
            return finished, flow.stream
    finally:
        job_pauses.reset(before)
        interrupts.on_first = None
        with contextlib.suppress(OutputError):  # it was raised before
            await sink.close()


ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that ask a job to end."""


class JobInterrupted(KeyboardInterrupt):
    """A signal, whose number is `signal`, stopped a job. The text says what is kept."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number


class Interrupts:
    """Handles the given signals until `restore`. Signals reach the main thread alone, so one made
    in another thread handles none.

    The job runs inside `with`, in an event loop of any thread. A signal that came before `with` is
    handled when `with` begins; one that comes after `with` is ignored, as the event loop closes.

    `received` is the number of the first signal, which calls `on_first`. Before `on_first` is set,
    and from the second signal on, the task that entered `with` is cancelled. SIGHUP is no second
    signal: a terminal that closes sends it several times.
    """

    def __init__(self, *numbers: signal.Signals) -> None:
        self.received: int | None = None
        self.on_first: Callable[[], None] | None = None
        self._came: deque[int] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            # A signal that is ignored stays ignored: SIGINT in a background job of a shell's
            # script, SIGHUP under nohup.
            self._previous = {
                number: handler
                for number in numbers
                if (handler := signal.getsignal(number)) is not signal.SIG_IGN
            }
            for number in self._previous:
                signal.signal(number, lambda number, _: self._pass_on(number))

    def __enter__(self) -> Interrupts:
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        self._loop.call_soon(self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._task = None

    def request(self, number: int) -> None:
        """Do what the signal of this number would. Call it from the job's own event loop."""
        self._came.append(number)
        self._handle()

    def restore(self) -> None:
        """Restore the earlier handlers of the signals."""
        for number, handler in self._previous.items():
            if handler is not None:  # None: not set from Python, so it cannot be restored
                signal.signal(number, handler)

    def _pass_on(self, number: int) -> None:
        self._came.append(number)
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: the job is over
                self._loop.call_soon_threadsafe(self._handle)

    def _handle(self) -> None:
        while self._came:
            number = self._came.popleft()
            if self._task is None or (number == signal.SIGHUP and self.received is not None):
                continue
            if self.received is None and self.on_first is not None:
                self.received = number
                say("Finishing the rows in flight; once more stops at once.")
                self.on_first()
            else:
                self.received = self.received or number
                self._task.cancel()
