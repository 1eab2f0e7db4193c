"""Data-parallel ranks inside one vLLM engine: a group that vLLM makes and balances, and that lives
and dies as one.
"""

import asyncio
import os
import signal
from typing import Any

import psutil
import pytest
import pytest_asyncio

from penstock.engines.vllm.engine import VLLMEngine
from penstock.errors import EngineDeadError
from penstock.kv.cached_blocks import PROMPT_BLOCKS
from penstock.llm_config import LLMConfig
from penstock.serve.models.data_parallel import DPServer
from penstock.testing import answer, chat_request
from penstock.types import Sampling

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),  # vLLM's own are not ours to mend
    pytest.mark.asyncio(loop_scope="module"),
]

TICKET = "My Solara 77 arrived broken and nobody answers. I want my money back!"
GREEDY = Sampling(temperature=0, max_tokens=24)
RANKS = 2


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server():
    loading = {"model_id": "m", "model_source": "demo"}
    options = {"data_parallel_size": RANKS, "max_num_seqs": 16, "kv_cache_memory_bytes": 64 << 20}
    config = LLMConfig.from_dict(
        {"model_loading_config": loading, "llm_engine": "vllm", "engine_kwargs": options}
    )
    with pytest.MonkeyPatch.context() as patch:
        # Ranks that share cores: threads that spin while they wait would take them from each other.
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        one: Any = DPServer(config)
        one.engine.tell_cached_blocks()
        await one.start()
        yield one
        await one.stop()


def pids(server):
    """The processes of the ranks."""
    return [process.pid for process in server.engine._running.front._processes]


def working(server):
    """The ranks that have told of a step."""
    return sorted(server.engine._counts._latest)


def ended(pids):
    """Whether none of these processes is more than an entry that nobody has looked at yet."""
    try:
        return all(
            psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
            for pid in pids
            if psutil.pid_exists(pid)
        )
    except psutil.NoSuchProcess:
        return ended(pids)


async def until(so):
    async with asyncio.timeout(120):
        while not so():  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.01)


async def test_the_engine_makes_the_ranks_and_shares_requests_out(server):
    assert isinstance(server.engine, VLLMEngine)
    assert len(set(pids(server))) == RANKS
    assert server.engine.capabilities.max_concurrency == RANKS * 16
    results = await asyncio.gather(
        *(answer(server, chat_request(TICKET, GREEDY)) for _ in range(16))
    )
    assert len({result.texts[0] for result in results}) == 1
    assert working(server) == list(range(RANKS))


async def test_what_the_ranks_have_cached_is_told(server):
    names = (1, 2, 3)
    token = PROMPT_BLOCKS.set(names)
    try:
        await answer(server, chat_request(TICKET * 8, GREEDY))
    finally:
        PROMPT_BLOCKS.reset(token)
    blocks = server.engine.cached_blocks
    await until(lambda: tuple(sorted(blocks.held())) == names)
    await server.reset_prefix_cache()
    await until(lambda: blocks.held() == [])


async def test_a_killed_rank_takes_the_group_with_it_which_starts_again(server):
    before = pids(server)
    endless = chat_request(TICKET, Sampling(temperature=0, max_tokens=2000, ignore_eos=True))
    streams = [server.chat(endless) for _ in range(4)]
    for stream in streams:
        await anext(stream)
    os.kill(before[-1], signal.SIGKILL)
    lost = 0
    for stream in streams:  # those of the other rank may come to their end before
        try:
            async for _ in stream:
                pass
        except EngineDeadError:
            lost += 1
    assert lost
    assert (await answer(server, chat_request(TICKET, GREEDY))).texts[0]
    assert server.state().restarts == 1
    assert len(set(pids(server))) == RANKS
    assert not set(before) & set(pids(server))
    assert ended(before)


async def test_it_drains_as_a_whole(server):
    limited = chat_request(TICKET, Sampling(temperature=0, max_tokens=200, ignore_eos=True))
    streams = [server.chat(limited) for _ in range(4)]
    for stream in streams:
        await anext(stream)

    async def rest(stream):
        last = None
        async for delta in stream:
            last = delta
        return last

    ranks = pids(server)
    ends = asyncio.gather(*(rest(stream) for stream in streams))
    await server.stop(drain_timeout_s=60)
    assert [last.finish_reason for last in await ends] == ["length"] * 4
    assert ended(ranks)
