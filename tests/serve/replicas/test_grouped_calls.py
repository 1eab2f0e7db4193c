"""Groups of calls to replicas on loopback."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from penstock.errors import EngineDeadError, RequestError
from penstock.serve.api.ingress import IngressApp
from penstock.serve.replicas.calls import pack
from penstock.serve.replicas.grouped_calls import GROUP_PATH, GroupedCall, GroupedModel
from penstock.types import ChatRequest, CompletionRequest, Delta, EmbeddingRequest, Sampling
from replica_cluster import Cluster, Make, config, until


def asked(text: str, tokens: int = 4) -> CompletionRequest:
    return CompletionRequest(
        text, sampling=Sampling(max_tokens=tokens, temperature=0, ignore_eos=True)
    )


async def text(model: GroupedModel, request: CompletionRequest) -> str:
    return "".join([delta.text async for delta in model.completions(request)])


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of what the replicas are asked."""
    seen: list[str] = []
    answer = IngressApp.__call__

    async def noted(self: IngressApp, scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["path"])
        await answer(self, scope, receive, send)

    monkeypatch.setattr(IngressApp, "__call__", noted)
    return seen


async def test_calls_of_one_turn_travel_together_and_are_answered_as_they_are_alone(
    cluster: Make, paths: list[str]
) -> None:
    one = await cluster()
    model = GroupedModel(one.model)
    request = ChatRequest(
        [{"role": "user", "content": "hello"}], sampling=Sampling(max_tokens=5, seed=1), n=2
    )

    async def chat(handle: GroupedModel) -> list[Delta]:
        return [delta async for delta in handle.chat(request)]

    answers: list[Any] = await asyncio.gather(
        chat(model),
        model.embeddings(EmbeddingRequest(["a", "b"])),
        *(text(model, asked(f"row {n}")) for n in range(8)),
    )
    chatted, vectors, *texts = answers
    assert paths == [GROUP_PATH]
    alone = [delta async for delta in one.model.chat(request)]
    for index in (0, 1):
        (told,) = (delta for delta in chatted if delta.index == index)
        mine = [delta for delta in alone if delta.index == index]
        assert told.text == "".join(delta.text for delta in mine)
        assert (told.finish_reason, told.usage) == (mine[-1].finish_reason, mine[-1].usage)
    assert vectors == await one.model.embeddings(EmbeddingRequest(["a", "b"]))
    assert texts == [
        "".join([d.text async for d in one.model.completions(asked(f"row {n}"))]) for n in range(8)
    ]


async def test_results_come_one_by_one(cluster: Make) -> None:
    one = await cluster(model=config(engine_kwargs={"time_per_token_ms": 1}))
    model = GroupedModel(one.model)
    slow = asyncio.create_task(text(model, asked("slow", 30_000)))
    assert len(await text(model, asked("quick", 2))) == 2
    assert not slow.done()
    (server,) = one.servers.values()
    assert server.ongoing == 1
    slow.cancel()  # the last that anybody waits for: the replica is told
    await until(lambda: server.ongoing == 0)


async def test_groups_are_bounded(cluster: Make, paths: list[str]) -> None:
    one = await cluster(2)
    model = GroupedModel(one.model, most=4)
    await asyncio.gather(*(text(model, asked("x")) for _ in range(10)))
    assert paths == [GROUP_PATH] * 3
    paths.clear()
    await asyncio.gather(*(text(model, asked("x" * 20_000)) for _ in range(3)))
    assert paths == [GROUP_PATH]
    assert all(replica.running == 0 for replica in one.model.pool.current())
    served = [server.server.engine.requests_served for server in one.servers.values()]  # type: ignore[attr-defined]
    assert sum(served) == 13
    assert min(served) >= 3


async def test_an_error_is_that_of_its_call(cluster: Make) -> None:
    one = await cluster()
    model = GroupedModel(one.model)
    wrong = CompletionRequest("x", sampling=Sampling(temperature=-1))
    good, bad = await asyncio.gather(
        text(model, asked("x")), text(model, wrong), return_exceptions=True
    )
    assert isinstance(good, str)
    assert isinstance(bad, RequestError)


async def test_what_is_no_group_is_refused(cluster: Make) -> None:
    one = await cluster()
    calls = pack(
        [GroupedCall("dance", msgspec.Raw(pack("x"))), GroupedCall("chat", msgspec.Raw(pack("x")))]
    )
    route = one.model.pool.route(b"")
    async with one.model.pool.ask(GROUP_PATH, [], b"\xc1", route) as reply:
        assert reply.status == 400
    async with one.model.pool.ask(GROUP_PATH, [], calls, route) as reply:
        told = await reply.body()
    assert b"no task 'dance'" in told
    assert b"not of its task's form" in told


async def test_what_a_lost_replica_has_not_answered_is_asked_again(cluster: Make) -> None:
    one = await cluster(2, model=config(engine_kwargs={"time_per_token_ms": 5}))
    model = GroupedModel(one.model)
    asking = [asyncio.create_task(text(model, asked(f"row {n}", 40))) for n in range(6)]
    await until(lambda: one.servers["r0"].ongoing == 6)
    await one.kill("r0")
    assert [len(answer) for answer in await asyncio.gather(*asking)] == [40] * 6


async def test_a_call_that_ends_every_replica_is_given_up(cluster: Make) -> None:
    one = await cluster(4)
    for replica in list(one.servers):
        await one.kill(replica)
    with pytest.raises(EngineDeadError, match="3 replicas were lost"):
        await text(GroupedModel(one.model), asked("x"))


async def test_a_replica_that_goes_down_hands_its_group_on(cluster: Make) -> None:
    one: Cluster = await cluster(2, model=config(engine_kwargs={"time_per_token_ms": 5}))
    model = GroupedModel(one.model)
    asking = [asyncio.create_task(text(model, asked(f"row {n}", 100))) for n in range(3)]
    await until(lambda: one.servers["r0"].ongoing == 3)
    server = one.servers["r0"]
    await server._http.app.ingress.drain(0.0)
    assert [len(answer) for answer in await asyncio.gather(*asking)] == [100] * 3
