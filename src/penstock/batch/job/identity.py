"""What decides the output of a job: compared when the job is taken up again."""

from __future__ import annotations

import dis
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from penstock.batch.decisions.questions import RowQuestions
from penstock.batch.pipeline.configs import (
    COSTS_ONLY,
    EngineProcessorConfig,
    ProcessorConfig,
)
from penstock.batch.read.sources import Source
from penstock.batch.rows.row import RowForm
from penstock.batch.stages.base import StatefulStage
from penstock.batch.structured import Schema
from penstock.batch.write.outputs import Output
from penstock.config import Options, masked
from penstock.engines.base import LLMEngine, conversion_of, engine_class
from penstock.types import Sampling

if TYPE_CHECKING:
    from penstock.batch.job.job import Job
    from penstock.batch.pipeline.processor import Processor


# The options of jobs that embed, transcribe or speak. The first of each asks for the task.
EMBEDS = ("embed", "dimensions", "input_type", "vector_type", "vectors")
HEARS = ("audio", "language", "translate", "timestamps", "hotwords")
SPEAKS = ("speak", "voice", "audio_format", "audio_dir")


def job_identity(
    job: Job,
    source: Source,
    engines: Sequence[LLMEngine],
    schema: Schema | None,
    sampling: Sampling,
    form: RowForm,
    output: Output | Literal["-"] | None,
    deciding: RowQuestions | None,
) -> dict[str, Any]:
    """All that decides what the output will be, in plain values."""
    data = source.fingerprint or {"input": source.name}
    how = {
        "limit": job.limit,
        "key": job.key,
        "order": job.order,
        "output form": getattr(output, "form", None),
        "dead letter": os.fspath(job.dead_letter) if job.dead_letter is not None else None,
    }
    if job.processor is not None:
        return {**data, **processor_identity(job.processor), **how}
    engine = engines[0]
    cascade = [
        {"model": each.model_source, "engine": each.name, **each.deciding_kwargs}
        for each in engines[1:]
    ]
    conversions = [conversion_of(each.name, each.model_source) for each in engines]
    return {
        **data,
        "model": engine.model_source,
        "engine": engine.name,
        "conversion": conversions if any(conversions) else None,
        "engine options": engine.deciding_kwargs or None,
        "deterministic": engine.deterministic or None,
        "requests": form.kind,
        "prompt": job.prompt,
        "messages": job.messages,
        "image": job.image,
        "system": job.system,
        "schema": schema.schema if schema is not None else None,
        **msgspec.to_builtins(msgspec.structs.replace(sampling, structured=None)),
        "adapter": job.adapter,
        "result prefix": job.result_prefix,
        "on_length": None if job.on_length == "keep" else job.on_length,
        "on_invalid_json": None if job.on_invalid_json == "keep" else job.on_invalid_json,
        "cascade": [*cascade, job.target_accuracy, job.delta, job.seed] if cascade else None,
        # Without the key where it is unset: jobs that were begun before `vectors` existed resume.
        "embed": _options(job, EMBEDS if job.vectors else EMBEDS[:-1]),
        "hears": _options(job, HEARS),
        "speaks": _options(job, SPEAKS),
        "decide": None if deciding is None else deciding.identity(),
        **how,
    }


def _options(job: Job, names: Sequence[str]) -> dict[str, Any] | None:
    """The options of these names; None if the first, which asks for the task, is not given."""
    if getattr(job, names[0]) is None:
        return None
    given = {name: getattr(job, name) for name in names}
    return {
        name: os.fspath(value) if isinstance(value, os.PathLike) else value
        for name, value in given.items()
    }


def processor_identity(processor: Processor) -> dict[str, Any]:
    """The deciding parts of a processor by name, in plain values, secrets masked."""
    config = processor.config
    fields = _deciding_fields(config)
    engine = getattr(config, "engine", None)
    conversion = None
    if isinstance(engine, LLMEngine):
        fields["engine"] = {
            "engine": engine.name,
            "model": engine.model_source,
            **engine.deciding_kwargs,
        }
        conversion = conversion_of(engine.name, engine.model_source)
    elif isinstance(config, EngineProcessorConfig) and config.model_source is not None:
        conversion = conversion_of(config.engine_name, config.model_source)
    if isinstance(config, EngineProcessorConfig) and "engine_kwargs" in fields:
        deciding = engine_class(config.engine_name).deciding_options(fields.pop("engine_kwargs"))
        fields |= {"engine_kwargs": deciding} if deciding else {}
    does = {
        name: [
            _worker_name(stage.fn),
            _plain(_deciding_arguments(stage)),
        ]
        for name, stage in processor.stages.items()
        if stage.fn is not None
    }
    return {
        "processor": type(config).__name__,
        "processor config": masked(fields),
        "conversion": conversion,
        "stages": processor.list_stage_names(),
        "what stages do": masked(does),
        "preprocess": function_identity(processor.preprocess),
        "postprocess": function_identity(processor.postprocess),
    }


def _worker_name(worker: type) -> str:
    """A class by its place; one of Penstock's own by its name, as its module may move."""
    own = worker.__module__.partition(".")[0] == "penstock"
    return worker.__qualname__ if own else f"{worker.__module__}.{worker.__qualname__}"


def _deciding_fields(config: ProcessorConfig) -> dict[str, Any]:
    """The deciding fields that are not at their defaults. A stage whose configuration decides
    nothing more counts as True.
    """
    defaults = {part.name: part.default for part in msgspec.structs.fields(config)}
    fields: dict[str, Any] = {}
    for name, value in shown(config).items():
        if name in COSTS_ONLY:
            continue
        if name.endswith("_stage") and isinstance(value, Mapping):
            value = {part: given for part, given in value.items() if part not in COSTS_ONLY} or True
        if value != defaults[name]:
            fields[name] = value
    return fields


def _deciding_arguments(stage: StatefulStage) -> dict[str, Any]:
    """The arguments of a stage's workers. Of Penstock's own workers, those that decide nothing are
    left out, and so is the engine, which the configuration names.
    """
    assert stage.fn is not None
    if not stage.fn.__module__.startswith("penstock."):
        return stage.fn_constructor_kwargs
    left_out = COSTS_ONLY | {"source", "most", "repair"}
    return {
        name: value for name, value in stage.fn_constructor_kwargs.items() if name not in left_out
    }


def shown(config: Options) -> dict[str, Any]:
    """What a configuration says beyond its defaults, in plain values: objects by their class."""
    fields: dict[str, Any] = {}
    for part in msgspec.structs.fields(config):
        value = getattr(config, part.name)
        default = part.default_factory() if callable(part.default_factory) else part.default
        if value != default:
            fields[part.name] = shown(value) if isinstance(value, Options) else _plain(value)
    return fields


def _plain(value: Any) -> Any:
    """A value as a manifest can hold it: objects by their class."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return f"{getattr(value, '__module__', '')}.{name}"


def function_identity(function: Callable[..., Any] | None) -> str | None:
    """The function's name, and a digest of what it does, the same in each process until the
    function changes.

    The digest covers its code, its defaults, the texts, numbers and tuples that it refers to
    outside itself, and the functions of its module that it calls. It does not cover objects that
    can change while it runs, such as lists.
    """
    if function is None:
        return None
    name = getattr(function, "__qualname__", type(function).__qualname__)
    module = getattr(function, "__module__", "")
    meaning = repr(_meaning(function, set()))
    digest = blake2b(meaning.encode(errors="backslashreplace"), digest_size=8).hexdigest()
    return f"{module}.{name} {digest}"


def _meaning(function: Any, seen: set[CodeType]) -> Any:
    if isinstance(function, partial):
        given = [_constant(value) for value in (*function.args, *function.keywords.values())]
        return _meaning(function.func, seen), given, list(function.keywords)
    plain = getattr(function, "__func__", function)
    if not isinstance(plain, FunctionType):
        # An object that can be called.
        plain = getattr(type(plain).__call__, "__func__", type(plain).__call__)
    if not isinstance(plain, FunctionType) or plain.__code__ in seen:
        return None
    seen.add(plain.__code__)
    defaults = [
        _constant(value)
        for value in (*(plain.__defaults__ or ()), *(plain.__kwdefaults__ or {}).values())
    ]
    outside = [
        (name, _meaning(value, seen) if isinstance(value, FunctionType) else _constant(value))
        for name, value in _outside(plain)
        if not isinstance(value, FunctionType) or value.__module__ == plain.__module__
    ]
    return _code(plain.__code__), defaults, outside


def _outside(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """The names that the code refers to in its module and in the functions around it, without those
    that it sets itself.
    """
    names = {name: None for code in _codes(function.__code__) for name in code.co_names}
    own = {
        instruction.argval
        for code in _codes(function.__code__)
        for instruction in dis.get_instructions(code)
        if instruction.opname in ("STORE_GLOBAL", "STORE_DEREF")
    }
    known: dict[str, Any] = {
        name: function.__globals__[name] for name in names if name in function.__globals__
    }
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            known[name] = cell.cell_contents
        except ValueError:  # not set yet
            continue
    return ((name, known[name]) for name in sorted(known) if name not in own)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from _codes(part)


def _code(code: CodeType) -> Any:
    return (
        code.co_code,
        code.co_names,
        code.co_varnames,
        [_constant(part) for part in code.co_consts],
    )


def _constant(value: Any) -> Any:
    """A constant, in a form whose repr is the same in each process; other values by their type."""
    if isinstance(value, CodeType):
        return _code(value)
    if isinstance(value, tuple):
        return [_constant(part) for part in value]
    if isinstance(value, frozenset):
        return sorted(repr(_constant(part)) for part in value)
    if (
        value is None
        or value is ...
        or isinstance(value, str | bytes | int | float | complex | bool)
    ):
        return value
    return type(value).__qualname__
