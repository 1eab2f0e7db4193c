"""Carries a planned job out: takes up its state, starts the engine, moves the rows, puts the output
together.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from penstock.balance.pauses import job_pauses
from penstock.batch.flow import Flow
from penstock.batch.job.counts import Counts
from penstock.batch.job.interrupts import Interrupts
from penstock.batch.job.policy import ErrorPolicy, Limits
from penstock.batch.job.progress import Progress
from penstock.batch.job.result import RunResult
from penstock.batch.pipeline.pipeline import Pipeline
from penstock.batch.pipeline.processor import Processor
from penstock.batch.pipeline.processor_rows import ProcessorRows
from penstock.batch.read.base import Source
from penstock.batch.rows.dedupe import AnswerCache
from penstock.batch.rows.openai_lines import OpenAILines
from penstock.batch.rows.replay import compare_stream, other_rows
from penstock.batch.rows.requests import ColumnRequests
from penstock.batch.rows.retry import Asker, EngineAsker
from penstock.batch.state.directory import State
from penstock.batch.state.journal import Journal
from penstock.batch.state.manifest import StreamSum
from penstock.batch.write.outputs import Output
from penstock.batch.write.part_writers import JsonlWriter, ParquetWriter, PartWriter
from penstock.batch.write.sinks import DurableSink, MemorySink, Sink, StreamSink
from penstock.engines.adapter_files import adapter_path
from penstock.engines.base import LLMEngine
from penstock.engines.supervision.supervisor import supervisor_of
from penstock.engines.text.sampling_checks import check_sampling
from penstock.errors import JobError, OutputError

if TYPE_CHECKING:
    from penstock.batch.write.row_tables import RowTables
    from penstock.batch.write.tables import Tables


@dataclass
class Plan:
    """A checked job, on an engine or a processor. `identity` is all that decides its output;
    `adapter` is the one adapter of all rows, if any.
    """

    source: Source
    output: Output | Literal["-"] | None
    form: ColumnRequests | OpenAILines | ProcessorRows
    engine: LLMEngine | None
    processor: Processor | None
    adapter: str | None
    identity: dict[str, Any]
    limit: int | None
    keep_order: bool
    policy: ErrorPolicy
    limits: Limits
    retry_failed: bool
    fresh: bool
    max_attempts: int
    row_timeout: float | None
    progress: bool | None

    @property
    def total(self) -> int | None:
        """The number of rows, if known; where only a limit is, there may be fewer."""
        known = [number for number in (self.source.rows, self.limit) if number is not None]
        return min(known, default=None)

    @property
    def value_columns(self) -> tuple[str, ...] | None:
        """The columns that must become Python values (None: all).

        Where columns pass through in Arrow form, only those that requests are made of.
        """
        return (
            self.form.columns if isinstance(self.output, Output) and self.output.columnar else None
        )

    def tables(self) -> Tables | RowTables:
        """What makes Arrow tables of the output."""
        from penstock.batch.write.row_tables import RowTables
        from penstock.batch.write.tables import Tables

        if not isinstance(self.form, ColumnRequests):
            return RowTables(self.form, self.source.schema)
        return Tables(self.form, self.source.schema, self.source.columns)


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
        if output.columnar:
            plan.tables().check_storable()
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
            result = await _durable(plan, output, state, interrupts)
    else:
        with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
            result = await _transient(plan, Path(folder), interrupts)
    result.counts.seconds = time.perf_counter() - began
    return result


async def _durable(plan: Plan, output: Output, state: State, interrupts: Interrupts) -> RunResult:
    if isinstance(plan.form, OpenAILines):
        # Answers of a resumed job carry the time of its beginning.
        plan.form.created = state.manifest.created
    journal = state.journal
    done = len(journal.done)
    counts = Counts(rows=done, errors=dict(journal.errors), resumed=done, total=plan.total)
    tables = plan.tables() if output.columnar else None

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
                state.publish, counts, stream, lambda: plan.tables().empty(), names
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
    result._tables = None if isinstance(plan.form, OpenAILines) else plan.tables
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
        async with asking(plan, counts) as asker:
            flow = Flow(
                plan.source,
                plan.form,
                asker,
                sink,
                counts,
                answers,
                journal,
                limit=plan.limit,
                policy=plan.policy,
                limits=plan.limits,
                row_timeout=plan.row_timeout,
                columns=plan.value_columns,
            )
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


@contextlib.asynccontextmanager
async def asking(plan: Plan, counts: Counts) -> AsyncGenerator[Asker, None]:
    """What answers the rows, started and seen to be able to."""
    if isinstance(plan.form, ProcessorRows):
        assert plan.processor is not None
        config = plan.processor.config
        try:
            made = Pipeline(
                plan.processor.stages,
                config.batch_size,
                config.concurrency,
                plan.form.failure,
                counts,
                policy=plan.policy,
                max_attempts=plan.max_attempts,
            )
            async with made.running() as pipeline:
                yield pipeline
        finally:
            plan.form.close()
        return
    assert plan.engine is not None
    if plan.adapter is not None:
        # An unknown name need not wait for the model to load.
        adapter_path(plan.engine, plan.adapter)
    supervisor = supervisor_of(plan.engine)
    async with supervisor.running() as engine:
        if plan.adapter is not None:
            await supervisor.adapter(plan.adapter)
        if isinstance(plan.form, ColumnRequests):
            check_sampling(plan.form.sampling, 1, engine.capabilities, engine.name)
        yield EngineAsker(supervisor, plan.form, counts, most=plan.max_attempts, policy=plan.policy)
