import math
from importlib import import_module
from typing import Any

import pytest

from penstock.config import Options, import_object, masked, parse_options
from penstock.errors import ConfigError
from penstock.llm_config import (
    AcceleratorConfig,
    AutoscalingConfig,
    DeploymentConfig,
    LLMConfig,
    LoraConfig,
    ModelLoadingConfig,
)
from penstock.parsing import read_yaml
from penstock.serve.config.settings import BatchSettings, HttpSettings


def config(**fields: Any) -> LLMConfig:
    return LLMConfig(**{"model_loading_config": {"model_id": "m"}, **fields})


def test_nested_mappings_and_parts_mean_the_same():
    nested = config(
        deployment_config={"autoscaling_config": {"min_replicas": 0}},
        lora_config={"adapters": {"a": "/a"}},
    )
    parts = LLMConfig(
        model_loading_config=ModelLoadingConfig(model_id="m"),
        deployment_config=DeploymentConfig(autoscaling_config=AutoscalingConfig(min_replicas=0)),
        lora_config=LoraConfig(adapters={"a": "/a"}),
    )
    assert (
        nested
        == parts
        == LLMConfig.from_dict(
            {
                "model_loading_config": {"model_id": "m"},
                "deployment_config": {"autoscaling_config": {"min_replicas": 0}},
                "lora_config": {"adapters": {"a": "/a"}},
            }
        )
    )


class OptionsElsewhere:
    """As pydantic's models are: Ray Serve's `AutoscalingConfig`, `RequestRouterConfig` and so
    on.
    """

    def __init__(self, **said: Any) -> None:
        self._said = said

    def model_dump(self, *, exclude_unset: bool) -> dict[str, Any]:
        return self._said if exclude_unset else {**self._said, "metrics_interval_s": 10.0}


def test_option_objects_of_ray_serve_are_read():
    one = config(
        deployment_config={
            "autoscaling_config": OptionsElsewhere(min_replicas=0, max_replicas=3),
            "request_router_config": OptionsElsewhere(request_router_class="round_robin"),
        }
    )
    assert one.autoscaling == AutoscalingConfig(min_replicas=0, max_replicas=3)
    assert one.deployment_config.request_router_config == {"request_router_class": "round_robin"}
    kept = config(engine_kwargs={"checks": OptionsElsewhere})
    assert kept.engine_kwargs == {"checks": OptionsElsewhere}


def test_a_constant_that_tells_option_objects_apart_counts_as_given():
    class TPUs(OptionsElsewhere):
        model_fields = ("kind", "topology")
        kind = "tpu"

    one = config(accelerator_type="TPU-V6E", accelerator_config=TPUs(topology="4x4"))
    assert one.accelerator_config == AcceleratorConfig(kind="tpu", topology="4x4")


def test_a_default_of_pydantics_is_no_value():
    class FieldInfo:
        pass

    with pytest.raises(ConfigError, match=r"Mine\.url: has pydantic's Field"):

        class Mine(Options, kw_only=True):
            url: Any = FieldInfo()


def test_defaults():
    one = config()
    assert (one.engine_name, one.model_source, one.max_waiting, one.start_timeout_s) == (
        "openvino",
        "m",
        1024,
        600,
    )
    assert one.stream_batching_interval_s == 0
    assert one.deployment_config.replica_counts == (1, 1)
    lora = LoraConfig()
    assert (
        lora.max_num_adapters_per_replica,
        lora.download_timeout_s,
        lora.max_download_tries,
    ) == (16, 30, 3)


def test_rays_engine_names_and_options_are_read():
    one = config(
        llm_engine="vLLM",
        experimental_configs={
            "stream_batching_interval_ms": 50,
            "NIXL_SIDE_CHANNEL_PORT_BASE": 20000,
        },
        deployment_config={"max_queued_requests": -1},
    )
    assert one.engine_name == "vllm"
    assert one.stream_batching_interval_s == 0.05
    assert one.max_waiting is None


@pytest.mark.parametrize(
    ("fields", "field", "text"),
    [
        ({"model_loading_cofig": {}}, "model_loading_cofig", "'model_loading_config'"),
        (
            {"model_loading_config": {"model_idd": "x"}},
            "model_loading_config.model_idd",
            "'model_id'",
        ),
        ({"model_loading_config": {"model_id": ""}}, "model_loading_config.model_id", "length"),
        (
            {"model_loading_config": {"model_id": "a\ud800"}},
            "model_loading_config.model_id",
            "is no Unicode text at character 2",
        ),
        (
            {"placement_group_config": {"bundles": [{"CPU": 1, "memory": math.inf}]}},
            "placement_group_config.bundles[0].memory",
            "must be a finite number, not inf",
        ),
        (
            {"deployment_config": {"autoscaling_config": {"target_ongoing_requests": math.nan}}},
            "deployment_config.autoscaling_config.target_ongoing_requests",
            "must be a finite number, not nan",
        ),
        (
            {"deployment_config": {"num_replicas": 0}},
            "deployment_config.num_replicas",
            "must be at least 1, not 0. With autoscaling_config.min_replicas 0",
        ),
        (
            {"deployment_config": {"autoscaling_config": {"min_replicaz": 1}}},
            "deployment_config.autoscaling_config.min_replicaz",
            "'min_replicas'",
        ),
        (
            {"deployment_config": {"autoscaling_config": {"min_replicas": -1}}},
            "deployment_config.autoscaling_config.min_replicas",
            "-1",
        ),
        (
            {"deployment_config": {"autoscaling_config": {"min_replicas": 2}}},
            "deployment_config.autoscaling_config.min_replicas",
            "max_replicas",
        ),
        (
            {"deployment_config": {"placement_group_bundles": []}},
            "deployment_config.placement_group_bundles",
            "engine",
        ),
        ({"engine_kwargs": {"model": "x"}}, "engine_kwargs.model", "model_source"),
        (
            {"engine_kwargs": {"served_model_name": "x"}},
            "engine_kwargs.served_model_name",
            "model_id",
        ),
        ({"placement_group_config": {"strategy": "PACK"}}, "placement_group_config", "exactly one"),
        ({"accelerator_config": {"kind": "abacus"}}, "accelerator_config.kind", "abacus"),
        (
            {"experimental_configs": {"start_timeout_s": "soon"}},
            "experimental_configs.start_timeout_s",
            "soon",
        ),
    ],
)
def test_mistakes_name_their_field(fields, field, text):
    with pytest.raises(ConfigError, match=text) as caught:
        config(**fields)
    assert caught.value.field == field


def test_an_unknown_key_in_a_list_is_refused():
    hook = {"url": "http://127.0.0.1/", "secret": "whsec_x", "retries": 3}
    with pytest.raises(ConfigError, match="unknown key 'retries'") as caught:
        parse_options(BatchSettings, {"path": "x", "webhooks": [hook]}, "http.batches")
    assert caught.value.field == "http.batches.webhooks[0].retries"


def test_secrets_show_in_no_repr_and_no_error():
    one = config(
        engine_kwargs={"api_key": "sesame", "max_num_batched_tokens": 512},
        runtime_env={"env_vars": {"HF_TOKEN": "sesame"}},
        lora_config={"dynamic_lora_loading_path": "s3://user:sesame@bucket/path"},
    )
    assert "sesame" not in repr(one)
    assert "512" in repr(one)
    assert "bucket/path" in repr(one)
    assert one.engine_kwargs["api_key"] == "sesame"
    assert masked({"hub-token": "sesame", "stop_token_ids": [1]}) == {
        "hub-token": "***",
        "stop_token_ids": [1],
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"api_keys": "sesame"},
        {"admin_keys": {"sesame": 1}},
        {"api_keys": [["sesame"]]},
        {"batches": {"path": "b", "webhooks": [{"url": "http://x", "secret": ["sesame"]}]}},
    ],
)
def test_an_error_does_not_repeat_a_secret_of_a_wrong_type(wrong):
    with pytest.raises(ConfigError) as caught:
        parse_options(HttpSettings, wrong, "http")
    assert "got '***'" in str(caught.value)
    assert "sesame" not in str(caught.value)


def test_an_error_repeats_the_beginning_of_a_long_value():
    with pytest.raises(ConfigError, match="must be a boolean, got 'yyy") as caught:
        parse_options(HttpSettings, {"dev": "y" * 100_000}, "http")
    assert len(str(caught.value)) < 400
    with pytest.raises(ConfigError, match="there is no 'yyy") as caught:
        parse_options(AutoscalingConfig, {"aggregation_function": "y" * 100_000})
    assert len(str(caught.value)) < 400


def test_a_set_in_yaml_is_checked_as_a_list():
    with pytest.raises(ConfigError, match=r"http.cors_origins\[0\]: must be text, got None"):
        parse_options(HttpSettings, {"cors_origins": {None}}, "http")


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("a.yaml", "a: 1\nb: {c: 1, d: 2, c: 3}\n", "'c' stands twice in one mapping: line 2"),
        ("a.yaml", "a: 1\n'a': 2\n", "'a' stands twice in one mapping: line 2"),
        ("a.json", '{"a": {"b": 1, "b": 2}}', "'b' stands twice in one object"),
    ],
)
def test_a_key_that_stands_twice_in_a_file_is_refused(tmp_path, name, text, place):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(ConfigError, match=place):
        read_yaml(file)


def test_a_merge_may_repeat_a_key(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        "x: {y: {base: &b {<<: &a {n: 1, m: 1}, n: 2}}, other: {<<: *b, n: 3}}\nz: [*a, *b]\n"
    )
    assert read_yaml(file) == {
        "x": {"y": {"base": {"n": 2, "m": 1}}, "other": {"n": 3, "m": 1}},
        "z": [{"n": 1, "m": 1}, {"n": 2, "m": 1}],
    }


def test_a_bucket_is_a_source_as_a_url_and_as_a_mirror():
    for source in ("s3://b/m", {"bucket_uri": "s3://b/m"}):
        one = config(model_loading_config={"model_id": "m", "model_source": source})
        mirror = one.model_loading_config.mirror
        assert mirror is not None
        assert (one.model_source, mirror.storage_type) == ("s3://b/m", "s3")
    with pytest.raises(ConfigError, match="URL of a bucket"):
        config(model_loading_config={"model_id": "m", "model_source": {"bucket_uri": "/local"}})


def test_wrong_types_name_the_value():
    with pytest.raises(
        ConfigError, match=r"deployment.max_ongoing_requests: must be an integer or null, got 'x'"
    ):
        parse_options(DeploymentConfig, {"max_ongoing_requests": "x"}, "deployment")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ttl_s", 1e308),
        ("ttl_s", 10**30),
        ("ttl_s", float("inf")),
        ("lease_s", 1e11),
        ("max_bytes", 10**20),
        ("max_file_bytes", 2**62 + 1),
        ("max_lines", 10**400),
    ],
)
def test_a_number_that_no_database_holds_is_refused(field, value):
    with pytest.raises(ConfigError, match=rf"^http\.batches\.{field}: must be (at most|a finite)"):
        parse_options(BatchSettings, {"path": "state", field: value}, "http.batches")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("start_timeout_s", 0),
        ("start_timeout_s", float("nan")),
        ("prefill_timeout_s", 1e300),
        ("stream_batching_interval_ms", True),
    ],
)
def test_a_time_that_cannot_be_waited_for_is_refused(field, value):
    with pytest.raises(ConfigError, match=rf"^experimental_configs\.{field}: must be"):
        config(experimental_configs={field: value})


def test_a_fault_beside_a_number_as_text_is_the_one_that_is_told():
    given = {"max_ongoing_requests": "8", "autoscaling_config": {"min_replicas": "-1"}}
    with pytest.raises(ConfigError, match=r"autoscaling_config.min_replicas: must be at least 0"):
        parse_options(DeploymentConfig, given)
    given["autoscaling_config"] = {"min_replicas": "2", "max_replicas": "1"}
    with pytest.raises(ConfigError, match=r"min_replicas \(2\) is more than max_replicas"):
        parse_options(DeploymentConfig, given)


def test_import_paths():
    assert import_object("penstock.errors:ConfigError", "here") is ConfigError
    assert import_object("penstock.errors.ConfigError", "here") is ConfigError
    for wrong in ("penstock.errors:Nothing", "penstock.nothing:X", "nothing_at_all:X", "X"):
        with pytest.raises(ConfigError, match="here"):
            import_object(wrong, "here")


@pytest.mark.parametrize(
    ("path", "module"),
    [
        ("ray.serve.llm:LLMServer", "deployment"),
        ("ray.serve.llm.deployment.PDDecodeServer", "deployment"),
        ("ray.llm._internal.serve.engines.sglang:SGLangServer", "deployment"),
        ("ray.llm._internal.serve.core.server.llm_server:LLMServer", "deployment"),
        ("ray.serve.llm.ingress:OpenAiIngress", "ingress"),
        ("ray.llm._internal.common.callbacks.cloud_downloader.CloudDownloader", "callbacks"),
    ],
)
def test_names_of_rays_libraries_are_those_of_their_counterparts(path, module):
    pytest.importorskip("pydantic")
    found = import_object(path, "here")
    assert found is getattr(import_module(f"penstock.serve.{module}"), found.__name__)


def test_a_name_of_ray_without_a_counterpart_is_refused():
    with pytest.raises(ConfigError, match=r"here: Own is a class of Ray's own.*from-ray"):
        import_object("ray.serve.llm.deployment:Own", "here")


def test_secrets_in_urls_are_hidden():
    url = "https://me:sesame@host/v1?api_key=sesame&page=2&access-token=sesame#key"
    assert masked(url) == "https://***@host/v1?api_key=***&page=2&access-token=***#key"
    assert masked({"url": "http://host/?key="}) == {"url": "http://host/?key="}
    assert masked("no url: ?key=value") == "no url: ?key=value"


@pytest.mark.parametrize(
    ("deployment", "why"),
    [
        ({"ray_actor_options": {"memory": "x"}}, "memory: must be a number or null, got 'x'"),
        ({"ray_actor_options": {"memory": -1}}, "memory: must be at least 0, got -1"),
        ({"ray_actor_options": {"memroy": 1}}, "unknown key 'memroy'. Did you mean 'memory'"),
        ({"ray_actor_options": {"resources": {"a": "1"}}}, "resources.a: must be a number"),
        (
            {"request_router_config": {"request_router_clas": "prefix_aware"}},
            "Did you mean 'request_router_class'",
        ),
        ({"num_replicas": 10**9}, "num_replicas: must be at most 10000, got 1000000000"),
        ({"autoscaling_config": {"max_replicas": 2**70}}, "max_replicas: must be at most 10000"),
        ({"autoscaling_config": {"max_replicas": 0}}, "max_replicas: must be at least 1"),
    ],
)
def test_mistakes_in_a_deployment_are_told_before_a_start(deployment, why):
    with pytest.raises(ConfigError) as caught:
        config(deployment_config=deployment)
    assert why in str(caught.value)


@pytest.mark.parametrize("names", [{"model_id": "a\nb"}, {"model_id": "a", "aliases": ["\0"]}])
def test_a_name_with_control_characters_is_refused(names):
    with pytest.raises(ConfigError, match="model_id: must be printable characters alone, got"):
        config(model_loading_config=names)
