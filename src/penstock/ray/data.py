"""Runs processors on Ray data sets: each stage is a pool of actors, and a row waits for its own
batch only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pyarrow as pa
from ray import serve

from penstock.batch.pipeline.processor import Processor
from penstock.batch.pipeline.processor_rows import Beginning, Ending
from penstock.batch.pipeline.stage_chain import StageProcess
from penstock.batch.stages.serve_deployment import ServeDeploymentStage
from penstock.batch.write.tables import block
from penstock.engines.registry import DEFAULT_APP, engines
from penstock.errors import ConfigError, nearest
from penstock.ray.data_placement import stage_options
from penstock.ray.replicas import served_model
from penstock.serve.rpc.grouped_calls import GroupedModel

COLUMN = "__penstock"
"""The only column between the stages; it holds whole rows as bytes."""


def process_dataset(processor: Processor, dataset: Any) -> Any:
    """The processor's output as a lazy Ray data set. Raises `ConfigError`."""
    config = processor.config
    keep = config.should_continue_on_error
    beginning = Beginning(processor.preprocess, keep=keep)
    ending = Ending(processor.postprocess, keep=keep)
    dataset = dataset.map_batches(
        _begin,
        fn_kwargs={"beginning": beginning},
        batch_format="pyarrow",
        **processor.preprocess_map_kwargs,
    )
    for name, stage in processor.stages.items():
        if stage.fn is None:
            continue
        _check_deployment(stage)
        about = {
            "name": name,
            "stage": stage,
            "batch_size": config.batch_size,
            "keep": keep,
            "rows_per_call": getattr(config, "rows_per_call", 1),
        }
        dataset = dataset.map_batches(
            StageActor,
            fn_constructor_kwargs=about,
            batch_format="pyarrow",
            **stage_options(config, stage),
        )
    return dataset.map_batches(
        _end,
        fn_kwargs={"ending": ending},
        batch_format="pyarrow",
        **processor.postprocess_map_kwargs,
    )


class StageActor:
    """One worker of a stage. Ray may call it for several batches at once."""

    def __init__(
        self, name: str, stage: Any, batch_size: int, keep: bool, rows_per_call: int
    ) -> None:
        self._stage = stage
        self._rows_per_call = rows_per_call
        self._process = StageProcess(name, stage, batch_size, keep=keep)
        self._connecting: asyncio.Task[None] | None = None

    async def __call__(self, batch: pa.Table) -> AsyncIterator[pa.Table]:
        """Yields the batch with the stage's columns added."""
        if isinstance(self._stage, ServeDeploymentStage):
            if self._connecting is None:  # once, however many batches run at a time
                self._connecting = asyncio.create_task(
                    _connect(**_names(self._stage), most=self._rows_per_call)
                )
            await asyncio.shield(self._connecting)
        yield _carried(await self._process(batch.column(COLUMN).to_pylist()))


def _begin(batch: pa.Table, beginning: Any) -> pa.Table:
    return _carried(beginning(batch.to_pylist()))


def _end(batch: pa.Table, ending: Any) -> Any:
    rows = ending(batch.column(COLUMN).to_pylist())
    try:
        return block(rows)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        # Ray converts values that Arrow cannot hold.
        return {
            name: [row.get(name) for row in rows]
            for name in dict.fromkeys(name for row in rows for name in row)
        }


def _carried(rows: list[bytes]) -> pa.Table:
    return pa.table({COLUMN: pa.array(rows, pa.large_binary())})


# Models on Ray Serve
def _names(stage: Any) -> dict[str, str]:
    given: Mapping[str, Any] = stage.fn_constructor_kwargs
    return {"deployment": given["deployment_name"], "app": given.get("app_name") or DEFAULT_APP}


def _check_deployment(stage: Any) -> None:
    """Raise `ConfigError` for an application or deployment that does not exist, before anything
    runs.
    """
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


async def _connect(deployment: str, app: str, most: int) -> None:
    """Register the served model in this process, where the stage looks it up."""
    served = await served_model(serve.get_deployment_handle(deployment, app))
    engines().put(deployment, GroupedModel(served, most=most), app)
