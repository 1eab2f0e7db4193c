"""Real vLLM with the demo model in Hugging Face form: how often it is right, vLLM's own server
beside ours, the contract. They share one engine; the contract comes last, as it restarts that.
"""

import asyncio
import json
import math
import os
import signal
from contextlib import aclosing
from typing import Any

import pytest
import pytest_asyncio

from penstock import demo
from penstock.engines.tasks import generated
from penstock.engines.vllm.engine import VLLMEngine
from penstock.errors import ModelNotFoundError, PenstockError, UnsupportedError
from penstock.openai.responses import Answers
from penstock.testing import EngineContract, answer, chat_request, count_right
from penstock.types import (
    ChatRequest,
    ChoiceQuestion,
    DecideRequest,
    Option,
    PredicateQuestion,
    Sampling,
)
from two_servers import meanings, two_servers

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),  # vLLM's own are not ours to mend
    pytest.mark.asyncio(loop_scope="module"),
]

GREEDY = Sampling(temperature=0.0, max_tokens=100)
OPENVINO_RIGHT = {None: 295, "summary": 288, "german": 295}
"""Of the first 300 tickets, with the same weights in f32: OpenVINO GenAI 2026.4.1."""

OPTIONS = {
    "max_num_seqs": 64,
    "scheduling_policy": "priority",
    "tool_call_parser": "hermes",
    "enable_auto_tool_choice": True,
    "exclude_tools_when_tool_choice_none": True,  # as ours does
}
TICKET = "My Solara 77 arrived broken and nobody answers. I want my money back!"
TOOL = {
    "type": "function",
    "function": {
        "name": "refund",
        "parameters": {
            "type": "object",
            "properties": {"sure": {"type": "boolean"}},
            "required": ["sure"],
        },
    },
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine():
    engine = VLLMEngine("demo", engine_kwargs=OPTIONS)
    await engine.start()
    yield engine
    await engine.stop()


async def test_decisions_are_those_of_its_own_log_probabilities(engine):
    labels = ("billing", "shipping", "technical")
    begun = [
        {"role": "user", "content": f"Keys: category\n{TICKET}"},
        {"role": "assistant", "content": '{"category":"'},
    ]
    question = ChoiceQuestion("", tuple(map(Option, labels)))
    found = await engine.decide(DecideRequest(begun, (question,)))
    (decision,) = found.items
    assert decision.labels == list(labels)
    assert sum(decision.probabilities) == pytest.approx(1, abs=1e-6)
    first = [(await engine.tokenize(label))[0] for label in labels]
    assert len(set(first)) == 3
    request = ChatRequest(
        begun,
        Sampling(temperature=0.0, max_tokens=1, logprobs=20),
        stream=False,
        continue_final_message=True,
        add_generation_prompt=False,
    )
    (token,) = (await Answers.of(generated(engine, request))).logprobs[0]
    known = {one: math.exp(value) for one, (_, value) in zip(token.top_ids, token.top, strict=True)}
    chances = [known.get(one, 0.0) for one in first]
    expected = [chance / sum(chances) for chance in chances]
    assert decision.probabilities == pytest.approx(expected, abs=1e-3)
    assert decision.mass == pytest.approx(sum(chances), abs=1e-3)


async def test_many_questions_about_one_input(engine):
    questions = tuple(PredicateQuestion(f"Order {number}?") for number in range(100))
    found = await engine.decide(DecideRequest(TICKET, questions))
    assert len(found.items) == 100
    assert [sum(one.probabilities) for one in found.items] == pytest.approx([1] * 100, abs=1e-6)


async def test_base_and_adapters_are_right_in_one_mixed_batch(engine):
    tickets = [
        json.loads(line) for line in demo.tickets_path().read_text(encoding="utf-8").splitlines()
    ][:300]
    for adapter in demo.ADAPTERS:
        await engine.resolve_lora(adapter, str(demo.adapter_path(adapter)))
    names = [None, *demo.ADAPTERS]
    asked = [
        (ticket["ticket"], name, demo.expected(ticket, name))
        for ticket in tickets
        for name in names
    ]
    # All are there before the first step. Floats differ in their last digits with what is computed
    # together, which decides where two tokens are as likely, and what is together must not depend
    # on how busy the machine is.
    await engine.pause("keep")
    counting = asyncio.create_task(count_right(engine, asked, GREEDY))
    while engine._running.llm.get_num_unfinished_requests() < len(asked):  # noqa: ASYNC110 (vLLM has no event for it)
        await asyncio.sleep(0)
    await engine.resume()
    right = await counting
    assert all(abs(right[name] - OPENVINO_RIGHT[name]) <= 1 for name in names), right


async def test_the_engine_counts_without_a_connector(engine):
    going_on = Sampling(temperature=0.0, max_tokens=200, ignore_eos=True)
    async with aclosing(engine.chat(chat_request(TICKET, going_on))) as stream:
        for _ in range(3):
            await anext(stream)
        counts = await engine.metrics()
    assert counts["requests_running"] == 1
    assert 0 < counts["kv_cache_usage"] <= 1
    assert counts["prefix_cache_queries"] > 0
    assert counts["steps"] >= 3


# vLLM's own server and ours, around the same engine
@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(engine):
    async with two_servers(engine, OPTIONS) as made:
        yield made


CHAT: dict[str, Any] = {
    "messages": [{"role": "user", "content": TICKET}],
    "temperature": 0,
    "max_tokens": 40,
}
BEGUN: dict[str, Any] = {
    "messages": [*CHAT["messages"], {"role": "assistant", "content": '{"category":"billing'}],
    "continue_final_message": True,
    "add_generation_prompt": False,
}
TEXT = {"prompt": TICKET, "temperature": 0, "max_tokens": 12}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
NO_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "objet"}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "ticket", "schema": demo.SCHEMA}}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", CHAT),
        ("chat/completions", {**CHAT, "max_tokens": 3}),
        ("chat/completions", {**CHAT, "stop": ["priority"]}),
        ("chat/completions", {**CHAT, "n": 3, "temperature": 1.0, "seed": 5}),
        ("chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2}),
        ("chat/completions", {**CHAT, "response_format": SCHEMA}),
        ("chat/completions", {**CHAT, "tools": [TOOL], "tool_choice": "auto", "max_tokens": 200}),
        ("chat/completions", {**CHAT, "tools": [TOOL], "tool_choice": "auto"}),
        ("chat/completions", {**CHAT, "tools": [TOOL], "tool_choice": "required"}),
        (
            "chat/completions",
            {
                **CHAT,
                "tools": [TOOL],
                "tool_choice": {"type": "function", "function": {"name": "refund"}},
            },
        ),
        ("chat/completions", {**CHAT, "tools": [TOOL], "tool_choice": "none"}),
        (
            "chat/completions",
            {**CHAT, "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
        ),
        (
            "chat/completions",
            {
                **CHAT,
                "n": 2,
                "temperature": 1.0,
                "seed": 5,
                "logprobs": True,
                "top_logprobs": 0,
                "stop": [","],
            },
        ),
        ("chat/completions", {**CHAT, "ignore_eos": True, "max_tokens": 150}),
        (
            "chat/completions",
            {**CHAT, "temperature": 1.0, "seed": 3, "top_k": 5, "presence_penalty": 0.5},
        ),
        ("chat/completions", {**CHAT, "response_format": {"type": "json_object"}}),
        ("chat/completions", {**CHAT, "structured_outputs": {"regex": "(refund|repair) at once"}}),
        (
            "chat/completions",
            {**CHAT, "messages": [{"role": "system", "content": "Keys: order"}, *CHAT["messages"]]},
        ),
        ("chat/completions", {**CHAT, **BEGUN}),
        ("chat/completions", {**CHAT, **BEGUN, "echo": True}),
        ("chat/completions", {**CHAT, **BEGUN, "tools": [TOOL], "tool_choice": "auto"}),
        ("chat/completions", {**CHAT, "messages": BEGUN["messages"]}),
        ("chat/completions", {**CHAT, "messages": BEGUN["messages"], "echo": True}),
        ("completions", TEXT),
        ("completions", {**TEXT, "prompt": [5, 6, 7, 8]}),
        (
            "completions",
            {**TEXT, "prompt": [[5, 6, 7], [8, 9]], "n": 2, "seed": 1, "temperature": 1.0},
        ),
        ("completions", {**TEXT, "stop": ["e"], "max_tokens": 60}),
        ("completions", {**TEXT, "max_tokens": 1}),
        ("completions", {**TEXT, "prompt": [TICKET, "Hello"], "min_p": 0.1}),
        ("completions", {**TEXT, "logprobs": 1}),
        ("completions", {**TEXT, "echo": True}),
    ],
)
async def test_both_servers_say_the_same(servers, path, body, stream):
    ours, theirs = await meanings(servers, path, body, stream)
    assert ours["choices"] == theirs["choices"]
    assert ours["usage"] == theirs["usage"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("chat/completions", {**CHAT, "messages": [{"role": "user", "content": "word " * 5000}]}),
        ("chat/completions", {**CHAT, "messages": "hello"}),
        ("chat/completions", {**CHAT, "max_tokens": 0}),
        ("chat/completions", {**CHAT, "temperature": -1}),
        ("chat/completions", {**CHAT, "top_p": 2}),
        ("chat/completions", {**CHAT, "n": 0}),
        ("chat/completions", {**CHAT, **BEGUN, "add_generation_prompt": True}),
        ("chat/completions", {**CHAT, "top_logprobs": 2}),
        ("chat/completions", {**CHAT, "tool_choice": "required"}),
        (
            "chat/completions",
            {
                **CHAT,
                "tools": [TOOL],
                "tool_choice": {"type": "function", "function": {"name": "sell"}},
            },
        ),
        (
            "chat/completions",
            {
                **CHAT,
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "objet"}},
                },
            },
        ),
        ("chat/completions", {**CHAT, "structured_outputs": {"regex": "("}}),
        ("chat/completions", {**CHAT, "messages": [{"role": "user", "content": [PICTURE]}]}),
        ("completions", {**TEXT, "prompt": "word " * 5000}),
        ("completions", {**TEXT, "prompt": [1, 10**9]}),
        ("completions", {**TEXT, "min_tokens": 20}),
        ("completions", {**TEXT, "temperature": "warm"}),
    ],
)
async def test_both_servers_refuse_the_same(servers, path, wrong, stream):
    ours, theirs = await servers.ask(path, wrong, stream)
    assert ours.status_code == 400, ours.text
    assert ours.json()["error"]["message"]
    # vLLM finds some mistakes only when the stream has begun.
    assert theirs.status_code == 400 or (stream and theirs.text.startswith('data: {"error"')), (
        theirs.text
    )


async def test_both_servers_know_no_other_model(servers):
    for reply in await servers.ask("chat/completions", {**CHAT, "model": "another"}):
        assert reply.status_code == 404


# What is vLLM's alone
async def test_an_adapter_of_too_high_a_rank_is_refused_before_vllm_sees_it(engine, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"r": 64, "lora_alpha": 16}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match="max_lora_rank"):
        await engine.resolve_lora("large", str(tmp_path))


async def test_an_adapter_that_vllm_cannot_read_harms_nobody(engine, tmp_path):
    (tmp_path / "adapter_config.json").write_text(
        '{"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}'
    )
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelNotFoundError, match="cannot be loaded"):
        await engine.resolve_lora("broken", str(tmp_path))
    assert (await answer(engine, chat_request(TICKET))).texts[0]


async def test_more_adapters_than_slots_take_turns(engine):
    paths = {
        f"{name}-{number}": str(demo.adapter_path(name))
        for name in demo.ADAPTERS
        for number in range(3)
    }
    for name, path in paths.items():  # six for four slots
        await engine.resolve_lora(name, path)
    names = [None, *paths]
    replies = await asyncio.gather(
        *(answer(engine, chat_request(TICKET, GREEDY, adapter=name)) for name in names * 3)
    )
    texts = {name: reply.texts[0] for name, reply in zip(names * 3, replies, strict=True)}
    assert len(set(texts.values())) == 3
    for name in demo.ADAPTERS:
        assert len({texts[f"{name}-{number}"] for number in range(3)}) == 1
    for name in paths:
        await engine.remove_lora(name)
    with pytest.raises(ModelNotFoundError):
        await engine.remove_lora(next(iter(paths)))


async def test_a_paused_engine_goes_on_when_it_is_resumed(engine):
    await engine.pause("keep")
    assert await engine.is_paused()
    asked = asyncio.create_task(answer(engine, chat_request(TICKET)))
    await engine.check_health()
    assert not asked.done()
    await engine.resume()
    assert (await asked).texts[0]
    assert not await engine.is_paused()


@pytest.mark.parametrize("mode", ["wait", "abort"])
async def test_a_pause_lets_requests_finish_or_ends_them(engine, mode):
    asked = chat_request(TICKET, Sampling(temperature=0.0, max_tokens=200, ignore_eos=True))
    async with aclosing(engine.chat(asked)) as deltas:
        await anext(deltas)
        pausing = asyncio.create_task(engine.pause(mode))
        rest = [delta async for delta in deltas]
        await pausing
    assert rest[-1].finish_reason == {"wait": "length", "abort": "abort"}[mode]
    late = asyncio.create_task(answer(engine, chat_request(TICKET)))
    await engine.check_health()
    assert not late.done()
    await engine.resume()
    assert (await late).texts[0]


async def test_reset_prefix_cache_forgets(engine):
    text = TICKET * 4
    await answer(engine, chat_request(text))
    assert (await answer(engine, chat_request(text))).usage.cached_tokens > 0
    await engine.reset_prefix_cache()
    assert (await answer(engine, chat_request(text))).usage.cached_tokens == 0


async def test_a_higher_priority_overtakes(engine):
    endless = Sampling(temperature=0.0, max_tokens=200, ignore_eos=True)
    running = [
        asyncio.create_task(answer(engine, chat_request(TICKET, endless))) for _ in range(64)
    ]
    done = []

    async def one(name, priority):
        await answer(engine, chat_request(TICKET, Sampling(max_tokens=1), priority=priority))
        done.append(name)

    late = [asyncio.create_task(one(f"late{number}", 5)) for number in range(4)]
    first = asyncio.create_task(one("first", -5))
    await asyncio.gather(*running, *late, first)
    assert done[0] == "first"


async def test_rpc_reaches_every_worker(engine):
    (held,) = await engine.collective_rpc("list_loras")
    assert sorted(held) == sorted(await engine._running.llm.list_loras())
    with pytest.raises(PenstockError):
        await engine.collective_rpc("no_such_method")
    await engine.check_health()


async def test_what_it_was_not_started_for_is_a_501_that_says_how(engine):
    for call, key in (
        (engine.sleep, "enable_sleep_mode"),
        (engine.start_profile, "profiler_config"),
    ):
        with pytest.raises(UnsupportedError, match=key):
            await call()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"structured_outputs_config": {"disable_any_white": True}},
            "engine_kwargs.structured_outputs_config",
        ),
        ({"profiler_config": {"profiler": "guess"}}, "engine_kwargs.profiler_config"),
        ({"max_num_seqs": -3}, "greater than or equal to 1"),
        ({"tokenizer": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"tool_call_parser": "hermit"}, "hermit"),
        ({"reasoning_parser": "no-such"}, "no-such"),
    ],
)
async def test_a_wrong_value_is_named_in_one_line(engine, options, told):
    other = VLLMEngine("demo", engine_kwargs=options)
    with pytest.raises(PenstockError, match=told) as caught:
        await other.start()
    assert "\n" not in str(caught.value)


class TestContract(EngineContract):
    adapters = {name: str(demo.adapter_path(name)) for name in demo.ADAPTERS}  # noqa: RUF012

    schema = demo.SCHEMA

    async def kill(self, engine):
        os.kill(engine._running.front._processes[0].pid, signal.SIGKILL)
        return True
