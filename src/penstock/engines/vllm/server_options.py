"""The arguments of vLLM's own server that have no effect on this engine are refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penstock.errors import ConfigError

_LOGS = "Penstock's own logs are set by its log level."
_VLLM_ONLY = "Only vLLM's own server has that endpoint."
_REFUSED: Mapping[str, tuple[Any, str]] = {
    "lora_modules": (None, "Name adapters by lora_config or `adapters`."),
    "response_role": ("assistant", "Answers have the role 'assistant'."),
    "trust_request_chat_template": (False, "Set trust_request_chat_template of the server."),
    "enable_force_include_usage": (False, "Clients ask by stream_options.include_usage."),
    "tool_server": (None, "Tools run in the client."),
    "sse_keep_alive_interval": (0, "Set it at the proxy in front of Penstock."),
    "enable_per_request_metrics": (False, "Penstock's /metrics has the times of requests."),
    "enable_server_load_tracking": (False, "Penstock's /metrics has the load."),
    "enable_log_outputs": (False, _LOGS),
    "max_log_len": (None, _LOGS),
    "enable_scale_out": (False, _VLLM_ONLY),
    "tokens_only": (False, _VLLM_ONLY),
    "cohere_is_reasoning_model": (True, _VLLM_ONLY),
    "cohere_format": ("cmd4", "Give default_chat_template_kwargs.cohere_format."),
    "anthropic_disabled_thinking_effort": ("auto", "Give default_chat_template_kwargs."),
    "fingerprint_mode": ("full", "Answers have no system_fingerprint of vLLM's."),
    "fingerprint_value": (None, "Answers have no system_fingerprint of vLLM's."),
}
"""Argument → its default in vLLM, which is taken, and what to do instead."""
_NEED_A_PARSER = {"tool_parser_plugin": "", "tool_strict_level": "auto"}
"""Arguments that change what a tool parser does, with their defaults."""


def check_server_options(given: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for an argument of vLLM's server that would be dropped."""
    for name, (default, instead) in _REFUSED.items():
        if given.get(name, default) not in (default, None):
            raise ConfigError(
                "is an argument of vLLM's own server, and has no effect here",
                field=f"engine_kwargs.{name}",
                value=given[name],
                hint=instead,
            )
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
