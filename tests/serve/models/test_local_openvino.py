"""A real engine behind a handle: loading on demand, leaving, sleeping, dying."""

import asyncio
import json
import os
import shutil
import signal
from contextlib import aclosing
from typing import Any

import pytest

from penstock import demo
from penstock.errors import EngineDeadError, EngineStartError, UnavailableError
from penstock.llm_config import LLMConfig
from penstock.serve.models.local import build_local_handles
from penstock.serve.models.memory import copy_estimate, memory_estimate
from penstock.types import ChatRequest, DecideRequest, PredicateQuestion, Sampling
from random_model import TINY, write_random_model

OPTIONS = {
    "max_num_seqs": 4,
    "inference_precision": "f32",
    "num_threads": 1,
    "kv_cache_memory_bytes": 64 << 20,
}
ENDLESS = Sampling(temperature=0.0, max_tokens=2000, ignore_eos=True)
PATIENCE = 60.0


def ask(sampling):
    return ChatRequest([{"role": "user", "content": "My Solara 77 arrived broken."}], sampling)


@pytest.fixture
async def handle(tmp_path):
    path = tmp_path / "tiny.gguf"
    write_random_model(path, TINY)
    config = LLMConfig.from_dict(
        {
            "model_loading_config": {"model_id": "tiny", "model_source": str(path)},
            "engine_kwargs": OPTIONS,
            "deployment_config": {"autoscaling_config": {"min_replicas": 0}},
        }
    )
    handle: Any = build_local_handles([config])["tiny"]
    yield handle
    await handle.stop(0)
    assert handle.server.engine._process is None
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def rest(stream):
    async with asyncio.timeout(PATIENCE):
        return "".join([delta.text async for delta in stream])


async def text(handle, sampling):
    return await rest(handle.chat(ask(sampling)))


@pytest.mark.slow
async def test_a_real_engine_through_its_whole_life(handle):
    greedy = Sampling(temperature=0.0, max_tokens=12, ignore_eos=True)
    assert (handle.state().state, handle.card().context_length) == ("cold", TINY.context)

    first = await text(handle, greedy)  # loads
    assert first
    assert handle.state().state == "ready"
    assert handle.card().context_length == TINY.context
    assert await handle.detokenize(await handle.tokenize("a text")) == "a text"

    for _ in range(6):  # more than there are slots: each that leaves must free its own
        async with aclosing(handle.chat(ask(ENDLESS))) as stream:
            await anext(stream)
    assert await text(handle, greedy) == first
    assert handle.state().running == 0

    async with aclosing(handle.chat(ask(ENDLESS))) as stream:
        await anext(stream)
        os.kill(handle.server.engine._process.pid, signal.SIGKILL)
        with pytest.raises(EngineDeadError):
            await rest(stream)
    assert await text(handle, greedy) == first

    await handle.control("sleep", {"mode": "abort"})
    assert handle.state().state == "asleep"
    assert handle.server.engine._process is None
    with pytest.raises(UnavailableError):
        await text(handle, greedy)
    await handle.control("wakeup", {})
    assert await text(handle, greedy) == first

    await handle.control("sleep", {})
    await handle.unload()
    await handle.control("wakeup", {})
    assert handle.state().state == "cold"
    assert await text(handle, greedy) == first
    assert (await handle.control("check_health", {}))[0]["ok"]


@pytest.mark.slow
async def test_a_tokenizer_may_come_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "cache"))
    model, tokenizer = tmp_path / "model", tmp_path / "tokenizer"
    shutil.copytree(demo.model_path(), model)
    tokenizer.mkdir()
    for file in [
        file
        for file in model.iterdir()
        if "token" in file.name or file.name == "chat_template.jinja"
    ]:
        file.rename(tokenizer / file.name)
    loading = {"model_id": "m", "model_source": str(model), "tokenizer_source": str(tokenizer)}
    lora = {"adapters": {"german": str(demo.adapter_path("german"))}}
    fields = {"model_loading_config": loading, "engine_kwargs": OPTIONS, "lora_config": lora}
    handle = build_local_handles([LLMConfig.from_dict(fields)])["m"]
    await handle.start()
    ticket = json.loads(demo.tickets_path().read_text(encoding="utf-8").splitlines()[0])
    for adapter in (None, "german"):
        request = ChatRequest(
            [{"role": "user", "content": ticket["ticket"]}],
            Sampling(temperature=0.0, max_tokens=100),
            adapter=adapter,
        )
        assert await rest(handle.chat(request)) == demo.expected(ticket, adapter)
    await handle.stop(0)
    nowhere = {**loading, "tokenizer_source": str(tmp_path)}
    handle = build_local_handles(
        [LLMConfig.from_dict({**fields, "model_loading_config": nowhere})]
    )["m"]
    with pytest.raises(EngineStartError, match="is no directory with an openvino_tokenizer"):
        await handle.start()
    assert handle.state().state == "failed"


async def test_the_copy_that_decides_takes_room_of_the_budget(handle):
    request = DecideRequest("My Solara 77 arrived broken.", (PredicateQuestion("Is it true?"),))
    (found,) = (await handle.decide(request)).items
    assert sum(found.probabilities) == pytest.approx(1, abs=1e-6)
    budget, beside = handle._budget, handle.server.engine.beside
    model, copy = memory_estimate(handle.config), copy_estimate(handle.config)
    assert budget.used == model + copy
    await beside.unload()
    assert budget.used == model
    budget.total = model + copy - 1
    with pytest.raises(EngineStartError, match="memory budget"):
        await handle.decide(request)
    assert budget.used == model
