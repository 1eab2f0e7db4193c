"""What of a processor decides the output of its job: compared when the job is taken up again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from penstock.batch.pipeline.configs import (
    COSTS_ONLY,
    EngineProcessorConfig,
    ProcessorConfig,
    plain_value,
    shown,
)
from penstock.batch.pipeline.function_identity import function_identity
from penstock.batch.pipeline.processor import Processor
from penstock.batch.stages.base import StatefulStage
from penstock.config import masked
from penstock.engines.base import LLMEngine, engine_class


def identity(processor: Processor) -> dict[str, Any]:
    """The deciding parts by name, in plain values, secrets masked."""
    config = processor.config
    said = _deciding_fields(config)
    engine = getattr(config, "engine", None)
    if isinstance(engine, LLMEngine):
        said["engine"] = {
            "engine": engine.name,
            "model": engine.model_source,
            **engine.deciding_kwargs,
        }
    if isinstance(config, EngineProcessorConfig) and "engine_kwargs" in said:
        deciding = engine_class(config.engine_name).deciding_options(said.pop("engine_kwargs"))
        said |= {"engine_kwargs": deciding} if deciding else {}
    does = {
        name: [
            f"{stage.fn.__module__}.{stage.fn.__qualname__}",
            plain_value(_deciding_arguments(stage)),
        ]
        for name, stage in processor.stages.items()
        if stage.fn is not None
    }
    return {
        "processor": type(config).__name__,
        "processor config": masked(said),
        "stages": processor.list_stage_names(),
        "what stages do": masked(does),
        "preprocess": function_identity(processor.preprocess),
        "postprocess": function_identity(processor.postprocess),
    }


def _deciding_fields(config: ProcessorConfig) -> dict[str, Any]:
    """The deciding fields that are not at their defaults. A stage that says nothing else is on."""
    defaults = {part.name: part.default for part in msgspec.structs.fields(config)}
    said: dict[str, Any] = {}
    for name, value in shown(config).items():
        if name in COSTS_ONLY:
            continue
        if name.endswith("_stage") and isinstance(value, Mapping):
            value = {part: given for part, given in value.items() if part not in COSTS_ONLY} or True
        if value != defaults[name]:
            said[name] = value
    return said


def _deciding_arguments(stage: StatefulStage) -> dict[str, Any]:
    """What a stage's workers are made with; of those of this package without what decides nothing,
    and without the engine, of which the configuration tells.
    """
    assert stage.fn is not None
    if not stage.fn.__module__.startswith("penstock."):
        return stage.fn_constructor_kwargs
    left_out = COSTS_ONLY | {"source", "most", "repair"}
    return {
        name: value for name, value in stage.fn_constructor_kwargs.items() if name not in left_out
    }
