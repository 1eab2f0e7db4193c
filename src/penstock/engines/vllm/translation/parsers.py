"""vLLM's parsers of tool calls and reasoning, by name; plugins add further ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penstock.engines.vllm.library import ReasoningParserManager, ToolParserManager
from penstock.errors import ConfigError, nearest


def load_parsers(frontend: Mapping[str, Any], structured_outputs: Any) -> None:
    """Load the plugins that the options name. Raises `ConfigError` for an unknown parser.

    vLLM's server checks the same before it starts. The engine alone would accept any name, and
    parse no calls.
    """
    if plugin := frontend.get("tool_parser_plugin"):
        ToolParserManager.import_tool_parser(plugin)
    if plugin := structured_outputs.reasoning_parser_plugin:
        ReasoningParserManager.import_reasoning_parser(plugin)
    _check(
        "tool_call_parser", frontend.get("tool_call_parser"), ToolParserManager.list_registered()
    )
    _check(
        "reasoning_parser",
        structured_outputs.reasoning_parser,
        ReasoningParserManager.list_registered(),
    )


def _check(field: str, name: str | None, known: list[str]) -> None:
    if name and name not in known:
        raise ConfigError(
            f"vLLM has no parser '{name}'",
            field=f"engine_kwargs.{field}",
            value=name,
            hint=nearest(name, known),
        )
