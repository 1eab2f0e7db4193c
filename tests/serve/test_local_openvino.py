"""A real engine behind a handle: loading on demand, leaving, sleeping, dying."""

import asyncio
import os
import signal
from contextlib import aclosing
from typing import Any

import pytest

from penstock.errors import EngineDeadError, UnavailableError
from penstock.llm_config import LLMConfig
from penstock.runtimes.local import build_local_handles
from penstock.types import ChatRequest, Sampling
from random_model import TINY, write_random_model

OPTIONS = {"max_num_seqs": 4, "inference_precision": "f32", "num_threads": 1, "kv_cache_memory_bytes": 64 << 20}
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
    assert (handle.state().state, handle.card().context_length) == ("cold", None)

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
