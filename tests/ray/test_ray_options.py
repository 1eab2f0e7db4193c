"""What Ray Serve is asked for. Nothing is deployed, so no cluster is needed."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.serve")

from penstock.llm_config import LLMConfig
from penstock.ray.application import build_application, serve_options
from penstock.serve import LLMServingArgs

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
