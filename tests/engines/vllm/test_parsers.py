"""vLLM's parsers on answers that are known: a model that recites says what a reasoning model with
tools would say.
"""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from penstock.engines.vllm.engine import VLLMEngine
from penstock.errors import ConfigError
from penstock.testing import answer, chat_request
from penstock.types import Delta, Sampling
from torch_models import reciter
from two_servers import Servers, meanings, two_servers

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.asyncio(loop_scope="module"),
]

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "refund",
        "parameters": {
            "type": "object",
            "properties": {"order": {"type": "string"}},
            "required": ["order"],
        },
    },
}
CALL = {"name": "refund", "arguments": {"order": "A 17"}}
BEFORE, AFTER = json.dumps(CALL)[:40], json.dumps(CALL)[40:]
PIECES = [
    "<think>",
    "They want ",
    "their money.",
    "</think>",
    "I see",
    " to it.",
    "<tool_call>",
    BEFORE,
    AFTER,
    "</tool_call>",
]
OPTIONS = {
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 64 << 20,
    "block_size": 32,
    "reasoning_parser": "deepseek_r1",
    "tool_call_parser": "hermes",
    "enable_auto_tool_choice": True,
    "exclude_tools_when_tool_choice_none": True,  # as ours does
}
GREEDY = Sampling(temperature=0.0, max_tokens=40)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory):
    path = tmp_path_factory.mktemp("reciter")
    reciter(path, PIECES)
    engine = VLLMEngine(str(path), engine_kwargs=OPTIONS)
    await engine.start()
    yield engine
    await engine.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def servers(engine):
    async with two_servers(engine, OPTIONS) as made:
        yield made


@pytest.mark.parametrize("stream", [True, False])
async def test_reasoning_calls_and_text_are_told_apart(engine, stream):
    reply = await answer(
        engine, chat_request("My order is lost.", GREEDY, tools=[TOOL], stream=stream)
    )
    assert reply.reasoning[0] == "They want their money."
    assert reply.texts[0].strip() == "I see to it."
    (call,) = reply.tool_calls[0]
    assert (call.name, json.loads(call.arguments)) == (CALL["name"], CALL["arguments"])
    assert call.id
    assert reply.reasons[0] == "tool_calls"
    assert reply.usage.completion_tokens == len(PIECES) + 1


async def test_a_mark_that_comes_with_the_next_token_is_no_reasoning(engine):
    chat = await engine._running.parsed.prepare(
        chat_request("My order is lost.", GREEDY, stream=True)
    )
    marks = await engine.tokenize("<think>They want their money.</think>I see")
    pieces = [
        ("<think>They want ", marks[:2]),
        ("their money.</think>", marks[2:4]),
        ("I see", marks[4:]),
    ]
    told = [chat.translate(Delta(text=text, token_ids=tuple(ids))) for text, ids in pieces]
    assert "".join(delta.reasoning for delta in told) == "They want their money."
    assert "".join(delta.text for delta in told) == "I see"


@pytest.mark.parametrize("stream", [True, False])
async def test_without_tools_a_call_is_text(engine, stream):
    reply = await answer(engine, chat_request("My order is lost.", GREEDY, stream=stream))
    assert reply.reasoning[0] == "They want their money."
    assert reply.texts[0] == "".join(PIECES[4:])
    assert not reply.tool_calls
    assert reply.reasons[0] == "stop"


async def test_a_strict_function_is_held_to_its_schema(engine):
    parameters = {**TOOL["function"]["parameters"], "properties": {"order": {"enum": ["B 7"]}}}
    function = {**TOOL["function"], "parameters": parameters}
    for strict in (False, True):
        tool = {"type": "function", "function": {**function, "strict": strict}}
        reply = await answer(engine, chat_request("My order is lost.", GREEDY, tools=[tool]))
        said = reply.texts[0] + "".join(call.arguments for call in reply.tool_calls.get(0, ()))
        assert ("A 17" in said) is not strict


BODY = {
    "messages": [{"role": "user", "content": "My order is lost."}],
    "temperature": 0,
    "max_tokens": 40,
}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"max_tokens": 2},
        {"max_tokens": 5},
        {"n": 2, "temperature": 0.1, "seed": 1},
        {"stop": ["money"]},
        {"tools": [TOOL]},
        {"tools": [TOOL], "max_tokens": 8},
        {"tools": [TOOL], "tool_choice": "none"},
        {"tools": [TOOL], "parallel_tool_calls": False},
        {"logprobs": True, "top_logprobs": 1},
    ],
)
async def test_both_servers_read_the_same(servers: Servers, more, stream):
    ours, theirs = await meanings(servers, "chat/completions", {**BODY, **more}, stream)
    assert ours["choices"] == theirs["choices"]
    assert ours["usage"] == theirs["usage"]


PLUGIN = """
from vllm.tool_parsers import ToolParserManager
from vllm.tool_parsers.hermes_tool_parser import Hermes2ProToolParser

ToolParserManager.register_module("of_our_own", module=Hermes2ProToolParser)
"""


async def test_a_plugin_brings_its_parsers(tmp_path):
    from penstock.engines.vllm.parsers import load_parsers

    none = SimpleNamespace(reasoning_parser="", reasoning_parser_plugin="")
    frontend = {"tool_call_parser": "of_our_own"}
    with pytest.raises(ConfigError, match="of_our_own"):
        load_parsers(frontend, none)
    plugin = tmp_path / "plugin.py"
    plugin.write_text(PLUGIN)
    load_parsers({**frontend, "tool_parser_plugin": str(plugin)}, none)
    with pytest.raises(ConfigError, match="Did you mean 'hermes'"):
        load_parsers({"tool_call_parser": "hermez"}, none)
