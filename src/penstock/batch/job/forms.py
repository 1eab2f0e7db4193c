"""The form of a job's rows: what is asked for each and what becomes of it, by the job's options;
and which options have no meaning beside others.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from penstock.batch import structured
from penstock.batch.decisions.questions import RowQuestions, deciding
from penstock.batch.job.identity import EMBEDS, HEARS, SPEAKS
from penstock.batch.job.policy import ErrorPolicy
from penstock.batch.pipeline.pipeline import Step
from penstock.batch.pipeline.processor_rows import HeldAs
from penstock.batch.pipeline.stage_chain import StageChain
from penstock.batch.read.sources import Source, every_column
from penstock.batch.rows.cascaded import CascadedAnswers
from penstock.batch.rows.decisions import ColumnDecisions
from penstock.batch.rows.repair import Repair
from penstock.batch.rows.requests import ColumnRequests, EngineForm, Template
from penstock.batch.rows.row import RowForm
from penstock.batch.rows.task_forms import ColumnSpeech, ColumnTranscripts, ColumnVectors
from penstock.batch.write.outputs import Output
from penstock.engines.base import LLMEngine
from penstock.engines.media.audio import check_form
from penstock.errors import ConfigError, printable
from penstock.types import Sampling, TranscriptionRequest

if TYPE_CHECKING:
    from penstock.batch.job.job import Job
    from penstock.batch.pipeline.processor import Processor

_log = logging.getLogger(__name__)

# Options that say what is asked of a row; OpenAI batch lines say that themselves.
_REPAIRS = frozenset({"on_length", "on_invalid_json"})
_DECIDES = frozenset({"decide", "choices", "filter", "threshold", "target_accuracy", "delta"})
CASCADE = ("target_accuracy", "delta")
_ROW_OPTIONS = (
    _REPAIRS
    | _DECIDES
    | {*EMBEDS, *HEARS, *SPEAKS}
    | {*("prompt", "messages", "image", "system", "schema", "adapter")}
    | {*("result_prefix", "max_tokens")}
)
_ENGINE_OPTIONS = frozenset({"model", "engine", "engine_kwargs", "deterministic", "attach"})
SAMPLING = frozenset(Sampling.__struct_fields__)
_GENERATES = _REPAIRS | SAMPLING | {"schema"}


async def engine_rows(
    job: Job,
    source: Source,
    engines: Sequence[LLMEngine],
    output: Output | Literal["-"] | None,
    schema: structured.Schema | None,
    sampling: Sampling,
    asked: RowQuestions | None,
) -> tuple[EngineForm, str | None]:
    """The form of rows that ask the engine, and the one adapter of all of them."""
    if (
        job.prompt is None
        and job.messages is None
        and job.embed is None
        and job.audio is None
        and job.speak is None
        and asked is None
    ):
        # Late: the forms of all endpoints come with it.
        from penstock.batch.rows.openai_lines import OpenAILines, are_lines

        if source.first is None or are_lines(source.first):
            check_unset(
                job,
                _ROW_OPTIONS | SAMPLING,
                "has no meaning for OpenAI batch lines, whose bodies say what is asked",
            )
            if isinstance(output, Output) and output.form != "jsonl":
                raise ConfigError(
                    "OpenAI batch lines are answered in .jsonl", field="output", value=output.path
                )
            return OpenAILines(model=engines[0].model_source, created=0), None
    common: dict[str, Any] = {
        "prefix": job.result_prefix,
        "values_for": _values_for(source, output),
    }
    form = _without_answers(job, common)
    if form is not None:
        await _check_data(form, source, output)
        return form, None
    in_column = job.adapter is not None and job.adapter in source.columns
    constant = None if in_column else job.adapter
    input: dict[str, Any] = {
        "template": Template(job.prompt) if job.prompt is not None else None,
        "messages": job.messages,
        "system": job.system,
        "image": job.image,
        "sampling": sampling,
        "adapter": constant,
        "adapter_column": job.adapter if in_column else None,
        **common,
    }
    kind = CascadedAnswers if len(engines) == 2 else ColumnRequests
    form = (
        kind(schema=schema, repair=_repair(job), **input)
        if asked is None
        else ColumnDecisions(asked, cascade=len(engines) == 2, **input)
    )
    if job.prompt is None and job.messages is None:
        raise ConfigError(
            "say what to ask: give a prompt with {column} in it, or a column of messages",
            field="prompt",
        )
    if job.prompt is not None and not form.columns and 1 not in (job.limit, source.rows):
        known = f" Columns: {', '.join(source.columns[:20])}." if source.columns else ""
        known += " A column is in single braces; '{{' is a brace." if "{{" in job.prompt else ""
        _log.warning("The prompt names no {column}, so all rows ask the same.%s", printable(known))
    named = [column for column in source.columns if f"{{{column}}}" in (job.system or "")]
    if named:
        what = f"the system message stays as it is, {{{printable(named[0])}}} included"
        _log.warning("Only the prompt is a template: %s.", what)
    await _check_data(form, source, output)
    return form, constant


def _without_answers(job: Job, common: dict[str, Any]) -> ColumnRequests | None:
    """The form of rows that are embedded, transcribed or spoken; None if the model answers."""
    if job.embed is not None:
        return _vectors(job, common)
    check_unset(job, EMBEDS, "needs `embed`, the texts that become vectors")
    if job.audio is not None:
        return _transcripts(job, common)
    check_unset(job, HEARS, "needs `audio`, the column of recordings")
    if job.speak is not None:
        return _spoken(job, common)
    check_unset(job, SPEAKS, "needs `speak`, the texts that are spoken")
    return None


def _vectors(job: Job, common: dict[str, Any]) -> ColumnVectors:
    """The form of rows whose texts become vectors."""
    assert job.embed is not None
    meaningless = (_ROW_OPTIONS | SAMPLING) - {*EMBEDS, "image", "on_length", "result_prefix"}
    check_unset(job, meaningless, "has no meaning beside `embed`")
    if job.on_length not in ("keep", "truncate"):
        raise ConfigError(
            f"must be keep or truncate where texts are embedded, not {job.on_length!r}",
            field="on_length",
            value=job.on_length,
        )
    if job.vectors == "sparse" and job.dimensions is not None:
        raise ConfigError("sparse vectors have none to choose: leave it out", field="dimensions")
    images_alone = job.image == job.embed
    return ColumnVectors(
        template=Template("") if images_alone else _template(job.embed, "embed"),
        image=job.image,
        dimensions=job.dimensions,
        input_type=job.input_type,
        truncate=job.on_length == "truncate",
        vector_type=job.vector_type or "float32",
        vectors=job.vectors or "dense",
        sampling=Sampling(),
        **common,
    )


def questions_of(job: Job, engines: Sequence[LLMEngine]) -> RowQuestions | None:
    """The questions that a job asks about each row; None if it asks none. Raises `ConfigError`."""
    asked = deciding(job.decide, job.choices, job.filter, job.threshold, engines[0].model_source)
    cascade = len(engines) == 2
    if not cascade:
        check_unset(job, CASCADE, "is of two models, and there is one")
    elif asked is None:
        if job.schema is None:
            why = "two of them make decisions or answers with a schema, and neither is asked for"
            raise ConfigError(why, field="model")
        if job.temperature:
            raise ConfigError("must be 0 for two models, which are compared", field="temperature")
    if cascade and job.adapter is not None:
        raise ConfigError("has no meaning for two models", field="adapter")
    if asked is not None:
        meaningless = _GENERATES - ({"seed"} if cascade else set())
        check_unset(job, meaningless, "has no meaning for decisions, which generate nothing")
    return asked


def processor_rows(
    job: Job, processor: Processor, output: Output | Literal["-"] | None
) -> tuple[RowForm, Step, ErrorPolicy]:
    """The form of rows that go through a processor, its stages, and what becomes of errors."""
    check_unset(
        job, _REPAIRS, "is said in the configuration of the processor, in a field of this name"
    )
    check_unset(job, _ROW_OPTIONS | SAMPLING | _ENGINE_OPTIONS, "has no meaning beside a processor")
    config = processor.config
    expected = job.dead_letter is not None or job.max_error_rate is not None
    going_on = expected or config.should_continue_on_error
    policy = ErrorPolicy(job.on_error or ("keep" if going_on else "fail"))
    keep_errors = going_on or job.on_error not in (None, "fail")
    columnar = isinstance(output, Output) and output.columnar
    held_as: HeldAs = "values" if output is None else "packed" if columnar else "json"
    form = processor.rows(held_as=held_as, keep_errors=keep_errors)
    chain = StageChain(
        processor.stages,
        config.batch_size,
        config.concurrency,
        policy=policy,
        max_attempts=job.max_attempts,
    )
    return form, chain, policy


def _transcripts(job: Job, common: dict[str, Any]) -> ColumnTranscripts:
    """The form of rows whose recordings become text."""
    assert job.audio is not None
    meaningless = (_ROW_OPTIONS | SAMPLING) - {*HEARS, "result_prefix", "max_tokens"}
    check_unset(job, meaningless, "has no meaning beside `audio`")
    asked = TranscriptionRequest(
        b"",
        job.language,
        "translate" if job.translate else "transcribe",
        job.max_tokens,
        timestamps=job.timestamps,
        hotwords=job.hotwords or "",
    )
    return ColumnTranscripts(audio=job.audio, asked=asked, sampling=Sampling(), **common)


def _spoken(job: Job, common: dict[str, Any]) -> ColumnSpeech:
    """The form of rows whose texts are spoken."""
    assert job.speak is not None
    meaningless = (_ROW_OPTIONS | SAMPLING) - {*SPEAKS, "result_prefix"}
    check_unset(job, meaningless, "has no meaning beside `speak`")
    if job.audio_dir is None:
        raise ConfigError("say where the spoken texts go: give a directory", field="audio_dir")
    audio_format = job.audio_format or "wav"
    check_form(audio_format)
    return ColumnSpeech(
        folder=Path(job.audio_dir),
        audio_format=audio_format,
        voice=job.voice,
        template=_template(job.speak, "speak"),
        sampling=Sampling(),
        **common,
    )


def _template(given: str, field: str) -> Template:
    """The template of an option that is a column's name, or text with `{column}` in it."""
    return Template(given if "{" in given else f"{{{given}}}", field)


async def _check_data(
    form: ColumnRequests, source: Source, output: Output | Literal["-"] | None
) -> None:
    if source.columns:
        flat = isinstance(output, Output) and output.form == "csv"
        every = await every_column(source, form.columns or ())
        form.check(source.columns, every, flat=flat)


def _repair(job: Job) -> Repair:
    repair = Repair.of(job.on_length, job.on_invalid_json, job.max_attempts)
    if job.on_invalid_json == "retry" and job.schema is None:
        raise ConfigError("has no meaning without a schema", field="on_invalid_json")
    if repair.raise_limit and job.max_tokens is None:
        raise ConfigError("there is no max_tokens to raise", field="on_length")
    return repair


def _values_for(
    source: Source, output: Output | Literal["-"] | None
) -> Literal["json", "parquet"] | None:
    if output is None or source.json_values:
        return None
    if isinstance(output, Output) and output.columnar:
        # Columns of a schema pass through in Arrow form.
        return "parquet" if source.schema is None else None
    return "json"


def check_unset(job: Job, names: Collection[str], why: str) -> None:
    """Raise `ConfigError`, with `why`, if an option of these names is given."""
    for option in fields(job):
        if option.name in names and getattr(job, option.name) != option.default:
            raise ConfigError(why, field=option.name)
