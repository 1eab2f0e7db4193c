"""A checked job: what is read, asked and written, by which engine, and how; and the checks that
make it of a `Job`, before anything is loaded.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, cast

import msgspec

from penstock import lazy
from penstock.batch import structured
from penstock.batch.decisions.questions import RowQuestions
from penstock.batch.job.extras import Extras, extras_of
from penstock.batch.job.forms import (
    CASCADE,
    SAMPLING,
    check_unset,
    engine_rows,
    processor_rows,
    questions_of,
)
from penstock.batch.job.identity import job_identity
from penstock.batch.job.policy import ErrorPolicy, Limits, seconds_until
from penstock.batch.job.result import Counts
from penstock.batch.pipeline.cascade import CascadeStep
from penstock.batch.pipeline.pipeline import EngineStep, Pipeline, Step
from penstock.batch.read import open_source
from penstock.batch.read.files import is_url
from penstock.batch.read.sources import Source
from penstock.batch.rows.cascaded import CascadedAnswers
from penstock.batch.rows.decisions import ColumnDecisions
from penstock.batch.rows.requests import EngineForm
from penstock.batch.rows.row import RowForm
from penstock.batch.rows.task_forms import VECTOR_KINDS, VECTOR_TYPES
from penstock.batch.write.manifest import FILE
from penstock.batch.write.outputs import Output
from penstock.engines.base import Capabilities, LLMEngine
from penstock.engines.registry import engine_for
from penstock.engines.sampling import check_sampling
from penstock.errors import ConfigError, OutputError, RequestError
from penstock.llm_config.batch import CLASS_HEADER
from penstock.llm_config.engine_choice import PROVIDERS
from penstock.types import FRACTIONS, Sampling, StructuredOutput

if TYPE_CHECKING:
    from penstock.batch.job.job import Job

_PATH: Any = str | os.PathLike
_BESIDE = ("dead_letter", "cache", "report", "audio_dir")
"""Options that name what a job writes beside its output."""
_WHOLE = (
    *("max_tokens", "top_k", "seed", "min_tokens"),
    *("limit", "max_attempts", "max_tokens_total", "replicas", "dimensions", "cache_mb"),
)
_REAL = (*FRACTIONS, "row_timeout", "cache_days", "max_error_rate", "threshold", *CASCADE)
_KINDS: tuple[tuple[Any, str, tuple[str, ...]], ...] = (
    (str, "text", ("attach", "embed", "filter", "prompt", "messages", "image", "system")),
    (str, "text", ("adapter", "result_prefix", "key")),
    (str, "text", ("audio", "language", "hotwords", "speak", "voice", "audio_format")),
    (Integral, "a whole number", _WHOLE),
    (Real, "a number", _REAL),
    (_PATH, "a path", ("output",)),
    (Mapping | _PATH, "a mapping, such as model_json_schema() gives, or a path", ("schema",)),
    (_PATH, "a path", _BESIDE),
    (str | Mapping, "an action, or a mapping of them", ("on_error",)),
    (str, "text", ("on_length",)),
    (bool, "true or false", ("deterministic", "incremental", "translate", "timestamps")),
    (bool, "true or false", ("fresh", "retry_failed", "progress")),
)
_ALLOWED = {
    "runtime": ("local", "ray"),
    "order": ("input", "done"),
    "on_invalid_json": ("keep", "retry"),
    "input_type": (None, "query", "document"),
    "vector_type": (None, *VECTOR_TYPES),
    "vectors": (None, *VECTOR_KINDS),
    "audio_format": (None, "wav", "mp3", "opus", "flac", "aac"),
}
_LEAST = {"limit": 0} | dict.fromkeys(
    ("max_tokens", "max_attempts", "max_tokens_total", "replicas", "dimensions", "cache_mb"), 1
)


@dataclass(kw_only=True)
class Plan:
    """What `step` is to do with the rows of `source`.

    `identity` is all that decides the output. `watch` is called with the counts before rows move.
    `most_rows` bounds the rows and answers in memory. `steered`: `penstock jobs` lists the job and
    steers it, if it is durable.
    """

    source: Source
    form: RowForm
    step: Step
    output: Output | Literal["-"] | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None
    keep_order: bool = True
    policy: ErrorPolicy = field(default_factory=lambda: ErrorPolicy("keep"))
    limits: Limits = field(default_factory=Limits)
    retry_failed: bool = False
    fresh: bool = False
    row_timeout: float | None = None
    progress: bool | None = None
    extras: Extras = field(default_factory=Extras)
    watch: Callable[[Counts], None] | None = None
    most_rows: int | None = None
    steered: bool = True

    def pipeline(self, counts: Counts) -> Pipeline:
        """What answers the rows, not started yet."""
        if self.watch is not None:
            self.watch(counts)
        if isinstance(self.step, CascadeStep):
            self.step.counts = counts
        return Pipeline(self.step, self.form, counts)

    @property
    def begun(self) -> bool:
        """Whether an earlier run has left a state that this run resumes."""
        output = self.output
        return isinstance(output, Output) and not self.fresh and (output.folder / FILE).exists()

    @property
    def total(self) -> int | None:
        """The number of rows, if known. If only `limit` is known it is that; there may be fewer."""
        known = [number for number in (self.source.rows, self.limit) if number is not None]
        return min(known, default=None)

    @property
    def value_columns(self) -> tuple[str, ...] | None:
        """The columns that must become Python values (None: all).

        If columns pass through in Arrow form, only the columns that requests are made of.
        """
        asked = self.form.columns
        if asked is None or not (isinstance(self.output, Output) and self.output.columnar):
            return None
        keys = self.extras.keys
        return asked if keys is None else (*asked, keys.column)


async def plan_of(job: Job) -> Plan:
    """Check what needs no engine. Raises `ConfigError`, `InputError` or `OutputError`."""
    _check_options(job)
    schema = structured.load(job.schema)
    sampling = _sampling(job, schema)
    output = _open_output(job)
    engines = _engines(job) if job.processor is None else ()
    asked = questions_of(job, engines) if engines else None
    source = await open_source(job.source)
    try:
        return await _plan(job, source, engines, output, schema, sampling, asked)
    except BaseException:
        await source.close()
        raise


async def _plan(
    job: Job,
    source: Source,
    engines: Sequence[LLMEngine],
    output: Output | Literal["-"] | None,
    schema: structured.Schema | None,
    sampling: Sampling,
    asked: RowQuestions | None,
) -> Plan:
    if isinstance(output, Output):
        _check_apart(job, output)
        for field, path in (("output", output.path), ("dead_letter", output.dead_letter)):
            if path is not None and source.is_touched_by_writing(path):
                raise ConfigError(
                    f"{path} is part of the input, or would be read as such",
                    field=field,
                    value=path,
                )
    policy = ErrorPolicy(job.on_error or "keep")
    if job.dead_letter is not None and policy.leaves_out_all:
        raise ConfigError("gets no rows: on_error leaves out all that fail", field="dead_letter")
    limits = Limits(
        tokens=job.max_tokens_total,
        error_rate=job.max_error_rate,
        seconds=seconds_until(job.deadline),
    )
    if job.processor is not None:
        form, step, policy = processor_rows(job, job.processor, output)
    else:
        form, constant = await engine_rows(job, source, engines, output, schema, sampling, asked)
        if len(engines) == 2:
            step = _cascade(job, source, (engines[0], engines[1]), form, policy, limits)
        else:
            step = step_of(engines[0], form, constant, job.max_attempts, policy)
    return Plan(
        source=source,
        output=output,
        form=form,
        step=step,
        identity=job_identity(job, source, engines, schema, sampling, form, output, asked),
        limit=job.limit,
        keep_order=job.order == "input",
        policy=policy,
        limits=limits,
        retry_failed=job.retry_failed,
        fresh=job.fresh,
        row_timeout=job.row_timeout,
        progress=job.progress,
        extras=extras_of(job, source, output, form, engines, asked),
    )


def _cascade(
    job: Job,
    source: Source,
    engines: tuple[LLMEngine, LLMEngine],
    form: EngineForm,
    policy: ErrorPolicy,
    limits: Limits,
) -> CascadeStep:
    if source.fingerprint is None:
        raise ConfigError(
            "two models need an input that can be read twice, for a sample of it: files, a table or"
            " a frame",
            field="source",
        )
    assert isinstance(form, ColumnDecisions | CascadedAnswers)
    return CascadeStep(
        engines,
        form,
        source,
        limit=job.limit,
        target=0.95 if job.target_accuracy is None else job.target_accuracy,
        delta=0.05 if job.delta is None else job.delta,
        seed=job.seed or 0,
        most_attempts=job.max_attempts,
        policy=policy,
        limits=limits,
        row_timeout=job.row_timeout,
    )


def _engines(job: Job) -> list[LLMEngine]:
    """The job's engine, or the small and the large one of a cascade."""
    given = {name: getattr(job, name) for name in ("model", "engine", "engine_kwargs")}
    lists = {name: list(value) for name, value in given.items() if isinstance(value, list | tuple)}
    for name, value in lists.items():
        if len(value) != 2:
            raise ConfigError(f"must be two, a small and a large one, not {len(value)}", field=name)
    for name, kind, meant in (("model", str, "text"), ("engine_kwargs", Mapping, "a mapping")):
        for value in lists.get(name, [given[name]]):
            if value is not None:
                _require(isinstance(value, kind), name, value, meant)
                if kind is str:
                    _require_unicode(name, value)
    if job.attach is not None:
        if lists:
            raise ConfigError("is one server's engine, and two models are given", field="attach")
        return [attached(job, job.attach)]
    if not lists:
        return [engine_of(job, **given)]
    if job.runtime != "local":
        raise ConfigError("two models run here only", field="runtime")
    return [
        engine_of(job, **{**given, **{name: value[place] for name, value in lists.items()}})
        for place in range(2)
    ]


def _open_output(job: Job) -> Output | Literal["-"] | None:
    if job.dead_letter is not None and (job.output is None or os.fspath(job.output) == "-"):
        raise ConfigError("needs an output whose job is kept", field="dead_letter")
    path = None if job.output is None else os.fspath(job.output)
    if path is None or path == "-":
        if job.retry_failed or job.fresh:
            name = "retry_failed" if job.retry_failed else "fresh"
            raise ConfigError("needs an output whose job is kept", field=name)
    elif job.retry_failed and job.fresh:
        raise ConfigError("has nothing to run again beside fresh", field="retry_failed")
    if path is None:
        return None
    if path == "-":
        if sys.stdout is None:
            raise OutputError("standard output is closed")
        return "-"
    return Output(path, os.fspath(job.dead_letter) if job.dead_letter is not None else None)


def _check_apart(job: Job, output: Output) -> None:
    """Raise `ConfigError` for a path inside the job's state directory, which is swept, or inside
    its output, which is replaced at the end.
    """
    places = {"the job's state": os.path.realpath(output.folder)}
    if not output.remote:
        places["the output"] = os.path.realpath(output.path)
    for name in _BESIDE:
        path = getattr(job, name)
        if path is None or is_url(os.fspath(path)):
            continue
        real = os.path.realpath(path)
        for what, place in places.items():
            if f"{real}/".startswith(f"{place}/"):
                raise ConfigError(f"{os.fspath(path)} is, or lies in, {what}", field=name)


def _sampling(job: Job, schema: structured.Schema | None) -> Sampling:
    given = {name: getattr(job, name) for name in SAMPLING if hasattr(job, name)}
    given |= {
        "temperature": 0.0 if job.temperature is None else job.temperature,
        "stop": (job.stop,) if isinstance(job.stop, str) else tuple(job.stop),
        "stop_token_ids": tuple(job.stop_token_ids),
    }
    plain = Sampling(**given)
    try:  # what no engine can follow; what one engine lacks shows when it has started
        check_sampling(plain, 1, Capabilities(frozenset(), 0, 0), "")
    except RequestError as error:
        name = error.param or ""
        raise ConfigError(str(error).removeprefix(f"{name} "), field=name) from None
    if schema is None:
        return plain
    answer = StructuredOutput("json_schema", schema.text, checked=True)
    return msgspec.structs.replace(plain, structured=answer)


def _check_options(job: Job) -> None:
    """Raise `ConfigError` for options of a wrong type or range, or that exclude each other."""
    optional = {option.name for option in fields(job) if option.default is None}
    for kind, meant, names in _KINDS:
        for name in names:
            value = getattr(job, name)
            if value is None and name in optional:
                continue
            is_flag = isinstance(value, bool) and kind is not bool
            _require(isinstance(value, kind) and not is_flag, name, value, meant)
            if kind is str:
                _require_unicode(name, value)
    for name in ("output", *_BESIDE):
        if "\0" in os.fspath(getattr(job, name) or ""):
            raise ConfigError("a path holds no zero byte", field=name, value=getattr(job, name))
    _require(
        job.processor is None or hasattr(job.processor, "stages"),
        *("processor", job.processor, "a Processor"),
    )
    stops = [job.stop] if isinstance(job.stop, str) else job.stop
    _require(_is_list_of(stops, str), "stop", job.stop, "text or a list of texts")
    for stop in stops:
        _require_unicode("stop", stop)
    ids = job.stop_token_ids
    _require(_is_list_of(ids, Integral), "stop_token_ids", ids, "a list of numbers")
    _check_ranges(job)
    if job.replicas != 1 and (job.processor is not None or job.attach is not None):
        raise ConfigError(
            "is for engines that the job starts itself", field="replicas", value=job.replicas
        )
    if job.runtime == "ray" and job.processor is not None:
        raise ConfigError(
            "a processor runs on Ray when it is called on a Ray data set", field="runtime"
        )
    if job.image is not None and (job.messages is not None or not (job.prompt or job.embed)):
        raise ConfigError(
            "goes with a prompt or with `embed`; conversations hold their own images",
            field="image",
        )
    if job.prompt is not None and job.messages is not None:
        raise ConfigError("give a prompt or a column of messages, not both", field="messages")


def _check_ranges(job: Job) -> None:
    for name, allowed in _ALLOWED.items():
        value = getattr(job, name)
        if value not in allowed:
            raise ConfigError(
                f"must be {' or '.join(filter(None, allowed))}, not {value!r}",
                field=name,
                value=value,
            )
    for name, least in _LEAST.items():
        number = getattr(job, name)
        if number is not None and number < least:
            raise ConfigError(f"must be at least {least}, not {number}", field=name, value=number)
    for name in _REAL:
        value = getattr(job, name)
        if value is not None and not math.isfinite(value):
            raise ConfigError(f"must be a finite number, not {value}", field=name)
    if job.row_timeout is not None and job.row_timeout <= 0:
        raise ConfigError(
            f"must be above 0, not {job.row_timeout}", field="row_timeout", value=job.row_timeout
        )
    for name in ("max_error_rate", "threshold", *CASCADE):
        share = getattr(job, name)
        if share is not None and not 0 <= share <= 1:
            raise ConfigError(f"must be from 0 to 1, not {share}", field=name)
    if job.seed is not None and not -(1 << 63) <= job.seed < 1 << 63:
        raise ConfigError("must fit into 64 bits", field="seed", value=job.seed)


def _require(holds: bool, name: str, value: object, meant: str) -> None:
    """Raise `ConfigError` unless the check of an option `holds`; `meant` is what it must be."""
    if not holds:
        raise ConfigError(f"must be {meant}, not a {type(value).__name__}", field=name, value=value)


def _require_unicode(name: str, value: object) -> None:
    """Raise `ConfigError` for text with a lone surrogate: Python reads a byte of the command line
    that is no UTF-8 as one, and no engine takes it.
    """
    try:
        str(value).encode()
    except UnicodeEncodeError as error:
        why = f"is no UTF-8 at character {error.start + 1}"
        raise ConfigError(why, field=name, value=value) from None


def _is_list_of(values: object, kind: type) -> bool:
    """Whether this is a list or tuple, and all its items are of `kind`."""
    return isinstance(values, list | tuple) and all(isinstance(value, kind) for value in values)


def engine_of(job: Job, model: Any, engine: Any, engine_kwargs: Any) -> LLMEngine:
    """The engine that these three options of a job ask for. Raises `ConfigError`."""
    if isinstance(engine, str) and engine in PROVIDERS:
        lazy.require("aiohttp", needed_by=f"The engine {engine}")
        from penstock.batch.provider.anthropic_batches import AnthropicBatchEngine
        from penstock.batch.provider.engine import provider_engine
        from penstock.batch.provider.openai_batches import OpenAIBatchEngine

        openai = engine == OpenAIBatchEngine.name
        return provider_engine(job, OpenAIBatchEngine if openai else AnthropicBatchEngine)
    made = engine_for(model, engine, engine_kwargs, deterministic=job.deterministic)
    if job.runtime == "local" and job.replicas == 1:
        return made
    if made is engine:
        raise ConfigError(
            "an engine object is in this process, and replicas are in others", field="engine"
        )
    if job.adapter is not None and os.path.isdir(job.adapter):
        made.adapters[job.adapter] = job.adapter  # replicas get it when they are deployed
    spread = lazy.load_runtime(lazy.RUNTIME_ENGINES, job.runtime)
    replicated: LLMEngine = spread(made, job.replicas)
    return replicated


def step_of(
    engine: LLMEngine, form: EngineForm, adapter: str | None, most: int, policy: ErrorPolicy
) -> EngineStep:
    """The step of a job with one engine, which a row may ask `most` times."""
    if engine.name in PROVIDERS:
        from penstock.batch.provider.engine import ProviderStep

        return ProviderStep(cast(Any, engine), form, adapter, most, policy)
    return EngineStep(engine, form, adapter, most, policy)


def attached(job: Job, url: str) -> LLMEngine:
    """A running server's engine, asked in the batch class. Raises `ConfigError`."""
    own = ("engine", "deterministic", "runtime")
    check_unset(job, own, "is the server's, to which the job is attached")
    if not url.startswith(("http://", "https://")):
        raise ConfigError(
            "must be a server's URL, such as http://127.0.0.1:8000", field="attach", value=url
        )
    given = dict(cast(Mapping[str, Any], job.engine_kwargs or {}))
    for name in ("base_url", "upstreams"):
        if name in given:
            raise ConfigError("is what attach says", field=f"engine_kwargs.{name}")
    url = url.rstrip("/")
    where: dict[str, Any] = {
        "base_url": url if url.endswith("/v1") else f"{url}/v1",
        "headers": {**given.pop("headers", {}), CLASS_HEADER: "batch"},
    }
    if os.environ.get("PENSTOCK_API_KEY"):
        where["api_key_env"] = "PENSTOCK_API_KEY"
    return engine_for(cast(str | None, job.model), "remote", {**where, **given})
