"""Some of the server arguments."""

from __future__ import annotations

from typing import Any

import msgspec


class Serving(msgspec.Struct):
    _NS_PATH = "serving"
    model_path: str
    served_model_name: str | None = None
    log_level: str = "info"
    incremental_streaming_output: bool = False
    skip_tokenizer_init: bool = False
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    context_length: int | None = None
    is_embedding: bool = False
    max_running_requests: int | None = None
    enable_mis: bool = False
    grammar_backend: str | None = None
    constrained_json_disable_any_whitespace: bool = False
    disable_radix_cache: bool = False
    enable_memory_saver: bool = False
    enable_weights_cpu_backup: bool = False
    enable_deterministic_inference: bool = False
    enable_lora: bool | None = None
    max_lora_rank: int | None = None
    lora_target_modules: list[str] | None = None
    max_loras_per_batch: int = 8
    tp_size: int = 1
    pp_size: int = 1
    dp_size: int = 1
    json_model_override_args: str = "{}"
    mem_fraction_static: float | None = None
    preferred_sampling_params: Any = None
