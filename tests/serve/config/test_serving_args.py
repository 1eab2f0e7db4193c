import json
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import ConfigError
from penstock.llm_config import LLMConfig
from penstock.serve.config.serving_args import (
    IngressClsConfig,
    LLMServingArgs,
    PDServingArgs,
    load_serving_args,
)
from penstock.serve.config.settings import StoreSettings


def test_objects_may_be_given():
    config = LLMConfig.from_dict({"model_loading_config": {"model_id": "m"}})
    assert LLMServingArgs.from_dict({"llm_configs": [config]}).llm_configs == [config]


def test_where_and_how_the_ingress_listens() -> None:
    model = {"model_loading_config": {"model_id": "m"}}
    given = {
        "llm_configs": [model],
        "listen": "[::1]:8000",
        "http": {"api_keys": ["a"], "limits": {"max_tokens": 5}},
    }
    args = LLMServingArgs.from_dict(given)
    assert args.listen_address == ("::1", 8000)
    assert args.http.api_keys == {"a"}
    assert args.http.limits.max_tokens == 5
    for wrong in ("8000", "host:", "host:99999", ":1"):
        with pytest.raises(ConfigError, match="listen: must be a host and a port"):
            LLMServingArgs.from_dict({"llm_configs": [model], "listen": wrong})
    with pytest.raises(ConfigError, match=r"http\.limits.*Did you mean 'max_tokens'"):
        LLMServingArgs.from_dict({"llm_configs": [model], "http": {"limits": {"max_token": 5}}})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("api_keys", [""]),
        ("root_path", "no slash"),
        ("cors_origins", ["a"]),
        ("batches.path", ""),
        ("limits.max_tokens", 0),
    ],
)
def test_mistakes_in_how_clients_reach_it_name_the_place(field: str, value: object) -> None:
    http = value
    for name in reversed(field.split(".")):
        http = {name: http}
    given = {"llm_configs": [PLAIN], "http": http}
    for where, place in (("", "http"), ("applications[0].args", "applications[0].args.http")):
        with pytest.raises(ConfigError) as caught:
            LLMServingArgs.from_dict(given, where=where)
        assert caught.value.field == f"{place}.{field}"
        assert str(caught.value).startswith(f"{place}.{field}: ")


def test_where_responses_are_stored(tmp_path: Path) -> None:
    store = {"path": "a.db", "ttl_s": 60, "max_bytes": 1000, "max_objects": 5}
    args = {"llm_configs": [PLAIN], "http": {"store": store}}
    expected = StoreSettings(path="a.db", ttl_s=60.0, max_bytes=1000, max_objects=5)
    assert LLMServingArgs.from_dict(args).http.store == expected
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps({"applications": [{"args": args}]}))  # JSON is YAML
    assert load_serving_args(file).http.store == expected


PLAIN = {"model_loading_config": {"model_id": "m"}}


def test_one_application_says_all_that_a_plain_file_says(tmp_path: Path) -> None:
    args = {"llm_configs": [PLAIN], "listen": "127.0.0.1:8001", "front": "replica"}
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps({"applications": [{"args": args}]}))  # JSON is YAML
    assert load_serving_args(file) == LLMServingArgs.from_dict(args)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (
            {"llm_configs": [PLAIN, {**PLAIN, "model_loading_config": {"model_id": "other"}}]},
            "several models",
        ),
        ({"llm_configs": [{**PLAIN, "deployment_config": {"num_replicas": 2}}]}, "more replicas"),
        ({"ingress_cls_config": {"ingress_cls": "penstock.serve:OpenAiIngress"}}, "ingress class"),
        ({"http": {"dev": True}}, "control routes"),
        ({"http": {"batches": {"path": "kept"}}}, "batch and files APIs"),
    ],
)
def test_where_the_replica_cannot_be_the_front(fields: dict, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        LLMServingArgs.from_dict(
            {"llm_configs": [PLAIN], "listen": "127.0.0.1:1", "front": "replica", **fields}
        )


# Files
MODEL = """
model_loading_config:
  model_id: qwen-0.5b
  model_source: Qwen/Qwen2.5-0.5B-Instruct
accelerator_type: A10G
deployment_config:
  autoscaling_config: {min_replicas: 1, max_replicas: 2, target_ongoing_requests: 64}
  max_ongoing_requests: 128
"""
RAY = """
applications:
- name: llm
  route_prefix: /
  import_path: ray.serve.llm:build_openai_app
  args:
    llm_configs:
      - model_loading_config: {model_id: qwen-0.5b, model_source: Qwen/Qwen2.5-0.5B-Instruct}
        llm_engine: vLLM
        accelerator_type: A10G
        engine_kwargs: {max_model_len: 8192, tensor_parallel_size: 2}
        lora_config: {dynamic_lora_loading_path: /adapters, max_num_adapters_per_replica: 8}
        experimental_configs: {stream_batching_interval_ms: 50}
        runtime_env: {env_vars: {HF_TOKEN: abc}}
        log_engine_metrics: true
      - two.yaml
"""


def write(tmp_path, text, name="serve.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_a_ray_serve_file_is_read_unchanged(tmp_path):
    write(tmp_path, MODEL.replace("qwen-0.5b", "two"), "two.yaml")
    first, second = load_serving_args(write(tmp_path, RAY)).llm_configs
    assert (first.model_id, first.engine_name, first.engine_kwargs["max_model_len"]) == (
        "qwen-0.5b",
        "vllm",
        8192,
    )
    assert first.lora_config is not None
    assert first.lora_config.max_num_adapters_per_replica == 8
    assert second.deployment_config.max_ongoing_requests == 128


def test_the_plain_forms(tmp_path):
    listed = "- " + MODEL.strip().replace("\n", "\n  ")
    keyed = "llm_configs:\n" + listed
    read = [load_serving_args(write(tmp_path, text)).llm_configs for text in (MODEL, listed, keyed)]
    assert read[0] == read[1] == read[2]
    assert read[0][0].model_id == "qwen-0.5b"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- {model_loading_config: {model_idd: x}}", r"llm_configs\[0\].*model_idd.*'model_id'"),
        ("applications: [{args: {llm_config: []}}]", r"applications\[0\].args.llm_configs"),
        ("applications: [{name: x}]", r"applications\[0\].args"),
        ("llm_configs: [{model_loading_config: {model_id: m}}]\ningres: {}", "ingres"),
        ("llm_configs: [missing.yaml]", r"missing.yaml cannot be read"),
        ("llm_configs: []", "at least one model"),
        ("text", "must hold"),
        ("a: [", "not valid YAML"),
    ],
)
def test_mistakes_name_the_file_and_the_place(tmp_path, text, said):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=said) as caught:
        load_serving_args(path)
    assert str(path) in str(caught.value)


def test_rays_own_applications_mean_vllm(tmp_path):
    other = {"model_loading_config": {"model_id": "b"}, "llm_engine": "simulated"}

    def engines(import_path):
        application = {"import_path": import_path, "args": {"llm_configs": [PLAIN, other]}}
        file = tmp_path / "serve.yaml"
        file.write_text(json.dumps({"applications": [application]}))
        return [model.engine_name for model in load_serving_args(file).llm_configs]

    assert engines("ray.serve.llm:build_openai_app") == ["vllm", "simulated"]
    assert engines("penstock.serve:build_openai_app") == ["openvino", "simulated"]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"llm_configs": []}, "at least one model"),
        ({"llm_configs": [PLAIN, PLAIN]}, "two models are called"),
        ({"llm_configs": ["/nowhere.yaml"]}, "cannot be read"),
        ({"llm_configs": [3]}, "must be a mapping"),
        ({"llm_configs": [PLAIN], "ingress_cls_config": {"cls": 1}}, "unknown key 'cls'"),
        ({"llm_configs": [PLAIN], "ingress_cls_config": {"ingress_cls": "no:X"}}, "no module 'no'"),
    ],
)
def test_arguments_are_checked_when_they_are_made(fields, why):
    with pytest.raises(ValueError, match=why):
        LLMServingArgs(**fields)


def test_pairs_are_checked_when_they_are_made():
    sides: dict[str, Any] = {"prefill_config": PLAIN, "decode_config": PLAIN}
    with pytest.raises(ConfigError, match="kv_transfer_config"):
        PDServingArgs(**sides)


def test_another_ingress_class():
    fields: dict[str, Any] = {
        "ingress_cls": "penstock.serve:OpenAiIngress",
        "ingress_extra_kwargs": None,
    }
    models = [LLMConfig.from_dict(PLAIN)]
    args = LLMServingArgs(llm_configs=models, ingress_cls_config=IngressClsConfig(**fields))
    mapping: Any = fields
    assert args == LLMServingArgs(llm_configs=models, ingress_cls_config=mapping)
    assert dict(args.ingress_cls_config) == {"ingress_cls": fields["ingress_cls"]}
    assert not LLMServingArgs(llm_configs=models).ingress_cls_config


def test_pairs_and_groups_may_have_no_options_of_their_ingress():
    fields = {"llm_config": PLAIN, "ingress_deployment_config": None}
    assert LLMServingArgs.from_dict(fields).ingress_deployment_config == {}


def application(model, builder="build_openai_app", args=None, **fields):
    models = [{"model_loading_config": {"model_id": model}}]
    args = {"llm_configs": models, **(args or {})}
    return {"import_path": f"penstock.serve:{builder}", "args": args, **fields}


@pytest.mark.parametrize("path", ["ray.serve.llm:{}", "penstock.serve.{}"])
def test_a_builder_that_there_is_not(tmp_path, path):
    wrong = application("a") | {"import_path": path.format("build_dp_open_ai_app")}
    with pytest.raises(ConfigError, match=r"no builder.* Did you mean 'build_dp_openai_app'") as e:
        applications(tmp_path, wrong)
    assert "applications[0].import_path" in str(e.value)
    own = application("a") | {"import_path": "mine:app"}  # whatever it does, it has these models
    assert len(applications(tmp_path, own).llm_configs) == 1


def applications(tmp_path, *found):
    return load_serving_args(write(tmp_path, json.dumps({"applications": found})))


def test_applications_share_what_they_agree_on(tmp_path):
    shared = {"http": {"api_keys": ["secret"]}, "listen": "127.0.0.1:8001"}
    args = applications(tmp_path, application("a", args=shared), application("b", args=shared))
    assert [model.model_id for model in args.llm_configs] == ["a", "b"]
    assert (args.http.api_keys, args.listen) == ({"secret"}, "127.0.0.1:8001")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("http", {"api_keys": ["secret"]}),
        ("listen", "127.0.0.1:8001"),
        ("front", "replica"),
        ("ingress_cls_config", {"ingress_extra_kwargs": {"x": 1}}),
        ("ingress_deployment_config", {"num_replicas": 2}),
    ],
)
def test_one_application_does_not_lose_what_another_lacks(tmp_path, name, value):
    plain, other = application("a"), application("b", args={name: value})
    for pair in ((plain, other), (other, plain)):
        with pytest.raises(ConfigError, match="as two files") as caught:
            applications(tmp_path, *pair)
        assert f"applications[1].args.{name}" in str(caught.value)
        assert "secret" not in str(caught.value)


def test_the_builder_of_control_routes_opens_them(tmp_path):
    assert applications(tmp_path, application("a", "build_dev_openai_app")).http.dev
    assert not applications(tmp_path, application("a")).http.dev


def test_fields_that_only_serve_run_honours_are_named(tmp_path, caplog):
    fields = {"deployments": [{"name": "LLMServer:a"}], "runtime_env": {"env_vars": {"A": "1"}}}
    applications(tmp_path, application("a", **fields, route_prefix="/"))
    first, second = (record.getMessage() for record in caplog.records)
    assert "applications[0].deployments has no effect here: set deployment_config" in first
    assert "applications[0].runtime_env has no effect here: set runtime_env" in second


def test_so_is_what_a_file_says_of_the_cluster(tmp_path, caplog):
    """Who moves such a file would wait on its port for nothing."""
    file = tmp_path / "serve.yaml"
    beside = {"http_options": {"host": "0.0.0.0", "port": 9000}, "proxy_location": "EveryNode"}
    content = {"applications": [application("a", route_prefix="/llm")], **beside}
    file.write_text(json.dumps(content))
    load_serving_args(file)
    first, second = (record.getMessage() for record in caplog.records)
    assert first == "http_options has no effect here: set --host, --port and --root-path"
    assert second == "applications[0].route_prefix has no effect here: set --root-path /llm"
