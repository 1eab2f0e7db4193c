"""What a configuration would place where, against what the runtimes place."""

import json
import re

import pytest

from penstock import demo
from penstock.errors import ConfigError
from penstock.llm_config import Parallelism
from penstock.serve.config.explain import Port, explain
from penstock.serve.config.placement import replica_bundles
from penstock.serve.config.serving_args import LLMServingArgs, read_args
from penstock.serve.models.data_parallel import grouped
from penstock.serve.models.local import build_local_handles


def args(*models, **fields):
    configs = [{**model} for model in models]
    for number, config in enumerate(configs):
        config["model_loading_config"] = {"model_id": f"m{number}", **config.pop("loading", {})}
    return LLMServingArgs.from_dict({"llm_configs": configs, **fields})


BIG = {
    "llm_engine": "vLLM",
    "accelerator_type": "L4",
    "engine_kwargs": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "max_num_seqs": 64},
}


@pytest.fixture
def model(tmp_path):
    """A model's directory: 4,000 bytes of weights, 2 layers of 4 heads of 8, 2 of them for keys and
    values.
    """
    (tmp_path / "model.safetensors").write_bytes(bytes(4000))
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}
    said = {
        **heads,
        "num_hidden_layers": 2,
        "max_position_embeddings": 512,
        "torch_dtype": "float16",
    }
    (tmp_path / "config.json").write_text(json.dumps(said))
    return tmp_path


def one(given, runtime="ray", **fields):
    (found,) = explain(args(given, **fields), runtime).models
    return found


def test_an_unknown_policy_is_refused_though_one_replica_leaves_nothing_to_choose():
    router = {"request_router_config": {"request_router_class": "nope"}}
    given = args({"deployment_config": router})
    with pytest.raises(ConfigError, match="unknown routing policy 'nope'"):
        explain(given)
    with pytest.raises(ConfigError, match="unknown routing policy 'nope'"):
        build_local_handles(given.llm_configs)


def test_bundles_are_those_that_are_placed():
    found = one(BIG)
    assert found.bundles == replica_bundles(args(BIG).llm_configs[0])
    assert found.needs == {"CPU": 1.0, "GPU": 4.0, "accelerator_type:L4": pytest.approx(0.004)}
    assert found.parallelism == Parallelism(2, 2, 1)
    assert [(rank.data, rank.pipeline, rank.tensor, rank.bundle) for rank in found.ranks] == [
        (0, 0, 0, 0),
        (0, 0, 1, 1),
        (0, 1, 0, 2),
        (0, 1, 1, 3),
    ]


def test_sums_are_of_all_models_with_the_fewest_and_the_most_replicas():
    scaled = {
        **BIG,
        "deployment_config": {"autoscaling_config": {"min_replicas": 0, "max_replicas": 3}},
    }
    auto = {"llm_engine": "simulated", "deployment_config": {"num_replicas": "auto"}}
    found = explain(args(scaled, auto), "ray")
    assert found.least == {"CPU": 2.0}
    assert (found.most["GPU"], found.most["CPU"]) == (12.0, 3 + 200.0)


def test_replicas_on_one_machine_part_its_cores(monkeypatch):
    monkeypatch.setattr("penstock.serve.config.explain.usable_cores", lambda: (0, 2, 1, 3))
    found = one({"llm_engine": "simulated", "deployment_config": {"num_replicas": 2}}, "local")
    assert (found.min_replicas, found.max_replicas) == (2, 2)
    assert found.cores == [[0, 2], [1, 3]]
    assert not found.warnings
    many = one({"llm_engine": "simulated", "deployment_config": {"num_replicas": 5}}, "local")
    assert many.cores == [[0], [2], [1], [3], [0]]
    assert many.warnings == ["5 replicas share 4 cores: fewer would do as much"]


def test_accelerators_are_not_parted_on_one_machine():
    found = one({**BIG, "deployment_config": {"num_replicas": 4}}, "local")
    assert (found.min_replicas, found.max_replicas, found.cores) == (1, 1, [])
    assert any("deployment_config.num_replicas (4)" in warning for warning in found.warnings)


def test_a_deterministic_model_is_told_so_and_keeps_its_cache_in_full():
    given = {"loading": {"model_source": "demo"}}
    plain, exact = one(given), one({"deterministic": True, **given})
    assert (plain.deterministic, exact.deterministic) == (False, True)
    assert exact.memory.kv_token == 2 * plain.memory.kv_token
    with pytest.raises(ConfigError, match=r"engine_kwargs\.draft_model: does not go together"):
        one({"deterministic": True, "engine_kwargs": {"draft_model": "small"}, **given})


def test_groups_multiply_their_ranks():
    grouping = {"llm_engine": "simulated", "engine_kwargs": {"data_parallel_size": 3}}
    (found,) = explain(grouped(args(grouping)), "ray").models
    assert (found.server, found.strategy, len(found.bundles)) == ("DPServer", "STRICT_PACK", 3)
    assert [rank.data for rank in found.ranks] == [0, 1, 2]


def test_a_tpu_slice_has_no_bundles_and_still_needs():
    found = one(
        {
            "accelerator_type": "TPU-V6E",
            "accelerator_config": {"kind": "tpu", "topology": "2x2"},
            "loading": {"model_source": "demo"},
        }
    )
    assert (found.bundles, found.strategy) == ([], "")
    assert found.needs == {"CPU": 1.0, "TPU": 1.0, "accelerator_type:TPU-V6E": 0.001}


def test_memory_is_read_from_the_models_files(model):
    given = {
        "engine_kwargs": {"kv_cache_memory_bytes": 1 << 20},
        "loading": {"model_source": str(model)},
    }
    memory = one(given).memory
    assert (memory.weights, memory.kv_cache) == (4000, 1 << 20)
    # Layers × keys and values × width of the heads × bytes.
    assert memory.kv_token == 2 * 2 * (2 * 8) * 2
    assert memory.kv_tokens == (1 << 20) // 128


def test_each_rank_has_its_own_copy_and_cache(model):
    options = {"kv_cache_memory_bytes": 1 << 20, "data_parallel_size": 2}
    given = args({"engine_kwargs": options, "loading": {"model_source": str(model)}})
    (found,) = explain(grouped(given), "ray").models
    assert (found.memory.weights, found.memory.kv_cache) == (8000, 2 << 20)


def test_a_hub_model_is_known_only_from_the_cache(tmp_path, monkeypatch, model):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    given = {"llm_engine": "vLLM", "loading": {"model_source": "some/model"}}
    found = one(given)
    assert found.memory.weights is None
    assert any("'some/model' takes is not known" in warning for warning in found.warnings)
    cache = tmp_path / "hub" / "models--some--model"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc")
    (cache / "snapshots").mkdir()
    (cache / "snapshots" / "abc").symlink_to(model)
    found = one(given)
    assert (found.memory.weights, found.context_length) == (4000, 512)


def test_ports():
    given = {
        "llm_engine": "simulated",
        "experimental_configs": {"NIXL_SIDE_CHANNEL_PORT_BASE": 21000},
    }
    assert one(given, "local").ports == [Port("ingress", 8000)]
    assert one(given, "local").warnings == [
        "experimental_configs.NIXL_SIDE_CHANNEL_PORT_BASE is set, and no KV connector takes ports"
        " from there"
    ]
    nixl = side(
        engine_kwargs={"data_parallel_size": 2}, experimental_configs=given["experimental_configs"]
    )
    (found,) = explain(read_args({"llm_config": nixl, "listen": "127.0.0.1:8123"}), "ray").models
    assert found.ports == [
        Port("ingress", 8123),
        Port("each replica, for the ingress", None),
        Port("NIXL_SIDE_CHANNEL_PORT_BASE, 2 a replica, the first free from", 21000),
    ]


def side(connector="NixlConnector", **fields):
    options = {"kv_transfer_config": {"kv_connector": connector}, **fields.pop("engine_kwargs", {})}
    loading = {"model_id": "m", "model_source": "demo"}
    return {
        "model_loading_config": loading,
        "llm_engine": "vLLM",
        "engine_kwargs": options,
        **fields,
    }


def test_a_pair_is_two_plans():
    prefill = side(engine_kwargs={"tensor_parallel_size": 2}, deployment_config={"num_replicas": 3})
    decode = side(deployment_config={"autoscaling_config": {"min_replicas": 1, "max_replicas": 4}})
    found = explain(read_args({"prefill_config": prefill, "decode_config": decode}), "ray")
    one, other = found.models
    assert [(plan.model, plan.role, plan.server) for plan in found.models] == [
        ("m", "prefill", "PrefillServer"),
        ("m", "decode", "DecodeServer"),
    ]
    assert (one.min_replicas, one.max_replicas, other.min_replicas, other.max_replicas) == (
        3,
        3,
        1,
        4,
    )
    assert (one.bundles, other.bundles) == (
        [{"CPU": 1, "GPU": 1}, {"GPU": 1}],
        [{"CPU": 1, "GPU": 1}],
    )
    assert (one.connector, other.connector) == ("NixlConnector", "NixlConnector")
    assert one.ports == [
        Port("each replica, for the decode side", None),
        Port("NIXL_SIDE_CHANNEL_PORT_BASE, 1 a replica, the first free from", 20000),
    ]
    assert other.ports == [
        Port("ingress", 8000),
        Port("each replica, for the ingress", None),
        Port("NIXL_SIDE_CHANNEL_PORT_BASE, 1 a replica, the first free from", 22000),
    ]
    assert found.least == {"CPU": 3 + 1, "GPU": 3 * 2 + 1}
    assert found.most == {"CPU": 3 + 4, "GPU": 3 * 2 + 4}


def test_a_pair_of_groups():
    sides = {
        f"{name}_config": side(engine_kwargs={"data_parallel_size": 2})
        for name in ("prefill", "decode")
    }
    for plan in explain(read_args(sides), "ray").models:
        assert [rank.data for rank in plan.ranks] == [0, 1]
        assert plan.ports[-1].what.startswith("NIXL_SIDE_CHANNEL_PORT_BASE, 2 a replica")


def test_a_wrong_port_base_is_refused():
    wrong = side(experimental_configs={"NIXL_SIDE_CHANNEL_PORT_BASE": 80})
    with pytest.raises(ConfigError, match=r"experimental_configs\.NIXL_SIDE_CHANNEL_PORT_BASE"):
        explain(read_args({"prefill_config": wrong, "decode_config": side()}))


@pytest.mark.parametrize(
    ("deployment", "warning"),
    [
        (
            {"max_ongoing_requests": 8},
            r"max_ongoing_requests \(8\) is less than the engine works on at once \(64\)",
        ),
        (
            {"autoscaling_config": {"target_ongoing_requests": 900}},
            r"target_ongoing_requests \(900\) is far above",
        ),
        ({"num_replicas": 2, "autoscaling_config": {}}, "both given"),
    ],
)
def test_what_looks_wrong_is_said(deployment, warning):
    given = {
        "llm_engine": "simulated",
        "engine_kwargs": {"max_num_seqs": 64},
        "deployment_config": deployment,
    }
    (found,) = one(given).warnings
    assert re.search(warning, found)


def test_a_model_that_cannot_be_converted_here_is_told(tmp_path, monkeypatch, caplog):
    """An on-demand model told its first client, and nobody before."""
    monkeypatch.setattr("penstock.engines.openvino.model.source.find_spec", lambda name: None)
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    given = {
        "loading": {"model_source": str(tmp_path)},
        "deployment_config": {"autoscaling_config": {"min_replicas": 0, "max_replicas": 1}},
    }
    lacks = [text for text in one(given, runtime="local").warnings if "[convert]" in text]
    assert len(lacks) == 1
    build_local_handles(args(given).llm_configs)
    assert f"model 'm0' will not start: {lacks[0]}" in caplog.text
    assert not any("[convert]" in text for text in one(given, runtime="ray").warnings)


def test_bundles_that_do_not_fit_the_workers_are_counted():
    found = one(
        {"llm_engine": "simulated", "placement_group_config": {"bundles": [{"CPU": 1}] * 3}}
    )
    assert found.warnings == ["3 bundles are given for 1 workers"]
    assert found.ranks[0].bundle is None


def test_a_cache_smaller_than_the_context_is_told():
    found = one(
        {"engine_kwargs": {"kv_cache_memory_bytes": 1 << 20}, "loading": {"model_source": "demo"}}
    )
    assert found.warnings == [
        "the KV cache of a rank holds 1,024 tokens, and the context has 4,096"
    ]


def test_heads_that_cannot_be_shared_are_counted(model):
    given = {
        **BIG,
        "engine_kwargs": {"tensor_parallel_size": 3},
        "loading": {"model_source": str(model)},
    }
    assert any(
        "4 attention heads cannot be shared by 3" in warning for warning in one(given).warnings
    )


def test_what_serving_would_refuse_is_refused():
    with pytest.raises(ConfigError, match=r"engine_kwargs\.max_num_seq"):
        one({"engine_kwargs": {"max_num_seq": 4}, "loading": {"model_source": "demo"}})


def test_the_demo_model_has_nothing_unknown():
    found = one({"loading": {"model_source": demo.MODEL_NAME}}, "local")
    assert found.warnings == []
    assert found.memory.weights
    assert found.context_length == 4096


def test_the_engine_and_why_it_is_this_one():
    found = one({"loading": {"model_source": "demo"}})
    assert (found.engine, found.engine_reason) == (
        "openvino",
        "nothing in the configuration asks for another one",
    )
