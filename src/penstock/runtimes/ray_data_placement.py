"""Where the actors of a processor's stages run on Ray, and how many there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray.data
import ray.util
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from penstock.config import import_object, parse_options
from penstock.errors import ConfigError
from penstock.llm_config import PlacementGroupConfig
from penstock.runtimes.placement import configured_bundles

ENGINE_STAGE = "penstock.batch.stages.engine:EngineStage"
CONCURRENT_BATCHES = 8
"""Batches that an actor works on at once, so that a slow row holds up only its own."""
_OPTIONS = (("CPU", "num_cpus"), ("GPU", "num_gpus"), ("memory", "memory"))


def stage_options(config: Any, stage: Any) -> dict[str, Any]:
    """Ray's options for a stage: its own, with the processor's resources where it says none."""
    given = dict(stage.map_batches_kwargs)
    concurrency = given.pop("concurrency", None) or 1
    least, most = (1, concurrency) if isinstance(concurrency, int) else concurrency
    at_once = getattr(config, "max_concurrent_batches", CONCURRENT_BATCHES)
    options = _asked(config.resources_per_bundle or {})
    if config.accelerator_type is not None:
        options["accelerator_type"] = config.accelerator_type
    placement = getattr(config, "placement_group_config", None)
    if placement is not None and isinstance(stage, import_object(ENGINE_STAGE, "the engine's stage")):
        if config.resources_per_bundle:
            raise ConfigError("say resources here or in resources_per_bundle, not both", field="placement_group_config")
        options |= _in_group(placement, config.engine_kwargs)
    return {
        **options,
        **given,
        "compute": ray.data.ActorPoolStrategy(
            min_size=least,
            max_size=most,
            max_tasks_in_flight_per_actor=getattr(config, "max_tasks_in_flight_per_actor", None) or 2 * at_once,
        ),
        "max_concurrency": at_once,
    }


def leave_group() -> None:
    """Give back the placement group that was made for this actor: nobody else would before the job's end."""
    ray.util.remove_placement_group(ray.util.get_current_placement_group())


def _in_group(given: Mapping[str, Any], engine_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A placement group for each actor of an engine. The actor itself has the first bundle, as the engine's processes
    are its children, unless Ray starts them (`distributed_executor_backend` "ray"): then it has nothing of its own.
    """
    placement = parse_options(PlacementGroupConfig, given)
    bundles = configured_bundles(placement, engine_kwargs)
    by_ray = engine_kwargs.get("distributed_executor_backend") == "ray"

    def placed() -> dict[str, Any]:
        group = ray.util.placement_group(bundles, strategy=placement.strategy)
        strategy = PlacementGroupSchedulingStrategy(group, 0, placement_group_capture_child_tasks=True)
        return {"scheduling_strategy": strategy}

    return {"num_cpus": 0, **({} if by_ray else _asked(bundles[0])), "ray_remote_args_fn": placed}


def _asked(resources: Mapping[str, float]) -> dict[str, Any]:
    """Resources as an actor's options."""
    left = dict(resources)
    options: dict[str, Any] = {option: left.pop(name) for name, option in _OPTIONS if name in left}
    return {**options, "resources": left} if left else options
