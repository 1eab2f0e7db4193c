"""What of a processor decides the output of its job: compared when the job is taken up again."""

from __future__ import annotations

from typing import Any

from penstock.batch.configs import plain_value, shown
from penstock.batch.function_identity import function_identity
from penstock.batch.keeper import deciding, deciding_options
from penstock.batch.processor import Processor
from penstock.batch.stages.base import StatefulStage
from penstock.config import masked
from penstock.engines.base import LLMEngine

_NOT_DECIDING = frozenset(
    {
        *("batch_size", "concurrency", "accelerator_type", "resources_per_bundle", "experimental", "runtime_env"),
        *("placement_group_config", "max_pending_requests", "max_concurrent_batches", "max_attempts"),
        *("max_tasks_in_flight_per_actor", "log_engine_metrics", "should_continue_on_error"),
        *("headers", "session_factory", "qps", "requests_per_minute", "tokens_per_minute", "adaptive"),
        *("max_retries", "base_retry_wait_time_in_s", "timeout_s", "request_timeout_s", "rows_per_call"),
    }
)


def identity(processor: Processor) -> dict[str, Any]:
    """The deciding parts by name, in plain values, secrets masked."""
    config = processor.config
    said = {name: value for name, value in shown(config).items() if name not in _NOT_DECIDING}
    engine = getattr(config, "engine", None)
    if isinstance(engine, LLMEngine):
        said["engine"] = {"engine": engine.name, "model": engine.model_source, **deciding_options(engine)}
    if "engine_kwargs" in said:
        said["engine_kwargs"] = deciding(said["engine_kwargs"])
    does = {
        name: [f"{stage.fn.__module__}.{stage.fn.__qualname__}", plain_value(_deciding_arguments(stage))]
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


def _deciding_arguments(stage: StatefulStage) -> dict[str, Any]:
    """What a stage's workers are made with; of those of this package without what decides nothing, and without the
    engine, of which the configuration tells.
    """
    assert stage.fn is not None
    if not stage.fn.__module__.startswith("penstock."):
        return stage.fn_constructor_kwargs
    left_out = _NOT_DECIDING | {"source", "most", "repair"}
    return {name: value for name, value in stage.fn_constructor_kwargs.items() if name not in left_out}
