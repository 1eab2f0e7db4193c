"""A group of two embedded engines with the demo model."""

import asyncio
import os
import signal
from typing import Any

import psutil
import pytest

from penstock.errors import EngineDeadError
from penstock.llm_config import LLMConfig
from penstock.serve.models.data_parallel import DPServer
from penstock.testing import answer, chat_request
from penstock.types import Sampling

pytestmark = pytest.mark.slow

TICKET = "My Solara 77 arrived broken and nobody answers. I want my money back!"
GREEDY = Sampling(temperature=0, max_tokens=24)


def config():
    loading = {"model_id": "m", "model_source": "demo"}
    options = {"data_parallel_size": 2, "kv_cache_memory_bytes": 64 << 20, "deterministic": True}
    return LLMConfig.from_dict({"model_loading_config": loading, "engine_kwargs": options})


def pids(server):
    return [rank._process.pid for rank in server.engine.ranks]


async def test_ranks_answer_alike_and_a_killed_one_takes_the_group_with_it():
    server: Any = DPServer(config())
    await server.start()
    try:
        results = await asyncio.gather(
            *(answer(server, chat_request(TICKET, GREEDY)) for _ in range(8))
        )
        assert len({result.texts[0] for result in results}) == 1
        before = pids(server)
        assert len(set(before)) == 2
        endless = chat_request(TICKET, Sampling(temperature=0, max_tokens=2000, ignore_eos=True))
        streams = [server.chat(endless) for _ in range(2)]  # one on each rank
        for stream in streams:
            await anext(stream)
        os.kill(before[0], signal.SIGKILL)
        for stream in streams:
            with pytest.raises(EngineDeadError):
                async for _ in stream:
                    pass
        assert (await answer(server, chat_request(TICKET, GREEDY))).texts == results[0].texts
        assert server.state().restarts == 1
        assert not set(before) & set(pids(server))
        assert not any(psutil.pid_exists(pid) for pid in before)
        after = pids(server)
    finally:
        await server.stop()
    assert not any(psutil.pid_exists(pid) for pid in after)
