"""Requests go where their prompt is cached, as two real vLLM engines tell it."""

import asyncio
from typing import Any

import pytest
import pytest_asyncio

from penstock.balance.policies.prefix import kv_aware_in
from penstock.llm_config import LLMConfig
from penstock.serve.config.settings import HttpSettings
from penstock.serve.replicas.model import RemoteModel
from penstock.serve.replicas.replica import ReplicaServer
from penstock.serve.replicas.runtime import InMemoryStore
from penstock.types import CompletionRequest, Sampling

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),  # vLLM's own are not ours to mend
    pytest.mark.asyncio(loop_scope="module"),
]

KEY = "secret"
BLOCKS, BLOCK_BYTES = 96, 64 << 10
"""Of each cache; what a block of 32 tokens takes of the demo model."""
SHORT = Sampling(temperature=0.0, max_tokens=2)


def config():
    options = {
        "dtype": "float32",
        "enforce_eager": True,
        "block_size": 32,
        "kv_cache_memory_bytes": BLOCKS * BLOCK_BYTES,
        "max_model_len": 2048,
        "max_num_seqs": 4,
    }
    return LLMConfig.from_dict(
        {
            "model_loading_config": {"model_id": "m", "model_source": "demo"},
            "llm_engine": "vllm",
            "engine_kwargs": options,
            "deployment_config": {"request_router_config": {"request_router_class": "kv_aware"}},
        }
    )


class Pair:
    """Two replicas, and a model in front of them. Implements `serve.replicas.runtime.Replicas`."""

    def __init__(self):
        shared: Any = {
            "host": "127.0.0.1",
            "key": KEY,
            "settings": HttpSettings(),
            "desired": InMemoryStore(),
        }
        self.servers: dict[str, Any] = {
            name: ReplicaServer(config(), replica_id=name, **shared) for name in ("r0", "r1")
        }
        self.model: Any = None

    async def start(self):
        await asyncio.gather(*(server.start() for server in self.servers.values()))
        self.infos = tuple(server.info for server in self.servers.values())
        self.model = RemoteModel(config(), self, key=KEY)

    def current(self):
        return self.infos

    async def obtain(self):
        return self.infos[0]

    async def ask(self, text):
        """Tokens of the prompt, and those that were found in the cache."""
        deltas = [delta async for delta in self.model.completions(CompletionRequest(text, SHORT))]
        return deltas[-1].usage.prompt_tokens, deltas[-1].usage.cached_tokens

    def known(self, text):
        """By replica, how many of the prompt's blocks are known to be cached there."""
        route = self.model.pool.route_of(CompletionRequest(text))
        policy: Any = kv_aware_in(self.model.pool.policy)
        path = policy.tree.path(route.blocks)
        return {name: sum(name in holders for holders in path) for name in self.servers}

    def told(self):
        """By replica, how many of all names its engine has told to hold."""
        return {
            name: len(server.server.engine.cached_blocks.held())
            for name, server in self.servers.items()
        }

    async def stop(self):
        if self.model is not None:
            await self.model.stop()
        await asyncio.gather(*(server.stop() for server in self.servers.values()))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair():
    with pytest.MonkeyPatch.context() as patch:
        # Engines that share cores: threads that spin while they wait would take them from each
        # other.
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        one = Pair()
        await one.start()
        yield one
        await one.stop()


async def until(so):
    async with asyncio.timeout(120):
        while not so():  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.01)


def prompt(number, words=500):
    """A text of about 1,200 tokens and ten blocks of a router's, of which no other has any."""
    return f"{number:04d} " + f"water {number} " * (words // 2)


async def test_a_prompt_goes_where_its_engine_says_that_it_is(pair):
    text = prompt(1)
    total, cached = await pair.ask(text)
    assert cached == 0
    (home,) = [name for name, blocks in pair.known(text).items() if blocks]
    await until(lambda: pair.told()[home] >= len(text) // 256 - 1)
    for more in range(4):
        _, cached = await pair.ask(text + " and more" * more)
        assert cached > total - 64
    assert set(pair.known(text).values()) == {0, pair.known(text)[home]}


async def test_what_an_engine_drops_is_forgotten(pair):
    text = prompt(1)
    await pair.ask(text)
    (home,) = [name for name, blocks in pair.known(text).items() if blocks]
    number = iter(range(2, 100))
    while pair.known(text)[home]:  # caches of 96 blocks have no room for many prompts of about 40
        await pair.ask(prompt(next(number)))
    assert (await pair.ask(text))[1] == 0


async def test_a_cache_that_is_emptied_is_forgotten(pair):
    text = prompt(500)
    await pair.ask(text)
    await until(lambda: any(pair.told().values()))
    for server in pair.servers.values():
        await server.server.reset_prefix_cache()
    await until(lambda: not any(pair.known(text).values()))
    assert (await pair.ask(text))[1] == 0
