"""Ray's options for a stage's actors: their number and their resources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray.data

from penstock.batch.stages.engine import EngineStage
from penstock.config import parse_options
from penstock.errors import ConfigError
from penstock.llm_config import PlacementGroupConfig
from penstock.serve.config.placement import configured_bundles, merged

CONCURRENT_BATCHES = 8
"""Batches that an actor works on at once, so that a slow row holds up only its own."""
_OPTIONS = (("CPU", "num_cpus"), ("GPU", "num_gpus"), ("memory", "memory"))


def stage_options(config: Any, stage: Any) -> dict[str, Any]:
    """Ray's options for a stage: its own, else the processor's. Raises `ConfigError`."""
    given = dict(stage.map_batches_kwargs)
    concurrency = given.pop("concurrency", None) or config.concurrency
    least, most = (1, concurrency) if isinstance(concurrency, int) else concurrency
    at_once = getattr(config, "max_concurrent_batches", CONCURRENT_BATCHES)
    tasks = getattr(config, "max_tasks_in_flight_per_actor", None) or 2 * at_once
    pool = ray.data.ActorPoolStrategy(
        min_size=least, max_size=most, max_tasks_in_flight_per_actor=tasks
    )
    options = _asked(config.resources_per_bundle or {})
    if config.accelerator_type is not None:
        options["accelerator_type"] = config.accelerator_type
    placement = getattr(config, "placement_group_config", None)
    if placement is not None and isinstance(stage, EngineStage):
        if config.resources_per_bundle:
            raise ConfigError(
                "say resources here or in resources_per_bundle, not both",
                field="placement_group_config",
            )
        options |= _of_workers(placement, config.engine_kwargs)
    return {
        **options,
        "max_concurrency": at_once,
        **given,
        "compute": given.get("compute") or pool,
    }


def _of_workers(given: Mapping[str, Any], engine_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The resources of an engine's actor: the sum of its workers', which are its child
    processes.
    """
    placement = parse_options(PlacementGroupConfig, given, "placement_group_config")
    bundles = configured_bundles(placement, engine_kwargs)
    apart = placement.strategy in ("SPREAD", "STRICT_SPREAD") and len(bundles) > 1
    if apart or engine_kwargs.get("distributed_executor_backend") == "ray":
        raise ConfigError(
            "a processor's engine has all its workers on the machine of its actor",
            field=(
                "placement_group_config.strategy"
                if apart
                else "engine_kwargs.distributed_executor_backend"
            ),
            value=placement.strategy if apart else "ray",
            hint=(
                "ServeDeploymentProcessorConfig sends rows to a served model, whose workers may be"
                " anywhere."
            ),
        )
    return _asked(merged(bundles))


def _asked(resources: Mapping[str, float]) -> dict[str, Any]:
    """Resources as an actor's options."""
    left = dict(resources)
    options: dict[str, Any] = {option: left.pop(name) for name, option in _OPTIONS if name in left}
    return {**options, "resources": left} if left else options
