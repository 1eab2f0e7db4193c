"""Configurations as Ray's users write them, and what a library makes of each.

As a program it says what Ray makes of them: `python ray_configurations.py` prints a JSON object. It
needs no vLLM: the names that Ray takes from there are stood in for.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import tempfile
from dataclasses import make_dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

MODEL = {"model_id": "m", "model_source": "org/m"}
GPU, CPU = {"GPU": 1}, {"CPU": 1}
SLICE = {"kind": "tpu", "topology": "2x2"}
NIXL = {"kv_transfer_config": {"kv_connector": "NixlConnector", "kv_role": "kv_both"}}


def _model(**fields: Any) -> dict[str, Any]:
    return {"model_loading_config": dict(MODEL), "llm_engine": "vLLM", **fields}


def _placed(config: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return _model(placement_group_config=config, **fields)


def _deployed(**fields: Any) -> dict[str, Any]:
    return _model(deployment_config=fields)


PLACEMENTS: dict[str, dict[str, Any]] = {
    "nothing said": _model(),
    "an accelerator": _model(accelerator_type="L4"),
    "A10": _model(accelerator_type="A10"),
    "A100-40G": _model(accelerator_type="A100-40G"),
    "tensor 2": _model(engine_kwargs={"tensor_parallel_size": 2}),
    "pipeline 3": _model(engine_kwargs={"pipeline_parallel_size": 3}),
    "tensor 2 pipeline 2": _model(
        accelerator_type="H100",
        engine_kwargs={"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
    ),
    "a bundle per worker": _placed({"bundle_per_worker": {"GPU": 1, "CPU": 2}}),
    "a bundle per worker, tensor 2": _placed(
        {"bundle_per_worker": GPU}, engine_kwargs={"tensor_parallel_size": 2}
    ),
    "a bundle per worker with an accelerator": _placed(
        {"bundle_per_worker": GPU}, accelerator_type="L40S"
    ),
    "bundles": _placed({"bundles": [{"GPU": 1, "CPU": 1}, {"GPU": 1}]}),
    "bundles with an accelerator": _placed({"bundles": [GPU, GPU]}, accelerator_type="A10G"),
    "bundles with their own marker": _placed(
        {"bundles": [{"GPU": 1, "accelerator_type:L4": 0.5}]}, accelerator_type="L4"
    ),
    "spread": _placed({"bundles": [GPU, GPU], "strategy": "SPREAD"}),
    "strictly packed": _placed({"bundle_per_worker": GPU, "strategy": "STRICT_PACK"}),
    "strictly spread": _placed({"bundles": [GPU, GPU], "strategy": "STRICT_SPREAD"}),
    "a part of a GPU": _placed({"bundle_per_worker": {"GPU": 0.5, "CPU": 1}}),
    "CPUs": _placed({"bundles": [{"CPU": 8}]}),
    "kind cpu": _model(accelerator_config={"kind": "cpu"}),
    "kind cpu, tensor 2": _model(
        accelerator_config={"kind": "cpu"}, engine_kwargs={"tensor_parallel_size": 2}
    ),
    "kind gpu": _model(accelerator_config={"kind": "gpu"}, accelerator_type="T4"),
    "a TPU": _model(accelerator_type="TPU-V6E"),
    "TPUs": _model(accelerator_type="TPU-V6E", engine_kwargs={"tensor_parallel_size": 4}),
    "kind tpu": _model(accelerator_config={"kind": "tpu"}, accelerator_type="TPU-V5P"),
    "TPU bundles": _placed({"bundle_per_worker": {"TPU": 4}}, accelerator_type="TPU-V6E"),
    "a TPU slice": _model(accelerator_config=SLICE, accelerator_type="TPU-V6E"),
    # Ray's own example of merged bundles
    "merged with the replica": _placed(
        {"bundles": [{"GPU": 1, "CPU": 1}, {"GPU": 1, "CPU": 1}]},
        deployment_config={"ray_actor_options": {"num_cpus": 1, "num_gpus": 0, "memory": 100}},
    ),
    "merged with custom resources": _model(
        accelerator_type="L4",
        deployment_config={
            "ray_actor_options": {"num_cpus": 4, "resources": {"disk": 1, "accelerator_type:L4": 1}}
        },
    ),
    "a replica without CPUs": _deployed(ray_actor_options={"num_cpus": 0}),
    "a replica with a GPU": _deployed(ray_actor_options={"num_gpus": 1}),
}

DEPLOYMENTS: dict[str, dict[str, Any]] = {
    "defaults": _model(),
    "a slash and a dot in the name": _model(model_loading_config={"model_id": "org/m-1.5"}),
    "a name": _deployed(name="mine"),
    "two replicas": _deployed(num_replicas=2),
    "one replica": _deployed(num_replicas=1),
    "auto": _deployed(num_replicas="auto"),
    "auto, to zero": _deployed(num_replicas="auto", autoscaling_config={"min_replicas": 0}),
    "auto, from two": _deployed(num_replicas="auto", autoscaling_config={"min_replicas": 2}),
    "auto, bounded": _deployed(num_replicas="auto", autoscaling_config={"max_replicas": 4}),
    "a least number": _deployed(autoscaling_config={"min_replicas": 0}),
    "scaled": _deployed(autoscaling_config={"min_replicas": 1, "max_replicas": 4}),
    "scaled to zero": _deployed(autoscaling_config={"min_replicas": 0, "max_replicas": 2}),
    "initial replicas": _deployed(
        autoscaling_config={"min_replicas": 1, "initial_replicas": 2, "max_replicas": 4}
    ),
    "a target": _deployed(
        autoscaling_config={"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 7}
    ),
    "delays": _deployed(
        autoscaling_config={
            "min_replicas": 1,
            "max_replicas": 4,
            "upscale_delay_s": 3,
            "downscale_delay_s": 9,
        }
    ),
    "factors": _deployed(
        autoscaling_config={
            "min_replicas": 1,
            "max_replicas": 4,
            "upscaling_factor": 0.5,
            "downscaling_factor": 0.4,
        }
    ),
    "a bounded queue": _deployed(max_queued_requests=10),
    "an unbounded queue": _deployed(max_queued_requests=-1),
    "a graceful stop": _deployed(graceful_shutdown_timeout_s=7, graceful_shutdown_wait_loop_s=3),
    "health checks": _deployed(health_check_period_s=5, health_check_timeout_s=6),
    "replicas a node": _deployed(num_replicas=2, max_replicas_per_node=1),
    "a user's configuration": _deployed(user_config={"a": 1}),
    "CPUs": _deployed(ray_actor_options={"num_cpus": 3}),
    "memory": _deployed(ray_actor_options={"memory": 1000}),
    "resources": _deployed(ray_actor_options={"resources": {"disk": 1}}),
    "an environment": _model(runtime_env={"env_vars": {"A": "1"}}),
    "an actor's environment": _deployed(
        ray_actor_options={"runtime_env": {"env_vars": {"A": "1"}, "pip": ["x"]}}
    ),
    "the model's environment wins": _model(
        runtime_env={"pip": ["y"], "env_vars": {"B": "2"}},
        deployment_config={"ray_actor_options": {"runtime_env": {"pip": ["x"]}}},
    ),
    "both set variables": _model(
        runtime_env={"env_vars": {"B": "2"}},
        deployment_config={"ray_actor_options": {"runtime_env": {"env_vars": {"A": "1"}}}},
    ),
    "tensor 2": _model(engine_kwargs={"tensor_parallel_size": 2}, accelerator_type="L4"),
    "spread": _placed({"bundles": [GPU, GPU], "strategy": "SPREAD"}),
    "adapters": _model(lora_config={"dynamic_lora_loading_path": "s3://b/a"}),
    "no metrics": _model(log_engine_metrics=False, engine_kwargs={"disable_log_stats": True}),
    "a TPU slice": _model(accelerator_config=SLICE, accelerator_type="TPU-V6E"),
}


def _processor(kind: str, **fields: Any) -> dict[str, Any]:
    base: dict[str, Any] = {"url": "http://x"} if kind == "Http" else {"model_source": "org/m"}
    base = {"deployment_name": "d", "app_name": "a"} if kind == "Serve" else base
    return {"kind": kind, "fields": {**base, **fields}}


OF_ALL: dict[str, dict[str, Any]] = {
    "plain": {},
    "four workers": {"concurrency": 4},
    "two to four workers": {"concurrency": [2, 4]},
    "no workers": {"concurrency": 0},
    "fewer than none": {"concurrency": -1},
    "most below least": {"concurrency": [4, 2]},
    "none to two": {"concurrency": [0, 2]},
    "three numbers": {"concurrency": [1, 2, 3]},
    "an unknown field": {"batch_sizes": 3},
    "an accelerator": {"accelerator_type": "L4"},
}
OF_VLLM: dict[str, dict[str, Any]] = {
    "to embed": {"task_type": "embed"},
    "to score": {"task_type": "score"},
    "to dance": {"task_type": "dance"},
    "bundles": {"placement_group_config": {"bundles": [GPU]}},
    "both kinds of bundles": {
        "placement_group_config": {"bundles": [GPU], "bundle_per_worker": GPU}
    },
    "no bundles": {"placement_group_config": {}},
    "an unknown strategy": {"placement_group_config": {"bundles": [GPU], "strategy": "X"}},
    "stages": {"tokenize_stage": {"batch_size": 4}, "detokenize_stage": False},
    "without a model": {"model_source": None},
    "errors go on": {"should_continue_on_error": True, "max_pending_requests": 8},
    "a misspelt accelerator": {"accelerator_type": "A11"},
}


_VERDICTS: dict[str, dict[str, Any]] = {
    # LLMConfig
    **{
        name: {"kind": "LLMConfig", "fields": fields}
        for name, fields in {
            "no model": {},
            "no model id": {"model_loading_config": {"model_source": "x"}},
            "an unknown field": _model(enginee_kwargs={}),
            "an unknown field of the model": _model(
                model_loading_config={"model_id": "m", "sourse": "x"}
            ),
            "a tokenizer": _model(model_loading_config={**MODEL, "tokenizer_source": "org/t"}),
            "a bucket": _model(model_loading_config={"model_id": "m", "model_source": "s3://b/m"}),
            "a mirror": _model(
                model_loading_config={"model_id": "m", "model_source": {"bucket_uri": "s3://b/m"}}
            ),
            "a mirror on gs": _model(
                model_loading_config={
                    "model_id": "m",
                    "model_source": {
                        "bucket_uri": "gs://b/m",
                        "extra_files": [{"bucket_uri": "gs://b/x", "destination_path": "/x"}],
                    },
                }
            ),
            "a mirror that is no URL": _model(
                model_loading_config={"model_id": "m", "model_source": {"bucket_uri": "/b/m"}}
            ),
            "extra files without a place": _model(
                model_loading_config={
                    "model_id": "m",
                    "model_source": {"extra_files": [{"bucket_uri": "s3://b/x"}]},
                }
            ),
            "an unknown engine": _model(llm_engine="vLLMm"),
            "an engine of ours": _model(llm_engine="openvino"),
            "the model in engine_kwargs": _model(engine_kwargs={"model": "x"}),
            "a served name in engine_kwargs": _model(engine_kwargs={"served_model_name": "x"}),
            "a wrong accelerator": _model(accelerator_type="A100_40G"),
            "a lower-case accelerator": _model(accelerator_type="l4"),
            "A11": _model(accelerator_type="A11"),
            "a TPU of no version": _model(accelerator_type="TPU"),
            "a Gaudi": _model(accelerator_type="Intel-GAUDI"),
            "CPU bundles and a GPU": _placed({"bundles": [CPU]}, accelerator_type="L4"),
            "kind cpu and a GPU": _model(accelerator_config={"kind": "cpu"}, accelerator_type="L4"),
            "GPU bundles and a TPU": _placed({"bundles": [GPU]}, accelerator_type="TPU-V6E"),
            "TPU bundles and a GPU": _placed({"bundles": [{"TPU": 1}]}, accelerator_type="L4"),
            "kind tpu and a GPU": _model(accelerator_config={"kind": "tpu"}, accelerator_type="L4"),
            "kind gpu and a TPU": _model(
                accelerator_config={"kind": "gpu"}, accelerator_type="TPU-V6E"
            ),
            "a topology without a type": _model(accelerator_config=SLICE),
            "a topology of GPUs": _model(accelerator_config={"kind": "gpu", "topology": "2x2"}),
            "an unknown kind": _model(accelerator_config={"kind": "npu"}),
            "no kind": _model(accelerator_config={}),
            "both kinds of bundles": _placed({"bundles": [GPU], "bundle_per_worker": GPU}),
            "no bundles": _placed({"strategy": "PACK"}),
            "an empty list of bundles": _placed({"bundles": []}),
            "an unknown strategy": _placed({"bundles": [GPU], "strategy": "TIGHT"}),
            "an unknown field of the placement": _placed({"bundles": [GPU], "stratgy": "PACK"}),
            "a negative bundle": _placed({"bundles": [{"GPU": -1}]}),
            "a negative custom bundle": _placed({"bundles": [{"GPU": 1, "disk": -1}]}),
            "a bundle of text": _placed({"bundles": [{"GPU": 1, "disk": "a"}]}),
            "bundles in the deployment": _deployed(placement_group_bundles=[GPU]),
            "a strategy in the deployment": _deployed(placement_group_strategy="PACK"),
            "fewer than no replicas": _deployed(num_replicas=-1),
            "replicas as text": _deployed(num_replicas="many"),
            "most below least": _deployed(
                autoscaling_config={"min_replicas": 3, "max_replicas": 1}
            ),
            "least below zero": _deployed(autoscaling_config={"min_replicas": -1}),
            "an unknown field of autoscaling": _deployed(autoscaling_config={"min_replicaz": 1}),
            "an unknown field of the deployment": _deployed(num_replicass=1),
            "no requests at once": _deployed(max_ongoing_requests=0),
            "a queue of minus two": _deployed(max_queued_requests=-2),
            "a negative stop": _deployed(graceful_shutdown_timeout_s=-1),
            "adapters in a bucket": _model(lora_config={"dynamic_lora_loading_path": "s3://b/a"}),
            "adapters here": _model(lora_config={"dynamic_lora_loading_path": "/adapters"}),
            "no adapters at once": _model(lora_config={"max_num_adapters_per_replica": 0}),
            "no limit of time": _model(lora_config={"download_timeout_s": None}),
            "an unknown field of adapters": _model(lora_config={"max_adapters": 1}),
            "router replicas": _model(experimental_configs={"num_router_replicas": 2}),
            "ingress replicas": _model(experimental_configs={"num_ingress_replicas": 2}),
            "an interval": _model(experimental_configs={"stream_batching_interval_ms": 50}),
            "ports": _model(experimental_configs={"NIXL_SIDE_CHANNEL_PORT_BASE": 20000}),
            "tokenize once": _model(experimental_configs={"pd_tokenize_once": True}),
            "an unknown experiment": _model(experimental_configs={"turbo": True}),
            "no statistics but metrics": _model(engine_kwargs={"disable_log_stats": True}),
            "metrics as null": _model(log_engine_metrics=None),
            "an environment of text": _model(runtime_env="A=1"),
            "a server of nowhere": _model(server_cls="nowhere:Server"),
            "callbacks": _model(callback_config={"raise_error_on_callback": False}),
            "an unknown field of callbacks": _model(callback_config={"class": "x"}),
            "parallel by text": _model(engine_kwargs={"tensor_parallel_size": "2"}),
        }.items()
    },
    # LLMServingArgs
    **{
        name: {"kind": "LLMServingArgs", "fields": fields}
        for name, fields in {
            "args: one": {"llm_configs": [_model()]},
            "args: a path": {"llm_configs": ["PATH"]},
            "args: no such path": {"llm_configs": ["/nowhere.yaml"]},
            "args: none": {"llm_configs": []},
            "args: nothing": {},
            "args: twice": {"llm_configs": [_model(), _model()]},
            "args: a wrong model": {"llm_configs": [_model(accelerator_type="A11")]},
            "args: a number": {"llm_configs": [3]},
            "args: an unknown field": {"llm_configs": [_model()], "llm": 1},
            "args: ingress options": {
                "llm_configs": [_model()],
                "ingress_deployment_config": {"num_replicas": 2},
            },
            "args: an unknown field of the ingress": {
                "llm_configs": [_model()],
                "ingress_cls_config": {"cls": "x"},
            },
            "args: an ingress of nowhere": {
                "llm_configs": [_model()],
                "ingress_cls_config": {"ingress_cls": "nowhere:Ingress"},
            },
            "args: ingress arguments": {
                "llm_configs": [_model()],
                "ingress_cls_config": {"ingress_extra_kwargs": {"a": 1}},
            },
        }.items()
    },
    # Pairs and groups
    **{
        name: {"kind": "pair", "fields": {"prefill_config": prefill, "decode_config": decode}}
        for name, (prefill, decode) in {
            "pair": (_model(engine_kwargs=NIXL), _model(engine_kwargs=NIXL)),
            "pair without a connector": (_model(), _model()),
            "pair with one connector": (_model(engine_kwargs=NIXL), _model()),
            "pair of two models": (
                _model(engine_kwargs=NIXL, model_loading_config={"model_id": "n"}),
                _model(engine_kwargs=NIXL),
            ),
            "pair with adapters on one side": (
                _model(engine_kwargs=NIXL, lora_config={}),
                _model(engine_kwargs=NIXL),
            ),
            "pair with other adapters": (
                _model(engine_kwargs=NIXL, lora_config={"dynamic_lora_loading_path": "s3://a/a"}),
                _model(engine_kwargs=NIXL, lora_config={"dynamic_lora_loading_path": "s3://b/b"}),
            ),
        }.items()
    },
    "group of 2": {"kind": "group", "fields": _model(engine_kwargs={"data_parallel_size": 2})},
    "group of none": {"kind": "group", "fields": _model(engine_kwargs={"data_parallel_size": 0})},
    "group of text": {"kind": "group", "fields": _model(engine_kwargs={"data_parallel_size": "2"})},
    "group of one": {"kind": "group", "fields": _model(engine_kwargs={"data_parallel_size": 1})},
    # Processors
    **{
        f"{kind} {name}": _processor(kind, **fields)
        for kind in ("vLLM", "SGLang", "Http", "Serve")
        for name, fields in OF_ALL.items()
    },
    **{f"vLLM {name}": _processor("vLLM", **fields) for name, fields in OF_VLLM.items()},
    "SGLang to embed": _processor("SGLang", task_type="embed"),
    "Http rates": _processor("Http", qps=3, max_retries=2, base_retry_wait_time_in_s=0.5),
    "Http without an address": _processor("Http", url=None),
    "Serve types": _processor("Serve", dtype_mapping={}),
}
STAGES = {
    "vLLM": _processor("vLLM"),
    "vLLM, tensor 2": _processor("vLLM", engine_kwargs={"tensor_parallel_size": 2}),
    "vLLM, tensor 2 pipeline 2": _processor(
        "vLLM",
        engine_kwargs={"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
        accelerator_type="L4",
    ),
    "vLLM on an accelerator": _processor("vLLM", accelerator_type="A10G"),
    "vLLM in bundles": _processor(
        "vLLM", placement_group_config={"bundles": [{"GPU": 1, "CPU": 2, "disk": 1}]}
    ),
    "vLLM on a part of a GPU": _processor(
        "vLLM", placement_group_config={"bundle_per_worker": {"GPU": 0.5}}
    ),
    "vLLM on CPUs": _processor("vLLM", placement_group_config={"bundles": [{"CPU": 4}]}),
    "vLLM, bundles of two workers": _processor(
        "vLLM",
        engine_kwargs={"tensor_parallel_size": 2},
        placement_group_config={"bundle_per_worker": {"GPU": 1, "CPU": 1}},
    ),
    "SGLang": _processor("SGLang"),
    "SGLang, tensor 2 data 2": _processor("SGLang", engine_kwargs={"tp_size": 2, "dp_size": 2}),
}
VERDICTS = {
    **{f"placed: {n}": {"kind": "LLMConfig", "fields": f} for n, f in PLACEMENTS.items()},
    **_VERDICTS,
}
_PROCESSORS = {
    "vLLM": "vLLMEngineProcessorConfig",
    "SGLang": "SGLangEngineProcessorConfig",
    "Http": "HttpRequestProcessorConfig",
    "Serve": "ServeDeploymentProcessorConfig",
}
COMPARED = (
    *("num_replicas", "max_queued_requests", "graceful_shutdown_timeout_s", "user_config"),
    *("graceful_shutdown_wait_loop_s", "max_replicas_per_node", "placement_group_bundles"),
    *("placement_group_strategy", "name", "health_check_period_s"),
)
SCALING = (
    *("min_replicas", "max_replicas", "initial_replicas", "upscale_delay_s", "downscale_delay_s"),
    *("upscaling_factor", "downscaling_factor"),
)


class Library:
    """The names of `ray.serve.llm` and `ray.data.llm`, Ray's or ours."""

    def __init__(
        self, serve: Any, data: Any, server: Any, groups: Any, pairs: Any, engine_stage: Any
    ) -> None:
        self.serve, self.data, self.server = serve, data, server
        self.groups, self.pairs, self.engine_stage = groups, pairs, engine_stage

    def verdict(self, case: dict[str, Any], path: str) -> str:
        """Empty where the configuration is accepted; else the error."""
        kind, fields = case["kind"], copy.deepcopy(case["fields"])
        try:
            if kind == "LLMConfig":
                self.options(fields)
            elif kind == "LLMServingArgs":
                if fields.get("llm_configs") == ["PATH"]:
                    fields["llm_configs"] = [path]
                self.serve.LLMServingArgs(**fields)
            elif kind == "pair":
                self.pairs(**fields)
            elif kind == "group":
                self.groups(self.serve.LLMConfig(**fields))
            else:
                if isinstance(fields.get("concurrency"), list):
                    fields["concurrency"] = tuple(fields["concurrency"])
                getattr(self.data, _PROCESSORS[kind])(**fields)
        except (ValueError, TypeError, AssertionError, ImportError) as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def options(self, fields: dict[str, Any]) -> dict[str, Any]:
        config = self.serve.LLMConfig(**copy.deepcopy(fields))
        options: dict[str, Any] = self.server.get_deployment_options(config)
        return options

    def placement(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The engine's bundles, and those of the replica."""
        config = self.serve.LLMConfig(**copy.deepcopy(fields))
        options = self.options(fields)
        deferred = "placement_group_bundles" not in options
        engine = config.get_engine_config()
        return {
            "accelerator_type": config.accelerator_type,
            "engine": None if deferred else [_numbers(b) for b in engine.placement_bundles],
            "strategy": engine.placement_strategy,
            "replica": None
            if deferred
            else [_numbers(b) for b in options["placement_group_bundles"]],
        }

    def deployment(self, fields: dict[str, Any]) -> dict[str, Any]:
        """What Ray Serve is asked for."""
        config = self.serve.LLMConfig(**copy.deepcopy(fields))
        try:
            made = self.serve.build_llm_deployment(config)._bound_deployment
        except ValueError:
            return {"refused": True}
        settings, replica = made._deployment_config, made._replica_config
        found = {
            name: getattr(settings, name, None) for name in COMPARED if hasattr(settings, name)
        }
        bundles = replica.placement_group_bundles
        actor = dict(replica.ray_actor_options)
        environment = actor.get("runtime_env") or {}
        scaling = settings.autoscaling_config
        if scaling is not None and (scaling.min_replicas, scaling.max_replicas) == (1, 1):
            scaling = None  # one replica, however it is said
        found |= {
            "name": made.name,
            "placement_group_bundles": bundles and [_numbers(b) for b in bundles],
            "placement_group_strategy": replica.placement_group_strategy,
            "max_replicas_per_node": replica.max_replicas_per_node,
            "num_cpus": actor.get("num_cpus"),
            "memory": actor.get("memory"),
            "resources": actor.get("resources") or {},
            "runtime_env": {k: v for k, v in environment.items() if not k.startswith("_")},
            "autoscaling": scaling and {name: getattr(scaling, name) for name in SCALING},
        }
        return found

    def stage(self, case: dict[str, Any]) -> dict[str, Any]:
        """What the stage of a processor's engine reserves, beside CPUs."""
        config = getattr(self.data, _PROCESSORS[case["kind"]])(**copy.deepcopy(case["fields"]))
        asked: dict[str, Any] = self.engine_stage(case["kind"], config)
        held = {"GPU": asked.get("num_gpus") or 0, **(asked.get("resources") or {})}
        return {"accelerator_type": asked.get("accelerator_type"), "held": _numbers(held)}


def _numbers(bundle: dict[str, float]) -> dict[str, float]:
    return {name: float(amount) for name, amount in sorted(bundle.items()) if amount}


def answers(library: Library) -> dict[str, Any]:
    """Everything that the library makes of the cases."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.yaml")
        path.write_text(json.dumps(_model()))
        return {
            "verdicts": {name: library.verdict(case, str(path)) for name, case in VERDICTS.items()},
            "placements": {n: library.placement(fields) for n, fields in PLACEMENTS.items()},
            "deployments": {n: library.deployment(fields) for n, fields in DEPLOYMENTS.items()},
            "stages": {n: library.stage(case) for n, case in STAGES.items()},
        }


# Ray
class _StandIn(MetaPathFinder, Loader):
    """Any module of some packages, in which any name is a model that takes any field."""

    packages: tuple[str, ...] = ("vllm",)

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] in self.packages:
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        from pydantic import BaseModel, ConfigDict

        module = ModuleType(spec.name)

        def make(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            fields = {"model_config": ConfigDict(extra="allow"), "__module__": spec.name}
            made = type(name, (BaseModel,), fields)
            setattr(module, name, made)
            return made

        module.__getattr__ = make  # type: ignore[method-assign]
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


def rays() -> Library:
    """Ray's own. It changes this process: give it one of its own."""
    os.environ["RAYLLM_ENABLE_WORKER_PROCESS_SETUP_HOOK"] = "0"  # a hook that imports its modules
    sys.meta_path.insert(0, _StandIn())
    import ray
    import vllm.engine.arg_utils as engine
    import vllm.entrypoints.launchers.cli_args as frontend

    names = {
        *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"),
        *("kv_transfer_config", "disable_log_stats", "max_model_len"),
    }
    engine.AsyncEngineArgs = make_dataclass("AsyncEngineArgs", sorted(names))
    frontend.FrontendArgs = make_dataclass("FrontendArgs", ["chat_template"])
    sys.modules["vllm"].__version__ = "0.32.0"  # type: ignore[attr-defined]
    ray.get_runtime_context = lambda: SimpleNamespace(runtime_env={})  # no cluster is needed

    import ray.data.llm
    import ray.serve.llm
    from ray.llm._internal.serve.core.server.llm_server import LLMServer
    from ray.llm._internal.serve.serving_patterns.data_parallel.dp_server import DPServer
    from ray.llm._internal.serve.serving_patterns.prefill_decode.builder import PDServingArgs

    return Library(
        ray.serve.llm,
        ray.data.llm,
        LLMServer,
        DPServer.get_deployment_options,
        PDServingArgs,
        _rays_engine_stage,
    )


def _rays_engine_stage(kind: str, config: Any) -> dict[str, Any]:
    _StandIn.packages = ("vllm", "sglang", "torch", "transformers")
    from ray.llm._internal.batch.stages import sglang_engine_stage, vllm_engine_stage

    made = {
        "vLLM": vllm_engine_stage.vLLMEngineStage,
        "SGLang": sglang_engine_stage.SGLangEngineStage,
    }[kind](
        fn_constructor_kwargs={
            "engine_kwargs": config.engine_kwargs,
            "task_type": config.task_type,
            "placement_group_config": getattr(config, "placement_group_config", None),
        },
        map_batches_kwargs={"accelerator_type": config.accelerator_type},
    )
    asked: dict[str, Any] = dict(made.map_batches_kwargs)
    if workers := asked.get("ray_remote_args_fn"):  # vLLM places them in a group of its own
        count, accelerator, placement = workers.args
        bundles = placement["bundles"] if placement else [{"GPU": 1}] * count
        asked = {"num_gpus": sum(bundle["GPU"] for bundle in bundles)}
        asked["accelerator_type"] = accelerator
    return asked


def ours() -> Library:
    from penstock import batch, serve
    from penstock.serve import DPServer, LLMServer, PDServingArgs

    return Library(
        serve,
        batch,
        LLMServer,
        DPServer.get_deployment_options,
        PDServingArgs,
        _our_engine_stage,
    )


def _our_engine_stage(kind: str, config: Any) -> dict[str, Any]:
    from penstock.batch import build_processor
    from penstock.ray.data import stage_options

    stages = build_processor(config).stages
    return stage_options(config, stages[f"{kind}EngineStage"])


if __name__ == "__main__":
    json.dump(answers(rays()), sys.stdout, default=str)
