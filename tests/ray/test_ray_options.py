"""What Ray Serve and Ray Data are asked for. Nothing runs, so no cluster is needed."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.serve")

from penstock.batch import (
    HttpRequestProcessorConfig,
    OpenVINOEngineProcessorConfig,
    SGLangEngineProcessorConfig,
    build_processor,
    vLLMEngineProcessorConfig,
)
from penstock.errors import ConfigError
from penstock.llm_config import LLMConfig
from penstock.ray.application import build_application, serve_options
from penstock.ray.data import process_dataset, stage_options
from penstock.ray.deployments import RayReplica
from penstock.ray.replicas import METADATA, RayReplicas, publish
from penstock.serve import LLMServingArgs, build_llm_deployment
from penstock.serve.deployment import SGLangServer
from penstock.serve.replicas.runtime import ReplicaInfo

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]


def config(**fields: Any) -> LLMConfig:
    model = {"model_id": fields.pop("model_id", "m"), "model_source": "simulated"}
    return LLMConfig(**{"model_loading_config": model, "llm_engine": "simulated", **fields})


def test_the_environment_of_the_job_is_the_lowest(monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"env_vars": {"A": "job", "B": "job", "C": "job"}, "working_dir": "gcs://x.zip"}
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(runtime_env=job))
    one = config(
        runtime_env={"env_vars": {"A": "model"}},
        deployment_config={
            "ray_actor_options": {
                "num_cpus": 2,
                "runtime_env": {"env_vars": {"A": "actor", "B": "actor"}},
            }
        },
    )
    assert serve_options(one)["ray_actor_options"] == {
        "num_cpus": 2,
        "runtime_env": {
            "env_vars": {"A": "model", "B": "actor", "C": "job"},
            "working_dir": "gcs://x.zip",
        },
    }


@pytest.mark.parametrize(
    ("wanted", "said", "replicas"),
    [
        ((None, None), {}, 1),
        ((2, 3), {}, 3),
        ((2, None), {"num_replicas": 4}, 4),
    ],
)
def test_the_replicas_of_the_ingress(
    wanted: tuple[int | None, int | None], said: dict[str, Any], replicas: int
) -> None:
    models: list[Any] = [
        config(model_id=name, experimental_configs={"num_ingress_replicas": count} if count else {})
        for name, count in zip("ab", wanted, strict=True)
    ]
    args = LLMServingArgs(llm_configs=models, ingress_deployment_config=said)
    assert build_application(args)._bound_deployment.num_replicas == replicas


def test_the_target_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_LLM_DEFAULT_MAX_TARGET_ONGOING_REQUESTS", "8")
    one = config(deployment_config={"autoscaling_config": {"max_replicas": 2}})
    assert serve_options(one)["autoscaling_config"]["target_ongoing_requests"] == 8


@pytest.mark.parametrize("how", ["server_cls", "deployment_cls"])
def test_a_server_of_sglang_is_shown_the_gpus_of_all_its_workers(how: str) -> None:
    given: Any = {"server_cls": SGLangServer} if how == "server_cls" else {}
    build: Any = {"deployment_cls": SGLangServer} if how == "deployment_cls" else {}
    one = config(llm_engine=None, engine_kwargs={"tp_size": 2}, **given)
    bound = build_llm_deployment(one, **build)._bound_deployment
    assert bound.name == "SGLangServer:m"
    assert bound._replica_config.placement_group_bundles == [{"CPU": 1.0, "GPU": 2.0}]
    assert bound._replica_config.ray_actor_options["num_gpus"] == 2
    assert bound.init_kwargs["llm_config"].engine_name == "sglang"


@pytest.mark.parametrize(("version", "said"), [("2.59.0", "0"), ("2.60.0", None)])
def test_an_older_ray_is_told_to_count_what_replicas_report(
    monkeypatch: pytest.MonkeyPatch, version: str, said: str | None
) -> None:
    monkeypatch.setattr(ray, "__version__", version)
    for scaling in ({"autoscaling_config": {"max_replicas": 2}}, {"num_replicas": "auto"}, {}):
        options = serve_options(config(deployment_config=scaling))
        variables = options.get("ray_actor_options", {}).get("runtime_env", {}).get("env_vars", {})
        found = variables.get("RAY_SERVE_COLLECT_AUTOSCALING_METRICS_ON_HANDLE")
        assert found == (said if scaling else None)


def reserved(config: Any) -> dict[str, dict[str, Any]]:
    """What each stage of the processor asks Ray for, by the stage's name."""
    return {
        name: {
            key: value
            for key, value in stage_options(config, stage).items()
            if key in ("num_cpus", "num_gpus", "resources", "accelerator_type")
        }
        for name, stage in build_processor(config).stages.items()
        if stage.fn is not None
    }


def test_the_stage_of_the_engine_alone_reserves_for_it() -> None:
    config = vLLMEngineProcessorConfig(
        model_source="m",
        accelerator_type="A10",
        resources_per_bundle={"CPU": 2, "GPU": 1, "disk": 1},
        engine_kwargs={"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
        prepare_multimodal_stage=True,
    )
    assert reserved(config) == {
        "PrepareMultimodalStage": {},
        "vLLMEngineStage": {
            "num_cpus": 8,
            "num_gpus": 4,
            "resources": {"disk": 4},
            "accelerator_type": "A10G",
        },
    }


def test_a_stage_that_runs_an_engine_of_its_own_reserves_for_it_too() -> None:
    config = SGLangEngineProcessorConfig(
        model_source="m", engine_kwargs={"tp_size": 2}, tokenize_stage={"num_cpus": 1}
    )
    found = reserved(config)
    assert found["SGLangEngineStage"] == {"num_gpus": 2}
    assert found["TokenizeStage"] == {"num_gpus": 2, "num_cpus": 1}


def test_the_embedded_engine_reserves_a_cpu() -> None:
    config = OpenVINOEngineProcessorConfig(model_source="demo")
    assert reserved(config) == {"OpenVINOEngineStage": {"num_cpus": 1}}


@pytest.mark.parametrize(
    "fields", [{"accelerator_type": "L4"}, {"resources_per_bundle": {"GPU": 1}}]
)
def test_what_no_engine_would_reserve_is_refused(fields: dict[str, Any]) -> None:
    made = build_processor(HttpRequestProcessorConfig(url="http://127.0.0.1:9", **fields))
    with pytest.raises(ConfigError, match="no stage runs an engine"):
        process_dataset(made, None)


class Named(RayReplica):
    def __init__(self, info: ReplicaInfo) -> None:
        self._info = info

    @property
    def info(self) -> ReplicaInfo:
        return self._info


async def test_versions_that_follow_each_other_know_each_others_replicas() -> None:
    plain, own = ReplicaInfo("r0", "h", 1), ReplicaInfo("r1", "h", 2, 64, reads_headers=True)
    told = [await Named(info).record_replica_metadata() for info in (plain, own)]
    assert told[0] == {METADATA: {"host": "h", "port": 1}}  # nothing that an older one lacks
    told[1][METADATA]["of_a_later_version"] = True
    publish(
        "app",
        "m",
        [
            SimpleNamespace(replica_id=SimpleNamespace(unique_id=id), replica_metadata=one)
            for id, one in zip(("r0", "r1"), told, strict=True)
        ],
    )
    replicas = RayReplicas.__new__(RayReplicas)
    replicas._key = ("app", "m")
    assert replicas.current() == (plain, own)
