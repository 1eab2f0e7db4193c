"""The methods that Ray's users call on configurations."""

import copy
import io
import pickle
from typing import Any

import pytest

from penstock.batch import vLLMEngineProcessorConfig
from penstock.errors import ConfigError
from penstock.llm_config import AutoscalingConfig, DeploymentConfig, LLMConfig
from penstock.serve import LLMServingArgs


def config(**fields):
    return LLMConfig(**{"model_loading_config": {"model_id": "m"}, **fields})


def test_a_file_is_read(tmp_path):
    text = "model_loading_config: {model_id: m}\nengine_kwargs: {max_model_len: 64}\n"
    (tmp_path / "one.yaml").write_text(text)
    one = LLMConfig.from_file(tmp_path / "one.yaml")
    assert one.max_request_context_length == 64
    assert one == LLMConfig.parse_yaml(io.StringIO(text)) == LLMConfig.model_validate(one)
    with pytest.raises(ValueError, match="made of a mapping"):
        LLMConfig.model_validate(3)
    for wrong, why in (
        ("{", "not valid YAML: while parsing"),
        ("a: 2026-13-45", "a date or number that there is not"),
        ("[" * 5000 + "]" * 5000, "nested more than"),
    ):
        with pytest.raises(ConfigError, match=why):
            LLMConfig.parse_yaml(wrong)
    models: list[Any] = [
        str(tmp_path / "one.yaml"),
        {"model_loading_config": {"model_id": "n"}},
        config(model_loading_config={"model_id": "o"}),
    ]
    args = LLMServingArgs(llm_configs=models)
    assert [model.model_id for model in args.llm_configs] == ["m", "n", "o"]


def test_engine_kwargs_are_updated():
    one = config(engine_kwargs={"max_model_len": 8})
    held = one.engine_kwargs
    one.update_engine_kwargs(data_parallel_rank=1)
    assert held == {"max_model_len": 8, "data_parallel_rank": 1}
    with pytest.raises(ConfigError, match="model_loading_config"):
        one.update_engine_kwargs(model="x")


def test_items_of_the_deployment():
    one = config()
    deployment = one.deployment_config
    deployment["num_replicas"] = 2
    deployment.setdefault("ray_actor_options", {})["num_cpus"] = 3
    deployment.update(max_ongoing_requests=5)
    assert (one.deployment_config.num_replicas, deployment["max_ongoing_requests"]) == (2, 5)
    assert dict(deployment) == {
        "num_replicas": 2,
        "ray_actor_options": {"num_cpus": 3},
        "max_ongoing_requests": 5,
    }
    assert "autoscaling_config" not in deployment
    assert deployment.get("autoscaling_config", 1) == 1
    with pytest.raises(KeyError):
        deployment["autoscaling_config"]
    with pytest.raises(ConfigError, match="num_replicas"):
        deployment["num_replicass"] = 2
    deployment["autoscaling_config"] = {"max_replicas": 4}
    deployment["autoscaling_config"]["min_replicas"] = 2
    assert one.autoscaling == AutoscalingConfig(min_replicas=2, max_replicas=4)
    with pytest.raises(ConfigError, match="min_replicas"):
        deployment["autoscaling_config"]["min_replicas"] = 9
    assert one.autoscaling.min_replicas == 2


def test_items_are_dicts_to_their_users():
    deployment = config(deployment_config={"num_replicas": 2}).deployment_config
    assert (len(deployment), bool(config().deployment_config)) == (1, False)
    copied = deployment.copy()
    copied["num_replicas"] = 3
    assert (copied, deployment["num_replicas"]) == ({"num_replicas": 3}, 2)
    assert deployment | {"name": "x"} == {"num_replicas": 2, "name": "x"}
    assert {"num_replicas": 1, "name": "x"} | deployment == {"num_replicas": 2, "name": "x"}


def test_items_equal_a_dict_of_them():
    given = {"autoscaling_config": {"min_replicas": 1}}
    deployment = config(deployment_config=given).deployment_config
    assert deployment == given
    assert given == deployment
    assert deployment == deployment.model_dump() == deployment.model_copy()
    for other in ({}, {"autoscaling_config": {"min_replicas": 2}}, {"nonsense": 1}, None):
        assert deployment != other


def test_the_fields_are_pairs():
    one = config()
    assert dict(one)["model_loading_config"] is one.model_loading_config
    assert [name for name, _ in one] == list(one.model_dump())


def test_callbacks_can_be_set_later():
    one = config()
    assert one.callback_config is not None
    one.callback_config.callback_class = Hooks
    assert one.model_fields_set == {"model_loading_config", "callback_config"}
    assert one.model_dump(by_alias=True)["callback_config"]["callback_class"] is Hooks


def test_assignments_are_checked_and_normalised():
    one = config()
    one.accelerator_type = "A10"
    assert (one.accelerator_type, one.engine_name) == ("A10G", "vllm")
    with pytest.raises(ValueError, match="no accelerator"):
        one.accelerator_type = "A11"
    assert one.accelerator_type == "A10G"
    processor = vLLMEngineProcessorConfig(model_source="m")
    processor.concurrency = (2, 4)
    processor.batch_size = 8
    assert (processor.batch_size, processor.get_concurrency()) == (
        8,
        {"min_size": 2, "max_size": 4},
    )
    wrongs: list[Any] = [0, (3, 2), (0, 1), "two", "0"]
    for wrong in wrongs:
        with pytest.raises(ValueError, match="concurrency"):
            processor.concurrency = wrong
    with pytest.raises(ValueError, match="batch_sizes"):
        processor.batch_sizes = 3


def test_pools():
    of = vLLMEngineProcessorConfig(model_source="m", concurrency=4)
    assert of.get_concurrency() == {"min_size": 1, "max_size": 4}
    assert of.get_concurrency(autoscaling_enabled=False) == {"size": 4}


def test_copies():
    one = config(engine_kwargs={"hf_overrides": {"a": 1}}, deployment_config={"num_replicas": 1})
    shallow, deep = one.model_copy(), one.model_copy(deep=True)
    assert one == shallow == deep == pickle.loads(pickle.dumps(one)) == copy.deepcopy(one)
    deep.engine_kwargs["hf_overrides"]["a"] = 2
    deep.deployment_config["num_replicas"] = 2
    assert one.engine_kwargs["hf_overrides"] == {"a": 1}
    assert one.deployment_config.num_replicas == 1
    assert shallow.engine_kwargs is one.engine_kwargs
    other = one.model_copy(update={"model_loading_config": {"model_id": "n"}})
    assert (other.model_id, one.model_id) == ("n", "m")
    tpus = {"accelerator_type": "TPU-V6E", "placement_group_config": {"bundles": [{"TPU": 1}]}}
    gpus = config(accelerator_type="L4", placement_group_config={"bundles": [{"GPU": 1}]})
    assert gpus.model_copy(update=tpus).accelerator_kind == "tpu"
    with pytest.raises(ConfigError, match="model_idd"):
        one.model_copy(update={"model_loading_config": {"model_idd": "n"}})


def test_dumps():
    one = config(lora_config={"max_num_adapters_per_replica": 2})
    dumped = one.model_dump()
    assert dumped["lora_config"]["max_num_adapters_per_replica"] == 2
    assert dumped["placement_group_config"] is None
    assert LLMConfig.model_validate(dumped) == one
    assert one.model_dump(exclude_unset=True) == {
        "model_loading_config": {"model_id": "m"},
        "lora_config": {"max_num_adapters_per_replica": 2},
    }
    assert "placement_group_config" not in one.model_dump(exclude_none=True)
    assert one.model_dump(include={"runtime_env"}) == {"runtime_env": None}
    assert "runtime_env" not in one.model_dump(exclude={"runtime_env"})


class Hooks:
    def on_before_node_init(self) -> None:
        """A hook."""


def test_dumps_as_json():
    one = config(callback_config={"callback_class": Hooks, "callback_kwargs": {"a": 1}})
    text = one.model_dump_json(exclude_unset=True, indent=1)
    assert f"{Hooks.__module__}:Hooks" in text
    assert LLMConfig.model_validate_json(text).model_dump(mode="json") == one.model_dump(
        mode="json"
    )
    with pytest.raises(ConfigError, match="not valid JSON"):
        LLMConfig.model_validate_json("{")
    with pytest.raises(TypeError, match="JSON has no form for"):
        config(engine_kwargs={"a": object()}).model_dump_json()


def test_what_the_engine_gets():
    one = config(
        model_loading_config={"model_id": "m", "model_source": "org/name"},
        engine_kwargs={
            "tensor_parallel_size": 2,
            "pipeline_parallel_size": 3,
            "trust_remote_code": True,
        },
        placement_group_config={"bundle_per_worker": {"GPU": 1, "CPU": 2}, "strategy": "SPREAD"},
    )
    engine = one.get_engine_config()
    assert (engine.num_devices, engine.tensor_parallel_degree, engine.pipeline_parallel_degree) == (
        6,
        2,
        3,
    )
    assert engine.placement_bundles == [{"GPU": 1.0, "CPU": 2.0}] * 6
    assert (engine.placement_strategy, engine.actual_hf_model_id) == ("SPREAD", "org/name")
    kwargs = engine.get_initialization_kwargs()
    assert (kwargs["model"], kwargs["served_model_name"]) == ("org/name", ["m"])
    assert engine.trust_remote_code


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("num_router_replicas", 2, "num_ingress_replicas"),
        ("stream_batching_interval", 2, "stream_batching_interval_ms"),
        ("num_ingress_replicas", 1.5, "must be an integer"),
        ("num_ingress_replicas", -1, "at least 0"),
    ],
)
def test_experiments_are_known_or_refused(name, value, why):
    with pytest.raises(ConfigError, match=why) as caught:
        config(experimental_configs={name: value})
    assert caught.value.field == f"experimental_configs.{name}"


def test_rays_experiments_are_read():
    one = config(
        experimental_configs={
            "num_ingress_replicas": 3,
            "KV_EVENTS_PORT_BASE": 5557,
            "pd_tokenize_once": True,
            "dp_size_per_node": 2,
        }
    )
    assert one.num_ingress_replicas == 3
    assert config().num_ingress_replicas is None


def test_fields_that_are_items_can_be_taken_out():
    config = LLMConfig.from_dict(
        {
            "model_loading_config": {"model_id": "m"},
            "deployment_config": {"num_replicas": 2, "max_ongoing_requests": 3},
        }
    )
    deployment = config.deployment_config
    assert deployment.values() == [2, 3]
    assert deployment.pop("num_replicas") == 2
    assert deployment.pop("num_replicas", None) is None
    assert "num_replicas" not in deployment
    for missing in ("num_replicas", "update"):
        assert deployment.get(missing) is None
        with pytest.raises(KeyError):
            deployment.pop(missing)
    del deployment["max_ongoing_requests"]
    assert dict(deployment) == {}


@pytest.mark.parametrize(
    ("num_replicas", "scaling", "counts"),
    [
        (None, None, (1, 1)),
        (3, None, (3, 3)),
        ("auto", None, (1, 100)),
        ("auto", {"target_ongoing_requests": 64}, (1, 100)),
        ("auto", {"min_replicas": 0}, (0, 100)),
        ("auto", {"min_replicas": 2, "initial_replicas": 3}, (2, 100)),
        ("auto", {"max_replicas": 4}, (1, 4)),
        ("auto", {"max_replicas": 1}, (1, 1)),
        (None, {"min_replicas": 0}, (0, 1)),
    ],
)
def test_auto_fills_what_autoscaling_leaves_out(num_replicas, scaling, counts):
    config = DeploymentConfig(num_replicas=num_replicas, autoscaling_config=scaling)
    assert config.replica_counts == counts
    config.name = "x"  # which checks the whole again
    assert config.replica_counts == counts
    turned = DeploymentConfig(num_replicas=num_replicas)
    turned["autoscaling_config"] = scaling and AutoscalingConfig(**scaling)
    assert turned.replica_counts == counts
