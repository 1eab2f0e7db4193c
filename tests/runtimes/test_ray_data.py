"""Processors over Ray data sets, on a real Ray started for these tests and stopped by them."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    from ray import cloudpickle, serve

from penstock.batch.builder import build_processor
from penstock.batch.configs import (
    OpenVINOEngineProcessorConfig,
    ProcessorConfig,
    ServeDeploymentProcessorConfig,
)
from penstock.batch.processor import Processor
from penstock.batch.stages.base import StatefulStage
from penstock.errors import ConfigError
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


def test_a_processor_gives_a_lazy_dataset_with_error_rows_as_elsewhere() -> None:
    made = processor(StatefulStage(Doubler, {}, {"concurrency": 2, "batch_size": 8}), should_continue_on_error=True)
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


def test_without_error_rows_the_run_ends() -> None:
    made = processor(StatefulStage(Doubler, {}, {}))
    with pytest.raises(Exception, match="thirteen"):
        made(ray.data.range(20)).take_all()


def test_a_killed_actor_loses_no_row(tmp_path: Any) -> None:
    stage = StatefulStage(Doubler, {"mark": str(tmp_path / "died")}, {"concurrency": 2, "batch_size": 4})
    rows = processor(stage, should_continue_on_error=True)(ray.data.range(100, override_num_blocks=10)).take_all()
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
    rows = [{"text": f"My Solara {number} arrived broken. I want my money back!"} for number in range(20)]
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
            deployment_name="LLMServer:m", app_name="app", should_continue_on_error=True, concurrency=2
        )

        def asks(method: str) -> Any:
            def preprocess(row: dict[str, Any]) -> dict[str, Any]:
                bodies: dict[str, dict[str, Any]] = {
                    "chat": {"messages": [{"role": "user", "content": f"row {row['id']}"}], "max_tokens": 4},
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
            rows = {row["id"]: row for row in made(ray.data.range(20)).take_all()}
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


def test_an_engines_actors_have_placement_groups_of_their_own_and_give_them_back() -> None:
    def groups() -> dict[str, str]:
        return {name: group["state"] for name, group in ray.util.placement_group_table().items()}

    before = set(groups())
    made = build_processor(
        OpenVINOEngineProcessorConfig(
            model_source="demo",
            placement_group_config={"bundles": [{"CPU": 1}, {"CPU": 2}], "strategy": "STRICT_PACK"},
        ),
        preprocess=lambda row: {"prompt": "Hello", "sampling_params": {"max_tokens": 2}},
        postprocess=lambda row: {"id": row["id"]},
    )
    assert len(made(ray.data.range(20)).take_all()) == 20
    own = {name: group for name, group in ray.util.placement_group_table().items() if name not in before}
    assert own
    for group in own.values():
        assert group["strategy"] == "STRICT_PACK"
        assert group["bundles"] == {0: {"CPU": 1.0}, 1: {"CPU": 2.0}}
    give_up = time.monotonic() + 60
    while any(state != "REMOVED" for name, state in groups().items() if name not in before):
        assert time.monotonic() < give_up, groups()
        time.sleep(0.2)


def test_resources_are_said_once() -> None:
    config = OpenVINOEngineProcessorConfig(
        model_source="demo", placement_group_config={"bundles": [{"CPU": 1}]}, resources_per_bundle={"CPU": 1}
    )
    with pytest.raises(ConfigError, match="placement_group_config"):
        build_processor(config)(ray.data.range(1))
    wrong = OpenVINOEngineProcessorConfig(model_source="demo", placement_group_config={"bundels": [{"CPU": 1}]})
    with pytest.raises(ConfigError, match="bundles"):
        build_processor(wrong)(ray.data.range(1))
