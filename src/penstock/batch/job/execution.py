"""Carries a planned job out: takes up its state, starts the engine, moves the rows, puts the output
together.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.balance.pauses import job_pauses
from penstock.batch.flow import Flow
from penstock.batch.job.counts import Counts
from penstock.batch.job.interrupts import Interrupts
from penstock.batch.job.plan import Plan
from penstock.batch.job.progress import Progress
from penstock.batch.job.result import RunResult
from penstock.batch.rows.dedupe import AnswerCache
from penstock.batch.rows.intake import compare_stream, other_rows
from penstock.batch.state.directory import State
from penstock.batch.state.journal import Journal
from penstock.batch.state.manifest import StreamSum
from penstock.batch.write.outputs import Output
from penstock.batch.write.part_writers import JsonlWriter, ParquetWriter, PartWriter
from penstock.batch.write.sinks import DurableSink, MemorySink, Sink, StreamSink
from penstock.errors import JobError, OutputError

if TYPE_CHECKING:
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
        tables = plan.form.tables(plan.source) if output.columnar else None
        if tables is not None:
            tables.check_storable()
        state = State.open(
            output,
            plan.identity,
            keep_order=plan.keep_order,
            fresh=plan.fresh,
            retry_failed=plan.retry_failed,
        )
        with contextlib.closing(state):
            if state.complete:
                if plan.source.fingerprint is None:
                    await compare_stream(
                        plan.source, plan.limit, plan.value_columns, state.manifest.stream
                    )
                return RunResult(
                    Counts(**state.manifest.result), output.path, already_complete=True
                )
            result = await _durable(plan, output, tables, state, interrupts)
    else:
        with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
            result = await _transient(plan, Path(folder), interrupts)
    result.counts.seconds = time.perf_counter() - began
    return result


async def _durable(
    plan: Plan, output: Output, tables: Tables | None, state: State, interrupts: Interrupts
) -> RunResult:
    # Answers of a resumed job carry the time of its beginning.
    plan.form.created = state.manifest.created
    journal = state.journal
    done = len(journal.done)
    counts = Counts(rows=done, errors=dict(journal.errors), resumed=done, total=plan.total)

    def make_writer(path: Path) -> PartWriter:
        return JsonlWriter(path, plan.form) if tables is None else ParquetWriter(path, tables)

    sink = DurableSink(journal, make_writer, output.part_name, keep_order=plan.keep_order)
    answers = AnswerCache(output.folder, key=state.manifest.key)
    finished = False
    try:
        finished, stream = await _move(plan, sink, counts, answers, journal, interrupts)
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
            await asyncio.to_thread(
                state.publish, counts, stream, lambda: tables and tables.empty(), names
            )
    finally:
        answers.close()
    return RunResult(counts, output.path, stopped_by=None if finished else interrupts.received)


async def _transient(plan: Plan, folder: Path, interrupts: Interrupts) -> RunResult:
    counts = Counts(total=plan.total)
    kept = MemorySink(keep_order=plan.keep_order)
    sink: Sink = kept
    if plan.output is not None:
        sink = StreamSink(sys.stdout.buffer, plan.form, keep_order=plan.keep_order)
    answers = AnswerCache(folder)
    try:
        finished, _ = await _move(plan, sink, counts, answers, None, interrupts)
    finally:
        answers.close()
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
) -> tuple[bool, StreamSum | None]:
    """Move the rows through the engine into the sink. Returns whether all are there, and what a
    stream gave.
    """
    told = job_pauses.set(counts.pauses)
    try:
        async with plan.pipeline(counts).running() as pipeline:
            flow = Flow(plan, pipeline, sink, counts, answers, journal)
            interrupts.on_first = flow.drain
            async with Progress(counts, plan.progress):
                began = time.perf_counter()
                finished = await flow.run()
            if finished:
                await sink.finish()
            counts.row_seconds = time.perf_counter() - began
            return finished, flow.stream
    finally:
        job_pauses.reset(told)
        interrupts.on_first = None
        with contextlib.suppress(OutputError):  # that is already on its way up
            await sink.close()
