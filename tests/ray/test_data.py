"""Processors over Ray data sets, on a real Ray started for these tests and stopped by them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import warnings
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    from ray import cloudpickle, serve
    from ray.util.annotations import RayDeprecationWarning

from penstock.batch.pipeline.builder import build_processor
from penstock.batch.pipeline.configs import (
    OpenVINOEngineProcessorConfig,
    ProcessorConfig,
    ServeDeploymentProcessorConfig,
)
from penstock.batch.pipeline.processor import Processor
from penstock.batch.stages.base import StatefulStage
from penstock.compat import ray as compat
from penstock.errors import ConfigError
from penstock.ray.data import stage_options, together
from penstock.serve import build_openai_app

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(
        address="local",
        num_cpus=12,
        object_store_memory=100 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    serve.shutdown()
    ray.shutdown()


class Vectors:
    """A stage's worker that makes an array of each row."""

    def process(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"vector": np.array([row["x"], 1.0], np.float32)}


class Doubler:
    """A stage's worker; it may be told to die once."""

    def __init__(self, mark: str = "") -> None:
        self._mark = mark

    def process(self, row: dict[str, Any]) -> dict[str, Any]:
        if self._mark and row["x"] == 50 and not os.path.exists(self._mark):
            with open(self._mark, "w"):
                pass
            os.kill(os.getpid(), signal.SIGKILL)
        if row["x"] == 13:
            raise ValueError("thirteen")
        return {"doubled": row["x"] * 2}


def processor(stage: StatefulStage, **fields: Any) -> Processor:
    return Processor(
        ProcessorConfig(**fields),
        [stage],
        preprocess=lambda row: {"x": row["id"]},
        postprocess=lambda row: {"id": row["id"], "doubled": row["doubled"]},
    )


def test_a_column_of_arrays_is_one_of_tensors() -> None:
    stage = StatefulStage(Vectors, map_batches_kwargs={"num_cpus": 1})
    config = ProcessorConfig(ray_columns=True)
    made = Processor(
        config,
        [stage],
        lambda row: {"x": row["id"]},
        lambda row: {"id": row["id"], "vector": row["vector"], "text": "a"},
    )
    rows = made(ray.data.range(3)).take_all()
    assert list(rows[0]) == ["id", "vector", "text"]
    assert [row["vector"].tolist() for row in rows] == [[row["id"], 1.0] for row in rows]
    alone = Processor(config, [stage], made.preprocess, lambda row: {"v": row["vector"]})
    assert alone(ray.data.range(2)).take_batch(2)["v"].shape == (2, 2)


def test_a_processor_gives_a_lazy_dataset_with_error_rows_as_elsewhere() -> None:
    made = processor(
        StatefulStage(Doubler, {}, {"concurrency": 2, "batch_size": 8}),
        should_continue_on_error=True,
    )
    far = made(ray.data.range(100))
    assert isinstance(far, ray.data.Dataset)
    rows = {row["id"]: row for row in far.take_all()}
    near = {row["id"]: row for row in made([{"id": number} for number in range(100)])}
    assert len(rows) == 100
    assert {number: row["doubled"] for number, row in rows.items() if number != 13} == {
        number: 2 * number for number in range(100) if number != 13
    }
    assert rows[13]["status"] == near[13]["status"] == "error"
    assert {name: rows[13]["error"][name] for name in ("type", "stage", "message")} == {
        name: near[13]["error"][name] for name in ("type", "stage", "message")
    }


def test_nothing_is_done_before_rows_are_wanted(tmp_path: Any) -> None:
    mark = tmp_path / "begun"

    def preprocess(row: dict[str, Any]) -> dict[str, Any]:
        mark.touch()
        return {"x": row["id"]}

    far = Processor(ProcessorConfig(), [StatefulStage(Doubler, {}, {})], preprocess=preprocess)(
        ray.data.range(5)
    )
    assert not mark.exists()
    assert far.count() == 5
    assert mark.exists()


class Meeting:
    """Its row 0 ends when a row far behind it has come."""

    def __init__(self) -> None:
        self._come = asyncio.Event()

    async def process(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["x"] == 0:
            async with asyncio.timeout(60):
                await self._come.wait()
        elif row["x"] == 30:
            self._come.set()
        return {"doubled": row["x"] * 2}


def test_a_slow_row_holds_up_no_other_batch() -> None:
    made = processor(StatefulStage(Meeting, {}, {"concurrency": 1, "batch_size": 4}))
    rows = made(ray.data.range(40, override_num_blocks=1)).take_all()
    assert sorted(row["doubled"] for row in rows) == list(range(0, 80, 2))


def test_the_pools_are_of_the_size_and_with_the_resources_that_were_asked_for() -> None:
    config = ProcessorConfig()
    fixed = stage_options(config, StatefulStage(Doubler, {}, {"concurrency": 3, "memory": 1000}))
    assert (fixed["compute"].min_size, fixed["compute"].max_size) == (1, 3)
    assert fixed["memory"] == 1000
    assert "num_cpus" not in fixed
    between = stage_options(
        config, StatefulStage(Doubler, {}, {"concurrency": (2, 4), "num_cpus": 1})
    )
    assert (between["compute"].min_size, between["compute"].max_size, between["num_cpus"]) == (
        2,
        4,
        1,
    )
    pool = ray.data.ActorPoolStrategy(size=2)
    assert (
        stage_options(config, StatefulStage(Doubler, {}, {"concurrency": 1, "compute": pool}))[
            "compute"
        ]
        is pool
    )


def test_without_error_rows_the_run_ends() -> None:
    made = processor(StatefulStage(Doubler, {}, {}))
    with pytest.raises(Exception, match="thirteen"):
        made(ray.data.range(20)).take_all()


def test_a_killed_actor_loses_no_row(tmp_path: Any) -> None:
    stage = StatefulStage(
        Doubler, {"mark": str(tmp_path / "died")}, {"concurrency": 2, "batch_size": 4}
    )
    rows = processor(stage, should_continue_on_error=True)(
        ray.data.range(100, override_num_blocks=10)
    ).take_all()
    assert (tmp_path / "died").exists()
    assert sorted(row["id"] for row in rows) == list(range(100))
    assert sum(row["status"] == "ok" for row in rows) == 99


def test_the_real_engine() -> None:
    made = build_processor(
        OpenVINOEngineProcessorConfig(model_source="demo"),
        preprocess=lambda row: {
            "messages": [{"role": "user", "content": row["text"]}],
            "sampling_params": {"temperature": 0, "max_tokens": 64},
        },
        postprocess=lambda row: {"text": row["text"], "answer": row["generated_text"]},
    )
    rows = [
        {"text": f"My Solara {number} is broken. I want my money back!"} for number in range(20)
    ]
    far = {row["text"]: row["answer"] for row in made(ray.data.from_items(rows)).take_all()}
    near = {row["text"]: row["answer"] for row in made(rows)}
    assert far == near
    assert all("refund" in answer for answer in far.values())


def test_sequential_processors_share_a_served_model() -> None:
    model = {
        "model_loading_config": {"model_id": "m", "model_source": "simulated"},
        "llm_engine": "simulated",
        "deployment_config": {"graceful_shutdown_wait_loop_s": 0.2},
    }
    serve.start(proxy_location="Disabled")
    serve.run(build_openai_app({"llm_configs": [model]}), name="app", route_prefix="/")
    try:
        config = ServeDeploymentProcessorConfig(
            deployment_name="LLMServer:m",
            app_name="app",
            should_continue_on_error=True,
            concurrency=(2, 2),
            batch_size=4,
        )

        def asks(method: str) -> Any:
            def preprocess(row: dict[str, Any]) -> dict[str, Any]:
                bodies: dict[str, dict[str, Any]] = {
                    "chat": {
                        "messages": [{"role": "user", "content": f"row {row['id']}"}],
                        "max_tokens": 4,
                    },
                    "completions": {"prompt": f"row {row['id']}", "max_tokens": 4},
                    "embeddings": {"input": f"row {row['id']}"},
                }
                body = bodies[method]
                if row["id"] == 3:
                    body["max_tokens" if method != "embeddings" else "dimensions"] = -1
                return {"method": method, "request_kwargs": body}

            return preprocess

        for method in ("chat", "completions", "embeddings"):
            made = build_processor(config, preprocess=asks(method))
            rows = {
                row["id"]: row for row in made(ray.data.range(20, override_num_blocks=5)).take_all()
            }
            assert len(rows) == 20
            assert [number for number, row in rows.items() if row["status"] == "error"] == [3]
            ids = {row["request_id"] for number, row in rows.items() if number != 3}
            assert len(ids) == 19
        absent = ServeDeploymentProcessorConfig(deployment_name="LLMServer:n", app_name="app")
        with pytest.raises(ConfigError, match="has no such deployment"):
            build_processor(absent, preprocess=asks("chat"))(ray.data.range(1))
        served = serve.get_deployment_handle("LLMServer:m", "app")
        assert served.record_autoscaling_stats.remote().result() == {"running_requests": 0.0}
    finally:
        serve.delete("app")
    with pytest.raises(ConfigError, match="no such Ray Serve application"):
        build_processor(config, preprocess=asks("chat"))(ray.data.range(1))


class Own:
    """A user's deployment."""

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"called": request["x"]}

    def double(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"doubled": 2 * request["x"]}

    async def stream(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        if request["x"] == 3:
            raise ValueError("three")
        yield {"part": request["x"]}

    def several(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"among": len(requests)} for _ in requests]


def test_any_method_of_any_deployment() -> None:
    serve.start(proxy_location="Disabled")
    serve.run(serve.deployment(Own).bind(), name="own", route_prefix=None)

    def answers(method: str, **fields: Any) -> list[dict[str, Any]]:
        config = compat.ServeDeploymentProcessorConfig(
            deployment_name="Own", app_name="own", should_continue_on_error=True, **fields
        )
        made = build_processor(
            config, lambda row: {"method": method, "request_kwargs": {"x": row["id"]}}
        )
        rows: list[dict[str, Any]] = made(ray.data.range(8, override_num_blocks=1)).take_all()
        return sorted(rows, key=lambda row: row["id"])

    try:
        assert [row["doubled"] for row in answers("double")] == [2 * n for n in range(8)]
        assert [row["called"] for row in answers("__call__")] == list(range(8))
        parts = answers("stream")
        assert [row["part"] for row in parts] == [0, 1, 2, None, 4, 5, 6, 7]
        assert parts[3]["__inference_error__"] == "user_code_error: ValueError: three"
        assert parts[4]["__inference_error__"] == ""
        assert len({row["batch_uuid"] for row in parts if row["part"] is not None}) == 1
        assert {row["among"] for row in answers("several", rows_per_call=4)} == {4}
        (message,) = {row["error"]["message"] for row in answers("none")}
        assert "does not exist" in message
    finally:
        serve.delete("own")


def test_an_engines_actor_has_what_its_workers_need_together() -> None:
    group = {"bundles": [{"CPU": 1}, {"CPU": 2, "memory": 1000}], "strategy": "STRICT_PACK"}
    made = build_processor(
        OpenVINOEngineProcessorConfig(model_source="demo", placement_group_config=group),
        preprocess=lambda row: {"prompt": "Hello", "sampling_params": {"max_tokens": 2}},
        postprocess=lambda row: {"id": row["id"]},
    )
    (stage,) = (stage for name, stage in made.stages.items() if "Engine" in name)
    options = stage_options(made.config, stage)
    assert (options["num_cpus"], options["memory"]) == (3, 1000)
    assert len(made(ray.data.range(20)).take_all()) == 20


def test_stages_that_use_one_engine_share_an_actor() -> None:
    """Each would load the model once more, and reserve a GPU for it."""
    config = OpenVINOEngineProcessorConfig(model_source="demo", ray_columns=True)
    made = build_processor(config)
    text = StatefulStage(Doubler, {}, {})
    stages = {**made.stages, "Other": text}
    assert [list(group)[-1] for group in together(stages)] == ["OpenVINOEngineStage", "Other"]
    assert "ChatTemplateStage" in together(stages)[0]
    parted = {
        "First": text,
        **made.stages,
        "Other": text,
        "Again": made.stages["OpenVINOEngineStage"],
    }
    assert [len(group) for group in together(parted)] == [1, 2, 1, 1]


def test_ray_warns_of_nothing() -> None:
    config = OpenVINOEngineProcessorConfig(
        model_source="demo", resources_per_bundle={"GPU": 1, "CPU": 1, "special": 1}
    )
    made = build_processor(config, lambda row: {"prompt": "Hello"}, lambda row: {"id": row["id"]})
    with warnings.catch_warnings():
        warnings.simplefilter("error", RayDeprecationWarning)
        made(ray.data.range(1)).schema  # noqa: B018 - lazy: nothing runs


def test_resources_are_said_once() -> None:
    config = OpenVINOEngineProcessorConfig(
        model_source="demo",
        placement_group_config={"bundles": [{"CPU": 1}]},
        resources_per_bundle={"CPU": 1},
    )
    with pytest.raises(ConfigError, match="placement_group_config"):
        build_processor(config)(ray.data.range(1))
    spread = OpenVINOEngineProcessorConfig(
        model_source="demo",
        placement_group_config={"bundles": [{"CPU": 1}] * 2, "strategy": "SPREAD"},
    )
    with pytest.raises(ConfigError, match="on the machine of its actor"):
        build_processor(spread)(ray.data.range(1))
