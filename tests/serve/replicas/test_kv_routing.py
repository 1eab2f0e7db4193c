"""Requests go where their prompt is cached, as the engines tell it: simulated engines behind
replicas on loopback.
"""

import asyncio
from typing import Any

import httpx
import pytest

from penstock.balance.policies.prefix import BLOCK_BYTES, kv_aware_in, shared_blocks
from penstock.balance.pool import prompt_of
from penstock.errors import ShuttingDownError
from penstock.kv.cached_blocks import Change
from penstock.llm_config import LLMConfig
from penstock.serve.api.ingress import OpenAiIngress
from penstock.serve.config.settings import HttpSettings
from penstock.serve.replicas import pool
from penstock.serve.replicas.messages import ChangeReader, framed, header_of, names_of
from penstock.serve.replicas.model import CompleteAnswers, RemoteModel
from penstock.serve.replicas.replica import ReplicaServer
from penstock.serve.replicas.runtime import InMemoryStore, ReplicaInfo
from penstock.types import ChatRequest, CompletionRequest, Sampling

KEY = "secret"
SETTINGS = HttpSettings()
SHORT = Sampling(temperature=0.0, max_tokens=2)


def config(router="kv_aware", **engine):
    return LLMConfig.from_dict(
        {
            "model_loading_config": {"model_id": "m", "model_source": "simulated"},
            "llm_engine": "simulated",
            "engine_kwargs": engine,
            "deployment_config": {"request_router_config": {"request_router_class": router}},
        }
    )


async def until(so):
    while not so():  # noqa: ASYNC110 - nobody announces it
        await asyncio.sleep(0)


class Cluster:
    """Replicas of this process, and an ingress in front of them."""

    def __init__(self, replica_config, router="kv_aware"):
        self.replica_config = replica_config
        self.servers = {}
        self.listed: tuple[ReplicaInfo, ...] = ()
        self.model = RemoteModel(config(router), self, key=KEY)
        self.policy: Any = kv_aware_in(self.model.pool.policy)
        app = OpenAiIngress({"m": self.model}, settings=SETTINGS)
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://test"
        )

    def current(self):
        return self.listed

    async def obtain(self):
        raise AssertionError("the test adds replicas itself")

    async def add(self):
        server = ReplicaServer(
            self.replica_config,
            replica_id=f"r{len(self.servers)}",
            host="127.0.0.1",
            key=KEY,
            settings=SETTINGS,
            desired=InMemoryStore(),
        )
        self.servers[server.id] = server
        await server.start()
        await until(lambda: server._http._uvicorn.started)
        self.listed = (*self.listed, server.info)
        return server

    async def ask(self, text):
        answer = await self.client.post(
            "/v1/completions", json={"model": "m", "prompt": text, "max_tokens": 2}
        )
        assert answer.status_code == 200, answer.text

    def served(self):
        return [server.server.engine.requests_served for server in self.servers.values()]

    def known(self, text, replica):
        """How many blocks of a prompt the router knows to be cached there."""
        path = self.policy.tree.path(self.model.pool.route(f'"{text}"'.encode()).blocks)
        return sum(replica in holders for holders in path)

    async def close(self):
        await self.client.aclose()
        await self.model.stop()
        for server in self.servers.values():
            await server.stop()


@pytest.fixture
async def cluster():
    made = []

    async def make(replicas=2, router="kv_aware", **engine):
        one = Cluster(config(router, **engine), router)
        made.append(one)
        for _ in range(replicas):
            await one.add()
        return one

    yield make
    for one in made:
        await one.close()


def prompt(number, blocks=6):
    """One whose blocks no other has."""
    return f"{number:04d} " + f"water {number} " * (blocks * BLOCK_BYTES // 8)


async def test_a_prompt_goes_where_it_is_cached(cluster):
    one = await cluster()
    text = prompt(1)
    await one.ask(text)
    (first,) = (name for name, count in zip(one.servers, one.served(), strict=True) if count)
    await until(lambda: one.known(text, first) >= 5)
    for _ in range(5):
        await one.ask(text + " and more")
    assert sorted(one.served()) == [0, 6]


CALLS = {
    "text": lambda text: CompletionRequest(text, SHORT),
    "token ids": lambda text: CompletionRequest(list(text.encode()), SHORT),
    "chat": lambda text: ChatRequest([{"role": "user", "content": text}], SHORT),
}


@pytest.mark.parametrize("router", ["kv_aware", "prefix_aware"])
@pytest.mark.parametrize("ask", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("complete", [False, True], ids=["streamed", "complete"])
async def test_calls_of_programs_go_where_their_beginning_is_cached(cluster, ask, router, complete):
    one = await cluster(router=router)
    model = CompleteAnswers(one.model) if complete else one.model
    for more in range(6):  # of different lengths
        request = ask(prompt(1) + "and more " * more)
        async for _ in (
            model.chat(request) if isinstance(request, ChatRequest) else model.completions(request)
        ):
            pass
    assert sorted(one.served()) == [0, 6]


async def test_the_names_of_a_call_are_those_of_its_prompt(cluster, monkeypatch):
    one = await cluster(1)
    first, second = (CompletionRequest(prompt(number), SHORT) for number in (1, 2))
    named = []
    monkeypatch.setattr(
        one.servers["r0"].server.engine.cached_blocks, "asked", lambda *given: named.append(given)
    )
    model = CompleteAnswers(one.model)

    async def ask(request):
        async for _ in model.completions(request):
            pass

    await asyncio.gather(ask(first), ask(second))
    assert [list(names) for names, _ in named] == [
        shared_blocks(prompt_of(one)) for one in (first, second)
    ]


async def test_what_a_cache_has_dropped_is_forgotten(cluster):
    one = await cluster(1, kv_cache_blocks=64)
    text = prompt(1)
    await one.ask(text)
    await until(lambda: one.known(text, "r0") >= 5)
    await one.ask(prompt(2, blocks=7))
    await until(lambda: one.known(text, "r0") == 0)
    assert one.known(prompt(2, blocks=7), "r0")


async def test_a_reset_is_told(cluster):
    one = await cluster(1)
    text = prompt(1)
    await one.ask(text)
    await until(lambda: one.known(text, "r0"))
    await one.servers["r0"].server.reset_prefix_cache()
    await until(lambda: not one.known(text, "r0"))


async def test_an_ingress_that_comes_later_is_told_what_is_cached(cluster):
    one = await cluster(1)
    text = prompt(1)
    await one.ask(text)
    await until(lambda: one.known(text, "r0"))
    other = Cluster(one.replica_config)
    other.listed = one.listed
    other.model.pool.current()
    await until(lambda: other.known(text, "r0") >= 5)
    await other.close()


async def test_a_replica_that_goes_is_forgotten(cluster):
    one = await cluster(2)
    texts = [prompt(n) for n in range(8)]
    for text in texts:
        await one.ask(text)
    await until(lambda: all(one.known(text, "r0") or one.known(text, "r1") for text in texts))
    one.listed = one.listed[1:]
    one.model.pool.current()
    assert not any(one.known(text, "r0") for text in texts)
    assert list(one.model.pool._followers) == ["r1"]


async def test_a_stream_that_ends_is_taken_up_again(cluster, monkeypatch):
    monkeypatch.setattr(pool, "AGAIN_S", 0.0)
    one = await cluster(1)
    text = prompt(1)
    await one.ask(text)
    await until(lambda: one.known(text, "r0"))
    for watcher in list(one.servers["r0"]._http.app.ingress.watchers):
        watcher.fire(ShuttingDownError("cut"))
    await until(lambda: not one.known(text, "r0"))
    await until(lambda: one.known(text, "r0"))


async def test_a_replica_that_drains_does_not_wait_for_its_watchers(cluster):
    one = await cluster(1)
    await one.ask("hello")
    await until(lambda: one.servers["r0"]._http.app.ingress.watchers)
    assert await one.servers["r0"]._http.app.ingress.drain(60)


async def test_an_engine_that_does_not_tell_is_chosen_by_load(cluster, caplog):
    one = await cluster(1, router="round_robin")  # so that the engine is not asked to tell
    other = Cluster(one.replica_config)
    other.listed = one.listed
    await other.ask("hello")
    await until(lambda: "does not tell what it has cached" in caplog.text)
    await other.close()


async def test_other_policies_follow_nothing(cluster):
    one = await cluster(1, router="prefix_aware")
    await one.ask(prompt(1))
    assert not one.model.pool._followers
    assert one.servers["r0"].server.engine.cached_blocks is None


def test_names_as_a_header():
    names = shared_blocks(b"x" * BLOCK_BYTES * 3)
    assert len(set(names)) == 3
    assert names_of(header_of(names)) == tuple(names)
    for wrong in ("", "no", "****", "AAAA"):
        assert names_of(wrong) == ()


def test_names_depend_on_all_before_and_on_the_adapter():
    one, other = (shared_blocks(bytes([n]) + b"x" * (2 * BLOCK_BYTES)) for n in (1, 2))
    assert not set(one) & set(other)
    assert not set(one) & set(shared_blocks(b"\1" + b"x" * (2 * BLOCK_BYTES), "adapter"))
    assert shared_blocks(b"short") == []


def test_frames_in_any_pieces():
    changes = [Change([1, 2], anew=True), Change([], [2])]
    data = framed(changes) + framed([Change([3])])
    reader = ChangeReader()
    read = [change for at in range(len(data)) for change in reader.changes_of(data[at : at + 1])]
    assert read == [*changes, Change([3])]
