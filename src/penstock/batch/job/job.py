"""A batch job: what it is to do, checked before anything is loaded."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import logging
import os
import signal
import textwrap
import threading
from collections.abc import (
    AsyncIterable,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

from penstock import background
from penstock.batch.job.execution import ENDING, Interrupts, JobInterrupted, execute
from penstock.batch.job.plan import Plan, plan_of
from penstock.batch.job.result import RunResult
from penstock.batch.pipeline.processor import Processor, in_event_loop
from penstock.batch.read.sources import check_column, every_column
from penstock.engines.base import LLMEngine
from penstock.errors import ConfigError
from penstock.llm_config.engine_choice import PROVIDERS

if TYPE_CHECKING:
    from penstock.batch.job.forecast import Forecast

_log = logging.getLogger(__name__)

T = TypeVar("T")
P = ParamSpec("P")


@dataclass
class Job:
    """A language model over every row of a data set.

    What to read and write:
        source: a path, directory, glob or URL of Parquet, JSONL/NDJSON or CSV;
            "-" for JSON lines on standard input; a pyarrow table or record
            batch reader; a pandas or Polars frame; an iterable or asynchronous
            iterable of dicts. A thread of its own reads an iterable.
        output: a path or URL ending in .jsonl, .parquet or .csv; a directory
            (ending in "/") for Parquet files; "-" for JSON lines on standard
            output; None keeps the rows in `RunResult`. A path makes the job
            durable: the same job on the same path resumes what was interrupted.

    What to run:
        model: "demo", a model directory or file, or a hub id. Default "demo".
            Two of them, the small one first, decide or answer with a schema as
            a cascade.
        engine: an engine's name, or an engine object; a running one keeps
            running. Default "openvino". "openai-batch" and "anthropic-batch"
            hand the rows in as batches of that provider. Of a cascade: for
            both, or a list of two.
        engine_kwargs: options of an engine that is given by name. Of a cascade:
            as `engine`.
        deterministic: the same row gets the same answer whatever runs beside
            it, in any order, also in a resumed job. It costs speed. Engines
            that cannot promise it refuse it.
        attach: the URL of a running Penstock server, whose engine does the work
            in the place of one here: as requests of the batch class, which take
            what its other users leave. Results come here. `model` is a model of
            the server; default: the one that it has. The key is taken from the
            environment's PENSTOCK_API_KEY, if that is set.
        runtime: "local" is this machine. "ray" is a Ray cluster: the one that
            RAY_ADDRESS names, the one on this machine, or one of its own. The
            job is the same, so either runtime resumes what the other began.
        replicas: how many copies of the engine answer the rows. On this machine
            each has a part of the CPU cores.

        processor: stages of your own choosing
            (`penstock.batch.build_processor`) in the place of an engine and of
            what to ask. Of the options below only those of how to run then have
            a meaning. Its configuration says whether a failing row ends the
            job, unless `on_error` does.

    What to decide, in the place of an answer (the input of the questions is
    made as below):
        decide: questions, as a list, a mapping or a path of YAML or JSON; see
            docs/decisions.md. Each becomes the columns `name` and
            `name_probabilities`.
        choices: options of one more question, `choice`: which of them fits
            best. Text with commas, or a list as in a question of `decide`, in
            which a number is the value of the column too.
        filter: a question with yes or no, `filter`. Rows stay in the output
            where yes has at least the probability `threshold` (default 0.5).
        target_accuracy, delta: of a cascade. Rows go to the large model unless
            the small one is so sure that, with probability 1 - `delta` (default
            0.05), at least this share of all rows (default 0.95) gets the large
            model's decision. `seed` draws the sample that shows it.

    What to embed, in the place of an answer:
        embed: the column of texts, or text with `{column}` in it. Each becomes
            a vector, in the column `embedding`. With `image`, the images before
            the text too; name that column here as well for images alone.
        dimensions: how many numbers a vector has. Default: as many as the model
            makes.
        input_type: "query" or "document" puts the model's instruction for these
            before each text.
        vector_type: the type of the numbers: "float32" (default), "float16", or
            "int8" (each vector scaled so that its largest number is 127, which
            keeps cosines).
        vectors: "dense" (default): one for each text; "multi": a list of them,
            one for each token (late interaction); "sparse": `indices` (token
            ids) and `values` (SPLADE).

    What to hear or speak, in the place of an answer:
        audio: a column of recordings: bytes, a path, a URL, a data URI, or a
            mapping with `bytes` or `path`. What is said becomes the columns
            `response`, `language` and `duration` (seconds). An input of audio
            files (a directory or a glob) has the one column `path`.
        language: that of all recordings, such as "en". Default: it is detected.
        translate: write English, whatever the language.
        timestamps: one more column, `segments`, with the times of each.
        hotwords: words to expect.
        speak: the column of texts, or text with `{column}` in it. Each is
            spoken into a file; the column `audio` has its path, `duration` its
            seconds.
        audio_dir: the directory of these files.
        voice: a voice of the model. Default: its own.
        audio_format: "wav" (default), "mp3", "opus", "flac" or "aac".

    What to ask (input in OpenAI's batch form needs none of these, and takes
    none):
        prompt: text with `{column}` in it, which becomes the user's message.
        messages: the column that holds whole conversations, as lists of
            messages or as JSON text.
        image: with a prompt or `embed`, a column of images before its text:
            bytes, a path, a data URI, a mapping with `bytes` or `path`, an
            image of Pillow's, or a list of these. A PDF is an image for each
            page; a video is one. The model must be one that sees.
        system: a system message before each.
        schema: a JSON Schema (mapping or path) that answers follow; its fields
            become columns.
        adapter: a column with the names of LoRA adapters (null: none), else one
            adapter's name or directory.
        max_tokens, temperature (default 0: the likeliest token), top_p, top_k,
        min_p, seed, stop, stop_token_ids, min_tokens, ignore_eos,
        presence_penalty, frequency_penalty, repetition_penalty: as in
        `penstock.types.Sampling`.

    How to run:
        limit: read only this many rows.
        order: "input" writes rows in the order of the input, "done" as they
            finish.
        on_error: "keep" makes a failing row an error row, "skip" leaves it out
            of the output, "fail" stops the job at it, "retry" tries it again
            though its failure looks permanent, and then keeps it. Or a mapping
            of kinds of errors (`error.type`) to these, with "*" for the others.
            Default: "keep"; "fail" with a processor that does not continue on
            errors, unless `dead_letter` or `max_error_rate` is given.
        on_length: "raise" asks again, with twice the `max_tokens`, for an
            answer that these cut off; "truncate" shortens a prompt, or a text
            to embed, that is too long for the model; "raise,truncate" does
            both. Default "keep": neither.
        on_invalid_json: "retry" tells the model what was wrong with an answer
            that does not follow the schema, and asks again, up to
            `max_attempts` times. Default "keep": it becomes an error row.
        dead_letter: a path ending in .jsonl for the rows that failed; the
            output leaves them out.
        retry_failed: run the error rows of an earlier run again, and nothing
            that succeeded.
        fresh: discard what an earlier run did.
        incremental: take the output of an earlier input of this job further:
            rows whose `key` and request are those of an earlier row keep its
            answer, new and changed ones run, and rows that are gone leave the
            output. The earlier run must have been incremental too.
        key: the column that tells rows apart: text or numbers, none null, none
            twice.
        cache: a directory or URL of answers that jobs share. Deterministic
            requests (greedy, or with a seed) to the same model with the same
            options are answered from there, and new answers go there. At most
            `cache_mb` MiB (default 10,240; the oldest go), none older than
            `cache_days` (default 30).
        report: a path ending in .html for a page about the job, written when it
            ends, also when it is stopped: speed over time, tokens, latencies,
            lengths, errors, some rows.
        max_tokens_total: stop when prompts and answers of this run have so many
            tokens together.
        max_error_rate: stop when more than this share (0 to 1) of the rows
            failed, from 50 rows on.
        deadline: stop then: seconds from now, a duration such as "2h", or a
            time. A job that one of these limits stops raises `JobLimitError`,
            and can be resumed. With `attach` a new job asks for some rows
            first, and is refused (`ConfigError`) if it would not end in time.
        max_attempts: how often a row is tried if its failure may pass.
        row_timeout: seconds after which a row without an answer becomes an
            error row (`engine_timeout`): all its attempts together, from when
            it goes to the engine. Default: no limit.
        result_prefix: goes before the name of each result column.
        progress: show a progress line on standard error. Default: where that is
            a terminal.
    """

    source: Any
    output: str | os.PathLike[str] | None = None
    _: KW_ONLY
    model: str | Sequence[str] | None = None
    engine: str | LLMEngine | Sequence[str | LLMEngine] | None = None
    engine_kwargs: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    deterministic: bool = False
    attach: str | None = None
    runtime: Literal["local", "ray"] = "local"
    replicas: int = 1
    processor: Processor | None = None
    decide: Any = None
    choices: Sequence[Any] | str | None = None
    filter: str | None = None
    threshold: float | None = None
    target_accuracy: float | None = None
    delta: float | None = None
    embed: str | None = None
    dimensions: int | None = None
    input_type: Literal["query", "document"] | None = None
    vector_type: Literal["float32", "float16", "int8"] | None = None
    vectors: Literal["dense", "multi", "sparse"] | None = None
    audio: str | None = None
    language: str | None = None
    translate: bool = False
    timestamps: bool = False
    hotwords: str | None = None
    speak: str | None = None
    voice: str | None = None
    audio_format: Literal["wav", "mp3", "opus", "flac", "aac"] | None = None
    audio_dir: str | os.PathLike[str] | None = None
    prompt: str | None = None
    messages: str | None = None
    image: str | None = None
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
    incremental: bool = False
    key: str | None = None
    cache: str | os.PathLike[str] | None = None
    cache_mb: int | None = None
    cache_days: float | None = None
    report: str | os.PathLike[str] | None = None
    max_attempts: int = 3
    row_timeout: float | None = None
    result_prefix: str = ""
    progress: bool | None = None

    def run(self) -> RunResult:
        """Do the job. Raises `PenstockError`, or `KeyboardInterrupt` when a signal stopped it."""
        interrupts = Interrupts(*((signal.SIGINT,) if in_event_loop() else ENDING))
        try:
            return self._wait_for(partial(self._run, interrupts), "await penstock.arun(...)")
        finally:
            interrupts.restore()

    async def arun(self) -> RunResult:
        """Do the job in the running loop. Raises `PenstockError`. Cancelling keeps what is done."""
        with Interrupts() as interrupts:
            return await execute(await self._planned(), interrupts)

    def plan(self, *, trial: int = 32) -> Forecast:
        """What the job will be like: its rows, tokens, duplicates, rows that are too long, and its
        time.

        Reads the data, starts the engine, and asks for `trial` rows, at most 256. Writes nothing.
        Raises `PenstockError`.
        """
        return self._wait_for(partial(self.aplan, trial=trial), "await job.aplan()")

    async def aplan(self, *, trial: int = 32) -> Forecast:
        """Like `plan`, for a running event loop."""
        from penstock.batch.job.forecast import MOST_TRIED, forecast

        if not 0 <= trial <= MOST_TRIED:
            why = f"must be from 0 to {MOST_TRIED}, not {trial}"
            raise ConfigError(why, field="trial", value=trial)
        if self._read_once:
            raise ConfigError(
                "can be read once only, and the job itself must read it", field="source"
            )
        if self.engine in PROVIDERS:
            raise ConfigError(
                f"{self.engine} has no trial: its answers take up to a day, and cost money."
                " Plan with the engine 'remote' for the same model",
                field="engine",
                value=self.engine,
            )
        return await forecast(await plan_of(self), trial)

    async def _planned(self) -> Plan:
        """The plan of the job. Raises `ConfigError` if a server would not be done in time."""
        plan = await plan_of(self)
        if self.attach is not None and self.deadline is not None and not plan.begun:
            from penstock.batch.job.forecast import TRIAL, check_deadline

            if self._read_once:
                _log.warning("The deadline is not checked: the input can be read once only.")
            else:
                check_deadline(await self.aplan(trial=TRIAL), plan.limits)
        return plan

    @property
    def _read_once(self) -> bool:
        """Whether the input can be read once only."""
        return self.source == "-" or isinstance(self.source, AsyncIterable | Iterator)

    def _wait_for(self, work: Callable[[], Coroutine[Any, Any, T]], instead: str) -> T:
        """The result of `work`, done in an event loop of its own; from inside a running one by a
        thread that has none. Raises `ConfigError`, which names what to use `instead`, where the
        running loop must not wait.
        """
        if not in_event_loop():
            return self._main(work())
        asks = self if self.processor is None else self.processor.config
        given = getattr(asks, "engine", None)
        engines = given if isinstance(given, list | tuple) else [given]
        if any(isinstance(engine, LLMEngine) for engine in engines):
            raise ConfigError(
                f"an engine object belongs to its event loop; use `{instead}`", field="engine"
            )
        if self.processor is not None:
            background.check_may_wait()
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def main() -> None:
            try:
                future.set_result(self._main(work()))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=main, name="penstock-job").start()
        while not future.done():
            # Not for ever, so that signals come through on every system.
            concurrent.futures.wait([future], 0.2)
        return future.result()

    def _main(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` in an event loop. A processor's engines belong to the background loop, so its
        jobs run there. A stop by signal is raised as `JobInterrupted`.
        """
        try:
            if self.processor is not None:
                return background.run(work)
            with background.while_program_lives():
                return asyncio.run(work)
        except _Stopped as stopped:
            raise JobInterrupted(str(stopped), stopped.number) from None

    async def _run(self, interrupts: Interrupts) -> RunResult:
        with interrupts:
            try:
                result = await execute(await self._planned(), interrupts)
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
        """What a job with this one as its source reads, once this one ran. Raises as `arun`."""
        return await (await self.arun()).rows_to_read()


class _Stopped(Exception):
    """Carries a signal's number out of the event loop, where no `KeyboardInterrupt` may pass."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


class _Signature(inspect.Signature):
    """For `help`: without annotations, which the docstring says in words, within 80 columns."""

    def __str__(self) -> str:
        bare = [one.replace(annotation=one.empty) for one in self.parameters.values()]
        text = inspect.Signature.__str__(inspect.Signature(bare))
        return textwrap.fill(text, 76, subsequent_indent="    ", break_on_hyphens=False)

    def format(self, **_: object) -> str:  # what `help` calls from Python 3.13 on
        return str(self)


Job.__init__.__signature__ = _Signature(  # type: ignore[attr-defined]
    list(inspect.signature(Job.__init__).parameters.values())
)


def _with_parameters_of(job: Callable[P, Job]) -> Callable[[Callable[..., T]], Callable[P, T]]:
    """Give a function the parameters of `Job`, for type checkers, IDEs and `help`, and what its
    docstring says of them.
    """

    def decorate(function: Callable[..., T]) -> Callable[P, T]:
        function.__signature__ = _Signature(  # type: ignore[attr-defined]
            list(inspect.signature(job).parameters.values()),
            return_annotation=inspect.signature(function).return_annotation,
        )
        _, _, parameters = (inspect.getdoc(job) or "").partition("\n")
        function.__doc__ = f"{inspect.getdoc(function)}\n{parameters}"
        return function

    return decorate


@_with_parameters_of(Job)
def run(*args: Any, **kwargs: Any) -> RunResult:
    """Run a language model over a data set, and return when all rows are done.

    Works inside a running event loop too (as in a notebook), except with an
    engine object: use `arun` there. Ctrl-C, SIGTERM and SIGHUP finish the rows
    in flight, keep what is done and raise `KeyboardInterrupt`; the same call
    resumes. A wrong option raises `ConfigError` before anything is loaded.
    """
    return Job(*args, **kwargs).run()


@_with_parameters_of(Job)
def arun(*args: Any, **kwargs: Any) -> Awaitable[RunResult]:
    """Like `run`, for a running event loop: `await penstock.arun(...)`.

    Cancelling it keeps what is done.
    """
    return Job(*args, **kwargs).arun()


async def answered_rows(
    job: Job, needed: Sequence[tuple[str, str]]
) -> tuple[list[dict[str, Any]], Sequence[str]]:
    """The rows of a job, and the columns that its requests are made of. `needed` are options and
    the columns that they name: `ConfigError`, before any row is asked, for one that no row has;
    after it where the data can be read once only.
    """
    plan = await plan_of(job)
    try:
        for field, column in needed:
            every = await every_column(plan.source, (column,))
            if every:  # else nobody can tell yet, or there are no rows
                check_column(column, every, field)
    except BaseException:
        await plan.source.close()
        raise
    with Interrupts() as interrupts:
        result = await execute(plan, interrupts)
    rows = list(result.rows())
    names = dict.fromkeys(name for row in rows for name in row)
    known = [name for name in names if not name.startswith(job.result_prefix)]
    for field, column in needed:
        if rows:
            check_column(column, known, field)
    return rows, plan.form.columns or known
