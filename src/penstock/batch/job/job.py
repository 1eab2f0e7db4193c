"""A batch job: what it is to do, checked before anything is loaded."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from penstock import background, runtimes
from penstock.batch.job import option_checks as choices
from penstock.batch.job.execution import execute
from penstock.batch.job.interrupts import Interrupts, JobInterrupted
from penstock.batch.job.plan import Plan
from penstock.batch.job.policy import ErrorPolicy, Limits, seconds_until
from penstock.batch.job.result import RunResult
from penstock.batch.pipeline.pipeline import EngineStep, Step
from penstock.batch.pipeline.processor import Processor
from penstock.batch.pipeline.processor_rows import Held
from penstock.batch.pipeline.stage_chain import StageChain
from penstock.batch.read import open_source
from penstock.batch.read.base import Source
from penstock.batch.rows.openai_lines import OpenAILines, are_lines
from penstock.batch.rows.repair import Repair
from penstock.batch.rows.requests import ColumnRequests, EngineForm, Template
from penstock.batch.rows.row import RowForm
from penstock.batch.schemas import structured
from penstock.batch.write.outputs import Output
from penstock.engines.base import LLMEngine
from penstock.engines.registry import engine_for
from penstock.errors import ConfigError, OutputError, printable
from penstock.types import Sampling, StructuredOutput

if TYPE_CHECKING:
    from penstock.batch.job.forecast import Forecast

T = TypeVar("T")
_log = logging.getLogger(__name__)

# Options that say what is asked of a row; OpenAI batch lines say that themselves.
_REPAIRS = frozenset({"on_length", "on_invalid_json"})
_ROW_OPTIONS = _REPAIRS | {
    "prompt",
    "messages",
    "system",
    "schema",
    "adapter",
    "result_prefix",
    "max_tokens",
}
_ENGINE_OPTIONS = frozenset({"model", "engine", "engine_kwargs", "deterministic"})
_SAMPLING = frozenset(field.name for field in msgspec.structs.fields(Sampling))


@dataclass
class Job:
    """A language model over every row of a data set.

    What to read and write:
        source: a path, directory, glob or URL of Parquet, JSONL/NDJSON or CSV; "-" for JSON lines
            on standard input; a pyarrow table or record batch reader; a pandas or Polars frame; an
            iterable or asynchronous iterable of dicts. A thread of its own reads an iterable.
        output: a path or URL ending in .jsonl, .parquet or .csv; a directory (ending in "/") for
            Parquet files; "-" for JSON lines on standard output; None keeps the rows in
            `RunResult`. A path makes the job durable: the same job on the same path resumes what
            was interrupted.

    What to run:
        model: "demo", a model directory or file, or a hub id. Default "demo".
        engine: an engine's name, or an engine object; a running one keeps running. Default
            "openvino".
        engine_kwargs: options of an engine that is given by name.
        deterministic: the same row gets the same answer whatever runs beside it, in any order, also
            in a resumed job. It costs speed. Engines that cannot promise it refuse it.
        runtime: "local" is this process. "ray" puts the rows to so many `replicas` of the engine on
            a Ray cluster: the one that RAY_ADDRESS names, the one on this machine, or one of its
            own. The job is the same, so either runtime resumes what the other began.

        processor: stages of your own choosing (`penstock.batch.build_processor`) in the place of an
            engine and of what to ask. Of the options below only those of how to run then have a
            meaning. Its configuration says whether a failing row ends the job, unless `on_error`
            does.

    What to ask (input in OpenAI's batch form needs none of these, and takes none):
        prompt: text with `{column}` in it, which becomes the user's message.
        messages: the column that holds whole conversations, as lists of messages or as JSON text.
        system: a system message before each.
        schema: a JSON Schema (mapping or path) that answers follow; its fields become columns.
        adapter: a column with the names of LoRA adapters (null: none), else one adapter's name or
            directory.
        max_tokens, temperature (default 0: the likeliest token), top_p, top_k, min_p, seed, stop,
        stop_token_ids, min_tokens, ignore_eos, presence_penalty, frequency_penalty,
        repetition_penalty: as in `penstock.types.Sampling`.

    How to run:
        limit: read only this many rows.
        order: "input" writes rows in the order of the input, "done" as they finish.
        on_error: "keep" makes a failing row an error row, "skip" leaves it out of the output,
            "fail" stops the job at it, "retry" tries it again though its failure looks permanent,
            and then keeps it. Or a mapping of kinds of errors (`error.type`) to these, with "*" for
            the others. Default: "keep"; "fail" with a processor that does not continue on errors,
            unless `dead_letter` or `max_error_rate` is given.
        on_length: "raise" asks again, with twice the `max_tokens`, for an answer that these cut
            off; "truncate" shortens a prompt that is too long for the model; "raise,truncate" does
            both. Default "keep": neither.
        on_invalid_json: "retry" tells the model what was wrong with an answer that does not follow
            the schema, and asks again, up to `max_attempts` times. Default "keep": it becomes an
            error row.
        dead_letter: a path ending in .jsonl for the rows that failed; the output leaves them out.
        retry_failed: run the error rows of an earlier run again, and nothing that succeeded.
        fresh: discard what an earlier run did.
        max_tokens_total: stop when prompts and answers of this run have so many tokens together.
        max_error_rate: stop when more than this share (0 to 1) of the rows failed, from 50 rows on.
        deadline: stop then: seconds from now, a duration such as "2h", or a time. A job that one of
            these limits stops raises `JobLimitError`, and can be resumed.
        max_attempts: how often a row is tried if its failure may pass.
        row_timeout: seconds after which a row without an answer becomes an error row
            (`engine_timeout`): all its attempts together, from when it goes to the engine. Default:
            no limit.
        result_prefix: goes before the name of each result column.
        progress: show a progress line on standard error. Default: where that is a terminal.
    """

    source: Any
    output: str | os.PathLike[str] | None = None
    _: KW_ONLY
    model: str | None = None
    engine: str | LLMEngine | None = None
    engine_kwargs: Mapping[str, Any] | None = None
    deterministic: bool = False
    runtime: Literal["local", "ray"] = "local"
    replicas: int = 1
    processor: Processor | None = None
    prompt: str | None = None
    messages: str | None = None
    system: str | None = None
    schema: Mapping[str, Any] | str | os.PathLike[str] | None = None
    adapter: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    limit: int | None = None
    order: Literal["input", "done"] = "input"
    on_error: str | Mapping[str, str] | None = None
    on_length: str = "keep"
    on_invalid_json: Literal["keep", "retry"] = "keep"
    dead_letter: str | os.PathLike[str] | None = None
    max_tokens_total: int | None = None
    max_error_rate: float | None = None
    deadline: Any = None
    retry_failed: bool = False
    fresh: bool = False
    max_attempts: int = 3
    row_timeout: float | None = None
    result_prefix: str = ""
    progress: bool | None = None

    def run(self) -> RunResult:
        """Do the job. Raises `PenstockError`, or `KeyboardInterrupt` when a signal stopped it."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            interrupts = Interrupts(signal.SIGINT, signal.SIGTERM)
            call = self._main
        else:
            self._check_may_wait("await penstock.arun(...)")
            interrupts = Interrupts(signal.SIGINT)
            call = self._main_in_thread
        try:
            return call(self._run(interrupts))
        finally:
            interrupts.restore()

    async def arun(self) -> RunResult:
        """Do the job in the running event loop. Raises `PenstockError`. Cancelling it keeps what is
        done.
        """
        with Interrupts() as interrupts:
            return await execute(await self._plan(), interrupts)

    def plan(self, *, trial: int = 32) -> Forecast:
        """What the job will be like: its rows, tokens, duplicates, rows that are too long, and its
        time.

        Reads the data, starts the engine, and asks for `trial` rows. Writes nothing. Raises
        `PenstockError`.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._main(self.aplan(trial=trial))
        self._check_may_wait("await job.aplan()")
        return self._main_in_thread(self.aplan(trial=trial))

    async def aplan(self, *, trial: int = 32) -> Forecast:
        """Like `plan`, for a running event loop."""
        from penstock.batch.job.forecast import forecast

        if trial < 0:
            raise ConfigError(f"must be at least 0, not {trial}", field="trial", value=trial)
        if self.source == "-" or isinstance(self.source, AsyncIterable | Iterator):
            raise ConfigError(
                "can be read once only, and the job itself must read it", field="source"
            )
        return await forecast(await self._plan(), trial)

    @property
    def _engine_object(self) -> LLMEngine | None:
        """The engine that the caller has made, if it is one."""
        given = (
            self.engine
            if self.processor is None
            else getattr(self.processor.config, "engine", None)
        )
        return given if isinstance(given, LLMEngine) else None

    def _check_may_wait(self, instead: str) -> None:
        """Whether a running event loop can wait for the job. Raises `ConfigError`."""
        if self._engine_object is not None:
            raise ConfigError(
                f"an engine object belongs to its event loop; use `{instead}`", field="engine"
            )
        if self.processor is not None:
            background.check_may_wait()

    def _main(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, done in an event loop; a stop by signal raised as `JobInterrupted`.

        A processor's is that of all work that has no event loop of its own: there are the engines
        that it names.
        """
        try:
            return asyncio.run(work) if self.processor is None else background.run(work)
        except _Stopped as stopped:
            raise JobInterrupted(str(stopped), stopped.number) from None

    def _main_in_thread(self, work: Coroutine[Any, Any, T]) -> T:
        """The same from inside a running event loop, by a thread that has none."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def main() -> None:
            try:
                future.set_result(self._main(work))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=main, name="penstock-job").start()
        while not future.done():
            # Not for ever, so that signals come through on every system.
            concurrent.futures.wait([future], 0.2)
        return future.result()

    async def _run(self, interrupts: Interrupts) -> RunResult:
        with interrupts:
            try:
                result = await execute(await self._plan(), interrupts)
            except asyncio.CancelledError:
                if interrupts.received is None:
                    raise
                raise _Stopped(interrupts.received, "stopped") from None
            if result.stopped_by is not None:
                kept = (
                    "are kept: the same command goes on"
                    if result.output not in (None, "-")
                    else "were done"
                )
                raise _Stopped(
                    result.stopped_by, f"stopped after {result.counts.rows:,} rows, which {kept}"
                )
            return result

    async def rows_to_read(self) -> Any:
        """For a job as the source of another: what it makes, run first or taken up. Raises as
        `arun`.
        """
        return await (await self.arun()).rows_to_read()

    async def _plan(self) -> Plan:
        """Check all that can be checked without the engine. Raises `ConfigError`, `InputError` or
        `OutputError`.
        """
        self._check_choices()
        schema = structured.load(self.schema)
        sampling = self._sampling(schema)
        choices.check_sampling_choices(sampling)
        output = self._open_output()
        engine = self._engine() if self.processor is None else None
        source = await open_source(self.source)
        try:
            return self._plan_for(source, engine, output, schema, sampling)
        except BaseException:
            await source.close()
            raise

    def _plan_for(
        self,
        source: Source,
        engine: LLMEngine | None,
        output: Output | Literal["-"] | None,
        schema: structured.Schema | None,
        sampling: Sampling,
    ) -> Plan:
        if isinstance(output, Output):
            for field, path in (("output", output.path), ("dead_letter", output.dead_letter)):
                if path is not None and source.reads(path):
                    raise ConfigError(
                        f"{path} is part of the input, or would be read as such",
                        field=field,
                        value=path,
                    )
        policy = ErrorPolicy(self.on_error or "keep")
        if self.processor is not None:
            form, step, policy = self._processor_rows(self.processor, output)
        else:
            assert engine is not None
            form, constant = self._engine_rows(source, engine, output, schema, sampling)
            step = EngineStep(engine, form, constant, self.max_attempts, policy)
        return Plan(
            source=source,
            output=output,
            form=form,
            step=step,
            identity=self._identity(source, engine, schema, sampling, form, output),
            limit=self.limit,
            keep_order=self.order == "input",
            policy=policy,
            limits=Limits(
                tokens=self.max_tokens_total,
                error_rate=self.max_error_rate,
                seconds=seconds_until(self.deadline),
            ),
            retry_failed=self.retry_failed,
            fresh=self.fresh,
            row_timeout=self.row_timeout,
            progress=self.progress,
        )

    def _processor_rows(
        self, processor: Processor, output: Output | Literal["-"] | None
    ) -> tuple[RowForm, Step, ErrorPolicy]:
        self._check_unset(
            _REPAIRS, "is said in the configuration of the processor, in a field of this name"
        )
        self._check_unset(
            _ROW_OPTIONS | _SAMPLING | _ENGINE_OPTIONS, "has no meaning beside a processor"
        )
        config = processor.config
        expects_errors = self.dead_letter is not None or self.max_error_rate is not None
        going_on = config.should_continue_on_error or expects_errors
        policy = ErrorPolicy(self.on_error or ("keep" if going_on else "fail"))
        keep_errors = going_on or self.on_error not in (None, "fail")
        columnar = isinstance(output, Output) and output.columnar
        held: Held = "values" if output is None else "packed" if columnar else "json"
        form = processor.rows(held=held, keep_errors=keep_errors)
        chain = StageChain(
            processor.stages,
            config.batch_size,
            config.concurrency,
            policy=policy,
            max_attempts=self.max_attempts,
        )
        return form, chain, policy

    def _engine_rows(
        self,
        source: Source,
        engine: LLMEngine,
        output: Output | Literal["-"] | None,
        schema: structured.Schema | None,
        sampling: Sampling,
    ) -> tuple[EngineForm, str | None]:
        """The form of rows that ask the engine, and the one adapter of all of them."""
        if (
            self.prompt is None
            and self.messages is None
            and (source.first is None or are_lines(source.first))
        ):
            self._check_lines(output)
            return OpenAILines(model=engine.model_source, created=int(time.time())), None
        in_column = self.adapter is not None and self.adapter in source.columns
        constant = None if in_column else self.adapter
        form = ColumnRequests(
            template=Template(self.prompt) if self.prompt is not None else None,
            messages=self.messages,
            system=self.system,
            sampling=sampling,
            schema=schema,
            adapter=constant,
            adapter_column=self.adapter if in_column else None,
            prefix=self.result_prefix,
            repair=self._repair(),
            values_for=_values_for(source, output),
        )
        if self.prompt is None and self.messages is None:
            raise ConfigError(
                "say what to ask: give a prompt with {column} in it, or a column of messages",
                field="prompt",
            )
        if self.prompt is not None and not form.columns and 1 not in (self.limit, source.rows):
            known = f" Columns: {', '.join(source.columns[:20])}." if source.columns else ""
            _log.warning(
                "The prompt names no {column}, so all rows ask the same.%s", printable(known)
            )
        if source.columns:
            flat = isinstance(output, Output) and output.form == "csv"
            form.check(source.columns, source.every_column(), flat=flat)
        return form, constant

    def _engine(self) -> LLMEngine:
        engine = engine_for(
            self.model, self.engine, self.engine_kwargs, deterministic=self.deterministic
        )
        if self.runtime == "local":
            return engine
        if self._engine_object is not None:
            raise ConfigError(
                "an engine object is in this process, and no replica on Ray", field="engine"
            )
        if self.adapter is not None and os.path.isdir(self.adapter):
            engine.adapters[self.adapter] = self.adapter  # replicas are told when they are deployed
        replicated: LLMEngine = runtimes.load(runtimes.ENGINES, self.runtime)(engine, self.replicas)
        return replicated

    def _check_choices(self) -> None:
        choices.check(self)
        if self.runtime == "local" and self.replicas != 1:
            raise ConfigError("is for the runtime 'ray'", field="replicas", value=self.replicas)
        if self.runtime == "ray" and self.processor is not None:
            raise ConfigError(
                "a processor runs on Ray when it is called on a Ray data set", field="runtime"
            )
        if self.prompt is not None and self.messages is not None:
            raise ConfigError("give a prompt or a column of messages, not both", field="messages")

    def _check_lines(self, output: Output | Literal["-"] | None) -> None:
        self._check_unset(
            _ROW_OPTIONS | _SAMPLING,
            "has no meaning for OpenAI batch lines, whose bodies say what is asked",
        )
        if isinstance(output, Output) and output.form != "jsonl":
            raise ConfigError(
                "OpenAI batch lines are answered in .jsonl", field="output", value=output.path
            )

    def _check_unset(self, names: frozenset[str], why: str) -> None:
        for option in fields(self):
            if option.name in names and getattr(self, option.name) != option.default:
                raise ConfigError(why, field=option.name)

    def _open_output(self) -> Output | Literal["-"] | None:
        if self.dead_letter is not None and (self.output is None or os.fspath(self.output) == "-"):
            raise ConfigError("needs an output whose job is kept", field="dead_letter")
        if self.output is None:
            if self.retry_failed or self.fresh:
                name = "retry_failed" if self.retry_failed else "fresh"
                raise ConfigError("needs an output whose job is kept", field=name)
            return None
        path = os.fspath(self.output)
        if path == "-":
            if sys.stdout is None:
                raise OutputError("standard output is closed")
            return "-"
        return Output(path, os.fspath(self.dead_letter) if self.dead_letter is not None else None)

    def _repair(self) -> Repair:
        repair = Repair.of(self.on_length, self.on_invalid_json, self.max_attempts)
        if self.on_invalid_json == "retry" and self.schema is None:
            raise ConfigError("has no meaning without a schema", field="on_invalid_json")
        if repair.raise_limit and self.max_tokens is None:
            raise ConfigError("there is no max_tokens to raise", field="on_length")
        return repair

    def _sampling(self, schema: structured.Schema | None) -> Sampling:
        return Sampling(
            max_tokens=self.max_tokens,
            min_tokens=self.min_tokens,
            temperature=0.0 if self.temperature is None else self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            seed=self.seed,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            structured=(
                StructuredOutput("json_schema", schema.text, checked=True)
                if schema is not None
                else None
            ),
        )

    def _identity(
        self,
        source: Source,
        engine: LLMEngine | None,
        schema: structured.Schema | None,
        sampling: Sampling,
        form: RowForm,
        output: Output | Literal["-"] | None,
    ) -> dict[str, Any]:
        """All that decides what the output will be."""
        data = source.fingerprint or {"input": source.name}
        how = {
            "limit": self.limit,
            "order": self.order,
            "output form": getattr(output, "form", None),
            "dead letter": os.fspath(self.dead_letter) if self.dead_letter is not None else None,
        }
        if engine is None:
            from penstock.batch.pipeline.identity import identity

            assert self.processor is not None
            return {**data, **identity(self.processor), **how}
        return {
            **data,
            "model": engine.model_source,
            "engine": engine.name,
            "engine options": engine.deciding_kwargs or None,
            "deterministic": engine.deterministic or None,
            "requests": form.kind,
            "prompt": self.prompt,
            "messages": self.messages,
            "system": self.system,
            "schema": schema.schema if schema is not None else None,
            **msgspec.to_builtins(msgspec.structs.replace(sampling, structured=None)),
            "adapter": self.adapter,
            "result prefix": self.result_prefix,
            "on_length": None if self.on_length == "keep" else self.on_length,
            "on_invalid_json": None if self.on_invalid_json == "keep" else self.on_invalid_json,
            **how,
        }


def _values_for(
    source: Source, output: Output | Literal["-"] | None
) -> Literal["json", "parquet"] | None:
    if output is None or source.json_values:
        return None
    if isinstance(output, Output) and output.columnar:
        # Columns of a schema pass through in Arrow form.
        return "parquet" if source.schema is None else None
    return "json"


class _Stopped(Exception):
    """Carries a signal's number out of the event loop, where no `KeyboardInterrupt` may pass."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number
