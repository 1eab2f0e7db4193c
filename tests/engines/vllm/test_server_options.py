"""Arguments of vLLM's own server that would be dropped are refused by name, defaults are not."""

import pytest

from penstock.engines.vllm.options import check_server_options
from penstock.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"lora_modules": ["a=b"]}, r"engine_kwargs\.lora_modules: .*lora_config"),
        ({"response_role": "bot"}, r"engine_kwargs\.response_role"),
        ({"enable_force_include_usage": True}, "stream_options.include_usage"),
        ({"trust_request_chat_template": True}, "trust_request_chat_template of the server"),
        ({"cohere_format": "cmd3"}, "default_chat_template_kwargs"),
        ({"default_chat_template_kwargs": {"tools": []}}, r"kwargs\.tools: .*leave it out"),
        ({"default_chat_template_kwargs": "a"}, r"kwargs: must be a mapping"),
        ({"log_error_stack": True}, "log level"),
        ({"of_a_newer_version": False}, r"engine_kwargs\.of_a_newer_version"),
        ({"enable_auto_tool_choice": True}, r"needs engine_kwargs\.tool_call_parser"),
        ({"tool_strict_level": "function"}, r"needs engine_kwargs\.tool_call_parser"),
    ],
)
def test_what_would_be_dropped_is_refused_by_name(given, told):
    with pytest.raises(ConfigError, match=told):
        check_server_options(given)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"lora_modules": None, "response_role": "assistant", "enable_force_include_usage": False},
        {"tool_call_parser": "hermes", "enable_auto_tool_choice": True},
        {"tool_call_parser": "hermes", "tool_strict_level": "function"},
        {"enable_server_load_tracking": True, "enable_prompt_tokens_details": True},
        {"of_a_newer_version": None, "fingerprint_mode": "full"},
        {"return_tokens_as_token_ids": True, "chat_template_content_format": "openai"},
    ],
)
def test_defaults_and_what_has_an_effect_are_taken(given):
    check_server_options(given)
