"""`engine_kwargs` of the SGLang engine: SGLang's own server arguments, checked by name without
importing SGLang.

Importing SGLang takes seconds, loads torch and looks for a GPU; checking a configuration must not.
So the names are read from its source. SGLang checks values when the engine starts.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from msgspec import Struct

from penstock.config import unknown_key
from penstock.engines.base import Versions
from penstock.errors import ConfigError, MissingExtraError
from penstock.openai.parsers.table import check_names

VERSIONS = Versions("SGLang", (0, 5, 20), (0, 5, 23))
"""The versions whose source was compared with what is used of it."""

_ARGUMENTS = "srt/arg_groups/fields"
_NAMESPACE = "_NS_PATH"
"""An attribute of the classes whose fields are arguments."""

_NOT_HERE = {
    "served_model_name": "is the model_id that the engine is made for",
    "incremental_streaming_output": "is how answers are read, and always on",
    "skip_tokenizer_init": "is not possible: prompts are tokenized here",
}
PARSERS = frozenset({"tool_call_parser", "reasoning_parser"})
"""Options that are read here, and not given to SGLang."""
_QUIET = {"log_level": "error"}
_COMPACT_JSON = "constrained_json_disable_any_whitespace"

COSTS_ONLY = frozenset(
    {
        # Memory
        *("mem_fraction_static", "max_total_tokens", "page_size"),
        *("swa_full_tokens_ratio", "cpu_offload_gb"),
        *("max_mamba_cache_size", "mamba_full_memory_ratio"),
        *("disable_radix_cache", "radix_eviction_policy"),
        *("enable_memory_saver", "enable_hierarchical_cache", "hicache_ratio"),
        *("hicache_size", "hicache_write_policy"),
        *("hicache_io_backend", "hicache_mem_layout"),
        *("hicache_storage_backend", "hicache_storage_prefetch_policy"),
        *("max_loras_per_batch", "max_loaded_loras"),
        *("lora_eviction_policy", "enable_lora_overlap_loading"),
        # How much at once, and in which order
        *("max_running_requests", "max_queued_requests"),
        *("chunked_prefill_size", "max_prefill_tokens"),
        *("enable_dynamic_chunking", "prefill_max_requests"),
        *("schedule_policy", "schedule_conservativeness"),
        *("enable_priority_scheduling", "num_continuous_decode_steps"),
        *("enable_mixed_chunk", "scheduler_recv_interval"),
        *("disable_overlap_schedule", "stream_interval"),
        *("pp_max_micro_batch_size", "pp_async_batch_depth"),
        # Where
        *("tp_size", "pp_size", "dp_size", "ep_size", "nnodes"),
        *("node_rank", "base_gpu_id", "gpu_id_step", "use_ray"),
        *("nccl_port", "dist_init_addr", "dist_timeout"),
        *("load_balance_method", "numa_node", "enable_dp_attention"),
        *("tokenizer_worker_num", "detokenizer_worker_num"),
        # Speed of starting and of steps
        *("disable_cuda_graph", "disable_cuda_graph_padding"),
        *("cuda_graph_config", "cuda_graph_max_bs_decode"),
        *("cuda_graph_max_bs_prefill", "cuda_graph_bs_decode"),
        *("cuda_graph_bs_prefill", "disable_prefill_cuda_graph"),
        *("disable_decode_cuda_graph", "skip_server_warmup"),
        *("download_dir", "weight_loader_disable_mmap"),
        *("weight_loader_prefetch_checkpoints", "weight_loader_prefetch_num_threads"),
        "enable_p2p_check",
        *("pre_warm_nccl", "sleep_on_idle", "gc_threshold"),
        # Logs and metrics
        *("log_level", "log_level_http", "log_requests"),
        *("log_requests_level", "log_requests_format"),
        *("log_requests_target", "decode_log_interval", "show_time_cost"),
        *("crash_dump_folder", "enable_metrics"),
        *("enable_metrics_for_all_schedulers", "extra_metric_labels"),
        *("enable_trace", "otlp_traces_endpoint"),
        *("enable_request_time_stats_logging", "export_metrics_to_file"),
        "export_metrics_to_file_dir",
        *("watchdog_timeout", "soft_watchdog_timeout", "kv_events_config", "enable_cache_report"),
    }
)
"""Arguments that cost memory or time and decide no answer. All others decide."""


class Load(Struct, tag="load", array_like=True):
    """The worker's first message. `model` is a directory or a hub id, `arguments` are SGLang's."""

    model: str
    arguments: dict[str, Any]


@cache
def package() -> Path:
    """The folder of SGLang's package, found without an import. Raises `MissingExtraError`."""
    spec = find_spec("sglang")
    if spec is None or spec.origin is None:
        raise MissingExtraError("sglang", "sglang", "The sglang engine")
    return Path(spec.origin).parent


def version() -> str:
    """The installed version; empty for a source tree, which states none."""
    try:
        return metadata.version("sglang")
    except metadata.PackageNotFoundError:
        return ""


def check_version() -> None:
    """Raise `EngineStartError` if the installed SGLang is older than what is supported."""
    VERSIONS.check(version())


def version_note() -> str:
    """An addition to errors if the installed version is outside the range; else empty."""
    return VERSIONS.note(version())


def check_options(given: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Complete `engine_kwargs` for `model`. Raises `ConfigError`, `MissingExtraError` without
    SGLang.
    """
    known = argument_names(package())
    check_names(given.get("tool_call_parser"), given.get("reasoning_parser"))
    given = dict(given)
    if (path := given.pop("model_path", model)) != model:
        raise ConfigError(
            f"is another model than model_source, {model}",
            field="engine_kwargs.model_path",
            value=path,
            hint="Leave it out, and set model_source to it.",
        )
    for name, value in given.items():
        where = f"engine_kwargs.{name}"
        if name in _NOT_HERE:
            raise ConfigError(_NOT_HERE[name], field=where, value=value)
        if known and name not in known and name not in PARSERS:
            own = known - _NOT_HERE.keys() - {"model_path"}
            raise unknown_key(name, own, field=where, value=value)
    compact = {_COMPACT_JSON: True} if _COMPACT_JSON in known else {}
    return {**_QUIET, **compact, **given}


@cache
def argument_names(root: Path) -> frozenset[str]:
    """The names of SGLang's server arguments; empty where its source cannot be read."""
    names: set[str] = set()
    for file in sorted((root / _ARGUMENTS).glob("*.py")):
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (OSError, SyntaxError):
            return frozenset()
        names |= {
            statement.target.id
            for node in tree.body
            if isinstance(node, ast.ClassDef) and _is_namespace(node)
            for statement in node.body
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        }
    return frozenset(names)


def _is_namespace(node: ast.ClassDef) -> bool:
    targets = [
        target
        for statement in node.body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
    ]
    return any(isinstance(target, ast.Name) and target.id == _NAMESPACE for target in targets)
