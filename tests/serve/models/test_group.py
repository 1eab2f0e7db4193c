"""A group of engines keeps the contract of one, and dies and starts as one."""

import asyncio
from contextlib import aclosing

import pytest
import pytest_asyncio
from msgspec.structs import replace

from penstock.balance.policies.prefix import PrefixAware
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import EngineDeadError, EngineStartError
from penstock.llm_config.batch import BatchConfig
from penstock.serve.models.data_parallel import EngineGroup
from penstock.testing import EngineContract, answer, chat_request
from penstock.types import EmbeddingRequest, Sampling


def group(ranks=3, **options):
    return EngineGroup([SimulatedEngine(engine_kwargs=options) for _ in range(ranks)])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine():
    # One rank: what a prompt finds in the cache is a rank's own.
    engine = group(1, output_tokens=40, max_num_seqs=16, max_model_len=4096)
    await engine.start()
    yield engine
    await engine.stop()


class TestContract(EngineContract):
    async def kill(self, engine):
        engine.ranks[0]._die("killed")
        return True


@pytest.fixture
async def started():
    one = group()
    await one.start()
    yield one
    await one.stop()


async def test_requests_go_to_the_rank_with_the_fewest(started):
    endless = chat_request("hello", Sampling(temperature=0, max_tokens=9000, ignore_eos=True))
    streams = [started.chat(endless) for _ in range(6)]
    for number, stream in enumerate(streams):
        await anext(stream)
        assert max(started.running) - min(started.running) <= 1
        assert sum(started.running) == number + 1
    for stream in streams[:1] + streams[3:4]:  # both of one rank
        await stream.aclose()
    assert sorted(started.running) == [0, 2, 2]
    idle = started.running.index(0)
    async with aclosing(started.chat(endless)) as stream:
        await anext(stream)
        assert started.running[idle] == 1
    for stream in streams:
        await stream.aclose()
    assert started.running == [0, 0, 0]


async def test_idle_ranks_take_turns(started):
    for _ in range(6):
        await answer(started, chat_request("x"))
    assert [rank.requests_served for rank in started.ranks] == [2, 2, 2]


async def test_prompts_that_begin_alike_go_to_one_rank_where_that_is_asked_for():
    ranks = [SimulatedEngine() for _ in range(3)]
    one = EngineGroup(ranks, PrefixAware())
    await one.start()
    for number in range(4):
        await answer(one, chat_request("x" * 4000 + str(number)))
    assert sorted(rank.requests_served for rank in ranks) == [0, 0, 4]
    await one.stop()


async def test_what_it_can_do_is_that_of_all_ranks_together(started):
    assert started.name == "simulated"
    assert started.capabilities.max_concurrency == 3 * started.ranks[0].capabilities.max_concurrency
    assert not started.brings("sleep")
    assert started.brings("reset_prefix_cache")
    assert (await started.metrics())["requests_running"] == 0
    vectors = await asyncio.gather(*(started.embeddings(EmbeddingRequest(["a"])) for _ in range(3)))
    assert vectors[0].vectors == vectors[1].vectors == vectors[2].vectors


async def test_a_batch_has_as_many_rows_under_way_as_fill_all_ranks():
    ranks = [SimulatedEngine() for _ in range(3)]
    for rank in ranks:
        rank.capabilities = replace(rank.capabilities, batch_in_flight=8)
    one = EngineGroup(ranks)
    await one.start()
    assert one.capabilities.batch_in_flight == 24
    await one.stop()


async def test_its_ranks_share_their_steps_as_it_is_told():
    one = group()
    one.sharing = BatchConfig(min_share=0.5)
    await one.start()
    assert one.shares_steps
    assert [rank.sharing.min_share for rank in one.ranks] == [0.5] * 3
    await one.stop()


async def test_adapters_are_on_every_rank(started):
    await started.resolve_lora("french", "/somewhere")
    request = chat_request("x", Sampling(temperature=0), adapter="french")
    assert len({(await answer(started, request)).texts[0] for _ in started.ranks}) == 1
    await started.remove_lora("french")
    assert all(not rank.adapters for rank in started.ranks)


async def test_one_dead_rank_is_a_dead_group_that_starts_as_a_whole(started):
    deaths = []
    started.on_death = lambda: deaths.append(1)
    started.ranks[1]._die("killed")
    assert deaths == [1]
    with pytest.raises(EngineDeadError):
        await started.check_health()
    await started.stop()
    for rank in started.ranks:
        with pytest.raises(EngineDeadError):
            await rank.check_health()
    await started.start()
    await started.check_health()


class Failing(SimulatedEngine):
    async def start(self):
        raise EngineStartError("no memory")


async def test_all_start_or_none_does():
    slow = SimulatedEngine(engine_kwargs={"start_ms": 60_000})
    quick = SimulatedEngine()
    one = EngineGroup([quick, slow, Failing()])
    with pytest.raises(EngineStartError, match="no memory"):
        await one.start()
    for rank in (quick, slow):
        with pytest.raises(EngineDeadError):
            await rank.check_health()
