"""The demo model on the real engine: the engine's contract, its adapters, and how often it is
right.
"""

import asyncio
import json
import os
import signal

import pytest
import pytest_asyncio

from penstock import demo
from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.testing import EngineContract, answer, chat_request, count_right
from penstock.types import CompletionRequest, Sampling

pytestmark = pytest.mark.slow

GREEDY = Sampling(temperature=0.0, max_tokens=100)
LEAST = 0.97


@pytest.fixture(scope="module")
def tickets():
    return [
        json.loads(line) for line in demo.tickets_path().read_text(encoding="utf-8").splitlines()
    ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine():
    engine = OpenVINOEngine("demo", engine_kwargs={"inference_precision": "f32"})
    await engine.start()
    yield engine
    await engine.stop()


class TestContract(EngineContract):
    adapters = {name: str(demo.adapter_path(name)) for name in demo.ADAPTERS}  # noqa: RUF012

    schema = demo.SCHEMA

    async def kill(self, engine):
        os.kill(engine._process.pid, signal.SIGKILL)
        return True


@pytest.mark.asyncio(loop_scope="module")
async def test_base_and_adapters_are_right_in_one_mixed_batch(engine, tickets):
    for adapter in demo.ADAPTERS:
        await engine.resolve_lora(adapter, str(demo.adapter_path(adapter)))
    names = [None, *demo.ADAPTERS]
    asked = [
        (ticket["ticket"], name, demo.expected(ticket, name))
        for ticket in tickets
        for name in names
    ]
    right = await count_right(engine, asked, GREEDY)
    assert all(count >= LEAST * len(tickets) for count in right.values()), right


@pytest.mark.parametrize(
    "speculation",
    [
        {"prompt_lookup": True},
        {"draft_model": str(demo.model_path("openvino")), "num_speculative_tokens": 3},
    ],
)
async def test_speculation_changes_no_answer(speculation, tickets):
    texts = []
    for speculating in (False, True):
        kwargs = {"inference_precision": "f32", **(speculation if speculating else {})}
        engine = OpenVINOEngine("demo", engine_kwargs=kwargs)
        await engine.start()
        requests = [chat_request(ticket["ticket"], GREEDY, stream=False) for ticket in tickets[:20]]
        texts.append([(await answer(engine, request)).texts[0] for request in requests])
        await engine.stop()
    assert texts[0] == texts[1]


async def test_a_draft_model_changes_no_answer_to_long_prompts_side_by_side():
    greedy = Sampling(temperature=0.0, max_tokens=12, ignore_eos=True)
    prompts = [[(7 * n + 31 * at) % 900 + 5 for at in range(400 + 60 * n)] for n in range(8)]
    texts = []
    for speculation in ({}, {"draft_model": str(demo.model_path("openvino"))}):
        kwargs = {
            "inference_precision": "f32",
            "kv_cache_precision": "f32",
            "properties": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"},
            **speculation,
        }
        engine = OpenVINOEngine("demo", engine_kwargs=kwargs)
        await engine.start()
        requests = [CompletionRequest(ids, greedy, stream=False) for ids in prompts]
        found = await asyncio.gather(*(answer(engine, request) for request in requests))
        texts.append([one.texts[0] for one in found])
        await engine.stop()
    assert texts[0] == texts[1]
