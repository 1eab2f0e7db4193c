import pytest

from penstock.errors import ConfigError
from penstock.llm_config import LLMConfig
from penstock.serve.config.placement import cpus, deployment_options, replica_bundles
from penstock.serve.models.server import LLMServer


def config(**fields):
    return LLMConfig(**{"model_loading_config": {"model_id": "m"}, **fields})


def test_the_first_bundle_holds_the_process_and_the_first_worker():
    one = config(
        llm_engine="vLLM",
        accelerator_type="L4",
        engine_kwargs={"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
        deployment_config={
            "ray_actor_options": {"num_cpus": 2, "memory": 1000, "resources": {"disk": 1}}
        },
    )
    worker = {"GPU": 1.0, "accelerator_type:L4": 0.001}
    assert replica_bundles(one) == [
        {"CPU": 2.0, "memory": 1000.0, "disk": 1, **worker},
        worker,
        worker,
        worker,
    ]


def test_one_kind_of_resource_is_added_up():
    one = config(placement_group_config={"bundles": [{"CPU": 3}, {"CPU": 4}], "strategy": "SPREAD"})
    assert replica_bundles(one) == [{"CPU": 4.0}, {"CPU": 4.0}]
    assert LLMServer.get_deployment_options(one)["placement_group_strategy"] == "SPREAD"


def test_a_bundle_per_worker_is_repeated():
    one = config(
        placement_group_config={"bundle_per_worker": {"GPU": 1, "CPU": 2}},
        engine_kwargs={"tensor_parallel_size": 3},
    )
    assert replica_bundles(one) == [
        {"CPU": 3.0, "GPU": 1.0},
        {"CPU": 2.0, "GPU": 1.0},
        {"CPU": 2.0, "GPU": 1.0},
    ]


@pytest.mark.parametrize(
    ("fields", "device"),
    [
        ({"llm_engine": "openvino"}, "CPU"),
        ({}, "GPU"),  # tensor_parallel_size is vLLM's
        ({"llm_engine": "vllm"}, "GPU"),
        ({"llm_engine": "vllm", "accelerator_config": {"kind": "cpu"}}, "CPU"),
    ],
)
def test_the_device_follows_the_engine_unless_it_is_said(fields, device):
    bundles = replica_bundles(config(engine_kwargs={"tensor_parallel_size": 2}, **fields))
    assert bundles[1] == {device: 1.0}


def test_environments_are_joined_and_the_models_own_wins():
    options = deployment_options(
        config(
            runtime_env={"env_vars": {"A": "model"}},
            deployment_config={
                "max_ongoing_requests": 7,
                "ray_actor_options": {
                    "runtime_env": {"pip": ["x"], "env_vars": {"A": "actor", "B": "actor"}}
                },
            },
        )
    )
    assert options["ray_actor_options"]["runtime_env"] == {
        "pip": ["x"],
        "env_vars": {"A": "model", "B": "actor"},
    }
    assert options["max_ongoing_requests"] == 7
    assert "graceful_shutdown_timeout_s" not in options


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({"llm_engine": "vllm"}, {"num_gpus": 1.0}),
        # VLLM places its workers.
        ({"llm_engine": "vllm", "engine_kwargs": {"tensor_parallel_size": 2}}, {}),
        ({"placement_group_config": {"bundles": [{"CPU": 1, "GPU": 2}]}}, {"num_gpus": 2}),
        ({"accelerator_config": {"kind": "tpu"}}, {"resources": {"TPU": 1.0}}),
        ({}, {}),
    ],
)
def test_a_replica_with_one_bundle_is_shown_its_own_devices(fields, asked):
    assert deployment_options(config(**fields)).get("ray_actor_options", {}) == asked


def test_workers_of_one_machine_have_one_bundle():
    fields = {"llm_engine": "sglang", "engine_kwargs": {"tp_size": 2, "pp_size": 2}}
    options = deployment_options(config(accelerator_type="L4", **fields))
    assert options["placement_group_bundles"] == [
        {"CPU": 1.0, "GPU": 4.0, "accelerator_type:L4": pytest.approx(0.004)}
    ]
    assert options["ray_actor_options"] == {"num_gpus": 4.0}
    placement = {"bundles": [{"GPU": 2}, {"GPU": 2}], "strategy": "SPREAD"}
    with pytest.raises(ConfigError, match=r"strategy: .*on one machine"):
        deployment_options(config(placement_group_config=placement, **fields))


def test_what_a_replica_asks_for_itself_stands():
    one = config(
        llm_engine="vllm", deployment_config={"ray_actor_options": {"num_gpus": 0.5, "num_cpus": 2}}
    )
    assert deployment_options(one)["ray_actor_options"] == {"num_gpus": 0.5, "num_cpus": 2}


def test_objects_stay_as_they_were_given():
    class Router:
        pass

    one = config(deployment_config={"request_router_config": {"request_router_class": Router}})
    assert deployment_options(one)["request_router_config"] == {"request_router_class": Router}


def test_parallelism_must_be_a_number():
    with pytest.raises(ConfigError, match="tensor_parallel_size"):
        replica_bundles(config(engine_kwargs={"tensor_parallel_size": "2"}))


def test_a_tpu_slice_is_reserved_by_its_engine() -> None:
    slice_of_four = config(
        accelerator_type="TPU-V5LITEPOD", accelerator_config={"kind": "tpu", "topology": "2x2"}
    )
    assert "placement_group_bundles" not in deployment_options(slice_of_four)
    chips = config(accelerator_config={"kind": "tpu"})
    assert deployment_options(chips)["placement_group_bundles"] == [{"CPU": 1.0, "TPU": 1.0}]


def test_cpus_are_those_of_all_replicas_of_all_models_and_both_sides_of_a_pair():
    prefill = config(
        llm_engine="simulated", deployment_config={"autoscaling_config": {"max_replicas": 3}}
    )
    decode = config(
        llm_engine="simulated", deployment_config={"num_replicas": 2}, prefill_config=prefill
    )
    thin = config(llm_engine="simulated", placement_group_config={"bundles": [{"CPU": 0.2}]})
    assert cpus([prefill]) == 3 * 2
    assert cpus([decode]) == 3 * 2 + 2 * 2
    assert cpus([decode, thin]) == 3 * 2 + 2 * 2 + 2
