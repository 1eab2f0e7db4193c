"""Each argument of vLLM's server that is taken shows in answers, as it does in vLLM's own server
around the same engine.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock.engines.vllm.engine import VLLMEngine
from penstock.engines.vllm.options import HARMLESS, HONOURED, REFUSED, installed, known_names
from torch_models import reciter
from two_servers import Servers, two_servers

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.asyncio(loop_scope="function"),
]

SMALL = {
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 64 << 20,
    "block_size": 32,
}
PIECES = ["<tool_call>", '{"name": "refund", "arguments": {"sure": "no"}}', "</tool_call>"]
TOOL = {
    "type": "function",
    "function": {
        "name": "refund",
        "parameters": {
            "type": "object",
            "properties": {"sure": {"type": "boolean"}},
            "required": ["sure"],
            "additionalProperties": False,
        },
    },
}
ASK = [{"role": "user", "content": "My order is lost."}]
CHAT = {"messages": ASK, "temperature": 0, "max_tokens": 60}
PARTS = [{"role": "user", "content": [{"type": "text", "text": "Lost."}]}]
TEMPLATE = (
    "{% for m in messages %}{% if m.content is string %}(plain){{ m.content }}{% else %}"
    "{% for part in m.content %}({{ part.type }}){{ part.text }}{% endfor %}{% endif %}"
    "{% endfor %}{{ greeting }}<|answer|>"
)
PLUGIN = """
from vllm.tool_parsers import ToolParserManager
from vllm.tool_parsers.hermes_tool_parser import Hermes2ProToolParser

ToolParserManager.register_module("of_our_own", module=Hermes2ProToolParser)
"""


@asynccontextmanager
async def serving(path: Path, **options: Any) -> AsyncGenerator[Servers, None]:
    reciter(path, PIECES)
    engine = VLLMEngine(str(path), engine_kwargs={**SMALL, **options})
    await engine.start()
    try:
        async with two_servers(engine, options) as servers:
            yield servers
    finally:
        await engine.stop()


async def same(servers: Servers, path: str, body: dict[str, Any]) -> Any:
    """What both servers answer, without what differs each time."""
    ours, theirs = await servers.ask(path, body)
    assert ours.status_code == theirs.status_code, (ours.text, theirs.text)
    if ours.status_code != 200:
        return ours.json()["error"]
    told = ours.json(), theirs.json()
    if path != "chat/completions":
        assert told[0] == told[1]
        return told[0]
    for one in told:
        for call in one["choices"][0]["message"].get("tool_calls") or ():
            del call["id"]
    (choice, other) = (one["choices"][0] for one in told)
    assert (choice["logprobs"] or {}).get("content") == (other["logprobs"] or {}).get("content")
    for key, value in choice["message"].items():
        assert value == other["message"].get(key)
    assert told[0]["usage"]["prompt_tokens"] == told[1]["usage"]["prompt_tokens"]
    return choice


async def fed(servers: Servers, **chat: Any) -> str:
    """The prompt that the model is fed for a chat."""
    tokens = (await same(servers, "../tokenize", chat))["tokens"]
    return str((await same(servers, "../detokenize", {"tokens": tokens}))["prompt"])


async def test_templates_and_tokens(tmp_path: Path) -> None:
    async with serving(
        tmp_path,
        chat_template=TEMPLATE,
        chat_template_content_format="openai",
        default_chat_template_kwargs={"greeting": "Dear"},
        return_tokens_as_token_ids=True,
        trust_request_mm_kwargs=True,
    ) as servers:
        assert await fed(servers, messages=PARTS) == "(text)Lost.Dear<|answer|>"
        other = {"greeting": "Hi"}
        prompt = await fed(servers, messages=PARTS, chat_template_kwargs=other)
        assert prompt == "(text)Lost.Hi<|answer|>"
        choice = await same(servers, "chat/completions", {**CHAT, "logprobs": True})
        assert choice["logprobs"]["content"][0]["token"].startswith("token_id:")
        assert choice["message"]["content"] == "".join(PIECES)
        trusted = {"mm_processor_kwargs": {"a": 1}}
        assert (await same(servers, "chat/completions", {**CHAT, **trusted}))["message"]


async def test_parsers(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(PLUGIN)
    given: dict[str, Any] = {"tool_parser_plugin": str(plugin), "tool_call_parser": "of_our_own"}
    tools = {"tools": [TOOL], "tool_choice": "auto"}
    seen = []
    for number, level in enumerate(("auto", "parameter")):
        async with serving(
            tmp_path / str(number),
            **given,
            enable_auto_tool_choice=True,
            tool_strict_level=level,
            exclude_tools_when_tool_choice_none=not number,
        ) as servers:
            choice = await same(servers, "chat/completions", {**CHAT, **tools})
            (call,) = choice["message"]["tool_calls"]
            assert call["function"]["name"] == "refund"
            seen.append(json.loads(call["function"]["arguments"])["sure"])
            none = {**CHAT, "tools": [TOOL], "tool_choice": "none"}
            told = [
                one.json()["usage"]["prompt_tokens"]
                for body in (CHAT, none)
                for one in await servers.ask("chat/completions", body)
            ]
            assert told[0] == told[1]
            assert told[2] == told[3]
            assert (told[2] > told[0]) is bool(number)
            untrusted = {**CHAT, "mm_processor_kwargs": {"a": 1}}
            assert (await same(servers, "chat/completions", untrusted))["message"]
    assert seen[0] == "no"
    assert isinstance(seen[1], bool)


async def test_calls_are_not_free_unless_that_is_allowed(tmp_path: Path) -> None:
    given = {"tool_call_parser": "hermes", "enable_auto_tool_choice": False}
    async with serving(tmp_path, **given) as servers:
        body = {**CHAT, "tools": [TOOL], "tool_choice": "auto"}
        error = await same(servers, "chat/completions", body)
        assert "enable_auto_tool_choice" in error["message"]


async def test_every_argument_of_the_installed_server_has_a_verdict() -> None:
    _, frontend = known_names(installed().root)
    assert frontend
    assert not frontend - HONOURED - HARMLESS - REFUSED.keys()
