"""Runs processors on Ray data sets: a stage is a pool of actors, a row waits for its batch only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray import serve
from ray.data.block import BlockAccessor
from ray.exceptions import RayTaskError
from ray.serve.handle import DeploymentHandle

from penstock.batch.pipeline.processor import Processor
from penstock.batch.pipeline.processor_rows import Beginning, Ending
from penstock.batch.pipeline.stage_chain import StageProcess
from penstock.batch.stages.engine import EngineStage
from penstock.batch.stages.serve_deployment import ServeDeploymentStage
from penstock.batch.write.tables import block
from penstock.config import parse_options
from penstock.engines.base import LLMEngine
from penstock.engines.registry import DEFAULT_APP, EngineSource, engines
from penstock.errors import ConfigError, nearest
from penstock.llm_config import PlacementGroupConfig, parallelism
from penstock.llm_config.engine_config import kind_of, worker_bundles
from penstock.ray.replicas import served_model
from penstock.serve.config.placement import merged
from penstock.serve.replicas.model import CompleteAnswers

COLUMN = "__penstock"
"""The only column between the stages; it holds whole rows as bytes."""
CONCURRENT_BATCHES = 8
"""Batches that an actor works on at once, so that a slow row holds up only its own."""
_OPTIONS = (("CPU", "num_cpus"), ("GPU", "num_gpus"), ("memory", "memory"))


def process_dataset(processor: Processor, dataset: Any) -> Any:
    """The processor's output as a lazy Ray data set. Raises `ConfigError`.

    `map_batches` would warn of `max_concurrency`, and refuse GPUs without a `batch_size`; Ray's own
    processors call what is below it, too.
    """
    config = processor.config
    _check_engine_resources(processor)
    keep = config.should_continue_on_error
    beginning = Beginning(processor.preprocess, keep=keep)
    ending = Ending(processor.postprocess, keep=keep, ray_columns=config.ray_columns)
    dataset = dataset.map_batches_internal(
        _begin,
        fn_kwargs={"beginning": beginning},
        batch_format="pyarrow",
        **processor.preprocess_map_kwargs,
    )
    for stages in together(processor.stages):
        for stage in stages.values():
            _check_deployment(stage)
        about = {"stages": stages, "batch_size": config.batch_size, "keep": keep}
        dataset = dataset.map_batches_internal(
            StageActor,
            fn_constructor_kwargs=about,
            batch_format="pyarrow",
            **stage_options(config, _main(stages)),
        )
    return dataset.map_batches_internal(
        _end,
        fn_kwargs={"ending": ending, "tensors": config.ray_columns and not keep},
        batch_format="pyarrow",
        **processor.postprocess_map_kwargs,
    )


def together(stages: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages by the actors that run them: neighbours that use the same engine share one, or
    each would load the model, and reserve its GPUs, once more.
    """
    groups: list[dict[str, Any]] = []
    last: EngineSource | None = None
    for name, stage in stages.items():
        if stage.fn is None:
            continue
        source = _engine_source(stage)
        if groups and source is not None and source == last:
            groups[-1][name] = stage
        else:
            groups.append({name: stage})
        last = source
    return groups


def _main(stages: Mapping[str, Any]) -> Any:
    """The stage whose options the actor has: the engine's, if it runs one."""
    every = list(stages.values())
    return next((stage for stage in every if isinstance(stage, EngineStage)), every[-1])


class StageActor:
    """One worker of a stage, or of several. Ray may call it for several batches at once."""

    def __init__(self, stages: Mapping[str, Any], batch_size: int, keep: bool) -> None:
        self._stage = _main(stages)
        self._processes = [
            StageProcess(name, stage, batch_size, keep=keep) for name, stage in stages.items()
        ]
        self._connecting: asyncio.Task[None] | None = None

    async def __call__(self, batch: pa.Table) -> AsyncIterator[pa.Table]:
        """Yields the batch with the stages' columns added."""
        if isinstance(self._stage, ServeDeploymentStage):
            if self._connecting is None:  # once, however many batches run at a time
                self._connecting = asyncio.create_task(_connect(**_names(self._stage)))
            await asyncio.shield(self._connecting)
        rows = batch.column(COLUMN).to_pylist()
        for process in self._processes:
            rows = await process(rows)
        yield _carried(rows)


def _begin(batch: pa.Table, beginning: Any) -> pa.Table:
    return _carried(beginning(batch.to_pylist()))


def _end(batch: pa.Table, ending: Any, tensors: bool) -> Any:
    rows = ending(batch.column(COLUMN).to_pylist())
    try:
        return _with_tensors(rows) if tensors else block(rows)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        # Ray converts values that Arrow cannot hold.
        return {
            name: [row.get(name) for row in rows]
            for name in dict.fromkeys(name for row in rows for name in row)
        }


def _with_tensors(rows: list[dict[str, Any]]) -> pa.Table:
    """A table in which a column of arrays has Ray's type of tensors, as from its own processors."""
    names = dict.fromkeys(name for row in rows for name in row)
    arrays = {
        name: [row[name] for row in rows]
        for name in names
        if all(isinstance(row.get(name), np.ndarray) for row in rows)
    }
    if not arrays:
        return block(rows)
    others = block([{k: v for k, v in row.items() if k not in arrays} for row in rows])
    tensors = BlockAccessor.batch_to_arrow_block(arrays)
    return pa.table({name: (tensors if name in arrays else others)[name] for name in names})


def _carried(rows: list[bytes]) -> pa.Table:
    return pa.table({COLUMN: pa.array(rows, pa.large_binary())})


# Models on Ray Serve
def _names(stage: Any) -> dict[str, str]:
    given: Mapping[str, Any] = stage.fn_constructor_kwargs
    return {"deployment": given["deployment_name"], "app": given.get("app_name") or DEFAULT_APP}


def _check_deployment(stage: Any) -> None:
    """Raise `ConfigError` for an unknown application or deployment, before anything runs."""
    if not isinstance(stage, ServeDeploymentStage):
        return
    names = _names(stage)
    applications = serve.status().applications
    if names["app"] not in applications:
        hint = nearest(names["app"], applications) or "Ray Serve runs none"
        raise ConfigError(
            "there is no such Ray Serve application",
            field="app_name",
            value=names["app"],
            hint=hint,
        )
    deployments = applications[names["app"]].deployments
    if names["deployment"] not in deployments:
        raise ConfigError(
            f"application '{names['app']}' has no such deployment",
            field="deployment_name",
            value=names["deployment"],
            hint=nearest(names["deployment"], deployments),
        )


async def _connect(deployment: str, app: str) -> None:
    """Register the deployment in this process, where the stage looks it up."""
    handle = serve.get_deployment_handle(deployment, app)
    served: Any = Deployment(handle)
    try:
        model = CompleteAnswers(await served_model(handle))
    except Exception as error:
        if "does not exist" not in str(error):  # as Ray says of a method that a user's class lacks
            raise
    else:
        model.deployment = served
        served = model
    engines().put(deployment, served, app)


class Deployment:
    """The methods of a Serve deployment, each with one request."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle
        self._generators: set[str] = set()

    async def __call__(self, request: Any) -> Any:
        return await self._call("__call__", request)

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_"):
            raise AttributeError(method)
        return partial(self._call, method)

    async def _call(self, method: str, request: Any) -> Any:
        """The method's answer, or the first that it yields. Raises what it raises."""
        try:
            if method not in self._generators:
                try:
                    return await getattr(self._handle, method).remote(request)
                except Exception as error:  # nothing of a generator has run yet
                    if "returned a generator" not in str(error):
                        raise
                    self._generators.add(method)
            answers = getattr(self._handle.options(stream=True), method).remote(request)
            return await anext(aiter(answers))
        except RayTaskError as error:
            raise error.cause from None


# What an actor asks Ray for
def stage_options(config: Any, stage: Any) -> dict[str, Any]:
    """Ray's options for a stage: its own, else the processor's; the resources of an engine's
    workers for a stage that runs an engine, and a CPU for any other. Raises `ConfigError`.
    """
    given = dict(stage.map_batches_kwargs)
    concurrency = given.pop("concurrency", None) or config.concurrency
    least, most = (1, concurrency) if isinstance(concurrency, int) else concurrency
    at_once = getattr(config, "max_concurrent_batches", CONCURRENT_BATCHES)
    tasks = getattr(config, "max_tasks_in_flight_per_actor", None) or 2 * at_once
    pool = ray.data.ActorPoolStrategy(
        min_size=least, max_size=most, max_tasks_in_flight_per_actor=tasks
    )
    source = _engine_source(stage)
    return {
        **({} if source is None else _of_engine(config, source)),
        "max_concurrency": at_once,
        **given,
        "compute": given.get("compute") or pool,
    }


def _engine_source(stage: Any) -> EngineSource | None:
    """The engine that the stage's workers run, if they run one."""
    source = stage.fn_constructor_kwargs.get("source")
    return source if isinstance(source, EngineSource) else None


def _of_engine(config: Any, source: EngineSource) -> dict[str, Any]:
    """The resources of an engine's actor: the sum of its workers', which are its child
    processes.
    """
    engine, engine_kwargs = source.kind, source.engine_kwargs
    if isinstance(source.shared, LLMEngine):
        engine, engine_kwargs = source.shared.name, source.shared.engine_kwargs
    placement = getattr(config, "placement_group_config", None)
    if placement is not None:
        if config.resources_per_bundle:
            raise ConfigError(
                "say resources here or in resources_per_bundle, not both",
                field="placement_group_config",
            )
        placement = parse_options(PlacementGroupConfig, placement, "placement_group_config")
        _check_one_machine(placement, engine_kwargs)
    elif config.resources_per_bundle:
        placement = PlacementGroupConfig(bundle_per_worker=config.resources_per_bundle)
    accelerator = config.accelerator_type
    kind = None if accelerator is None else kind_of(accelerator)
    bundles = worker_bundles(engine or "", engine_kwargs, kind=kind, placement=placement)
    return _asked(merged(bundles)) | ({"accelerator_type": accelerator} if accelerator else {})


def _check_one_machine(placement: PlacementGroupConfig, engine_kwargs: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for workers that are to be apart."""
    several = len(placement.bundles or [{}] * parallelism(engine_kwargs).workers) > 1
    apart = placement.strategy in ("SPREAD", "STRICT_SPREAD") and several
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


def _check_engine_resources(processor: Processor) -> None:
    """Raise `ConfigError` for resources of an engine where no stage runs one."""
    if any(map(_engine_source, processor.stages.values())):
        return
    for name in ("resources_per_bundle", "accelerator_type"):
        if getattr(processor.config, name):
            raise ConfigError(
                "is what an engine's workers reserve, and no stage runs an engine",
                field=name,
                hint="A stage's own resources stand in its map_batches_kwargs.",
            )


def _asked(resources: Mapping[str, float]) -> dict[str, Any]:
    """Resources as an actor's options."""
    left = dict(resources)
    options: dict[str, Any] = {option: left.pop(name) for name, option in _OPTIONS if name in left}
    return {**options, "resources": left} if left else options
