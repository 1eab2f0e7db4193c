"""Calls of replicas on loopback by programs."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from penstock.engines.tasks import Tasks
from penstock.errors import (
    BodyTooLargeError,
    EngineDeadError,
    NoKeyError,
    PenstockError,
    RequestError,
    UnavailableError,
)
from penstock.serve.config.settings import Limits
from penstock.serve.replicas import client
from penstock.serve.replicas.client import Address
from penstock.serve.replicas.frames import FramedConnection
from penstock.serve.replicas.messages import pack
from penstock.serve.replicas.model import CompleteAnswers
from penstock.serve.replicas.pool import error_of
from penstock.serve.replicas.replica import ENDPOINT, ReplicaApp
from penstock.types import ChatRequest, CompletionRequest, Delta, EmbeddingRequest, Sampling
from replica_cluster import KEY, Cluster, Make, config, until


def asked(text: str, tokens: int = 4) -> CompletionRequest:
    return CompletionRequest(
        text, sampling=Sampling(max_tokens=tokens, temperature=0, ignore_eos=True)
    )


async def text(model: Tasks, request: CompletionRequest) -> str:
    return "".join([delta.text async for delta in model.completions(request)])


@pytest.fixture
def scopes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Of what the replicas are asked."""
    seen: list[Any] = []
    answer = ReplicaApp.__call__

    async def noted(self: ReplicaApp, scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)
        await answer(self, scope, receive, send)

    monkeypatch.setattr(ReplicaApp, "__call__", noted)
    return seen


async def test_a_complete_answer_is_the_streamed_one(cluster: Make, scopes: list[Any]) -> None:
    one = await cluster()
    model = CompleteAnswers(one.model)
    request = ChatRequest(
        [{"role": "user", "content": "hello"}], sampling=Sampling(max_tokens=5, seed=1), n=2
    )

    async def chat(handle: Tasks) -> list[Delta]:
        return [delta async for delta in handle.chat(request)]

    answers: list[Any] = await asyncio.gather(
        chat(model),
        model.embeddings(EmbeddingRequest(["a", "b"])),
        *(text(model, asked(f"row {n}")) for n in range(8)),
    )
    chatted, vectors, *texts = answers
    assert {scope["type"] for scope in scopes} == {"penstock.call"}
    alone = await chat(one.model)
    for index in (0, 1):
        (told,) = (delta for delta in chatted if delta.index == index)
        mine = [delta for delta in alone if delta.index == index]
        assert told.text == "".join(delta.text for delta in mine)
        assert (told.finish_reason, told.usage) == (mine[-1].finish_reason, mine[-1].usage)
    assert vectors == await one.model.embeddings(EmbeddingRequest(["a", "b"]))
    assert texts == [await text(one.model, asked(f"row {n}")) for n in range(8)]


async def test_calls_of_one_turn_leave_in_one_write(
    cluster: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await cluster()
    await one.model.tokenize("x")  # connects
    writes: list[int] = []
    flush = FramedConnection.flush

    def noted(self: FramedConnection) -> None:
        if isinstance(self, client.Connection):
            writes.append(len(self._outbox))
        flush(self)

    monkeypatch.setattr(FramedConnection, "flush", noted)
    await asyncio.gather(*(text(CompleteAnswers(one.model), asked("x")) for _ in range(64)))
    assert writes == [64 * 4]  # a CALL and a BODY each, head and payload


async def test_results_come_one_by_one(cluster: Make) -> None:
    one = await cluster(model=config(engine_kwargs={"time_per_token_ms": 1}))
    model = CompleteAnswers(one.model)
    slow = asyncio.create_task(text(model, asked("slow", 30_000)))
    assert len(await text(model, asked("quick", 2))) == 2
    assert not slow.done()
    (server,) = one.servers.values()
    assert server.ongoing == 1
    slow.cancel()  # the replica is told
    await until(lambda: server.ongoing == 0)


async def test_calls_are_spread_over_replicas(cluster: Make) -> None:
    one = await cluster(2)
    model = CompleteAnswers(one.model)
    await asyncio.gather(*(text(model, asked("x")) for _ in range(10)))
    assert all(replica.running == 0 for replica in one.model.pool.current())
    served = [server.server.engine.requests_served for server in one.servers.values()]  # type: ignore[attr-defined]
    assert served == [5, 5]


async def test_an_error_is_that_of_its_call(cluster: Make) -> None:
    one = await cluster()
    model = CompleteAnswers(one.model)
    wrong = CompletionRequest("x", sampling=Sampling(temperature=-1))
    good, bad = await asyncio.gather(
        text(model, asked("x")), text(model, wrong), return_exceptions=True
    )
    assert isinstance(good, str)
    assert isinstance(bad, RequestError)


async def refusal(one: Cluster, task: str, body: bytes) -> PenstockError:
    async with one.model.pool.call(task, body, one.model.pool.route(b"")) as reply:
        assert reply.status >= 400
        return error_of(await reply.body())


async def test_what_is_no_call_is_refused(cluster: Make) -> None:
    one = await cluster(limits=Limits(max_body_bytes=1000))
    assert "no task 'dance'" in str(await refusal(one, "dance", pack("x")))
    for wrong in (pack("x"), b"\xc1", b""):
        assert "not of its task's form" in str(await refusal(one, "chat", wrong))
    wrong = pack({"messages": [], "n": "many"})
    assert "form: n must be an integer, not " in str(await refusal(one, "chat", wrong))
    assert isinstance(await refusal(one, "tokenize", b"x" * 1001), BodyTooLargeError)
    one.model.pool._key = "another"
    assert isinstance(await refusal(one, "tokenize", pack("x")), NoKeyError)


async def test_what_only_a_later_version_asks_is_not_dropped(cluster: Make) -> None:
    one = await cluster()
    for task, body in (("completions", {"prompt": "x", "depth": 3}), ("dance", {})):
        error = await refusal(one, task, pack(body))
        assert isinstance(error, UnavailableError)  # another replica may be of that version
        assert "this replica's version of Penstock" in str(error)


async def test_long_requests_come_in_pieces(cluster: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PIECE", 100)
    one = await cluster()
    assert await one.model.tokenize("x" * 5000) == [120] * 5000


async def test_calls_are_counted(cluster: Make) -> None:
    one = await cluster()
    await text(CompleteAnswers(one.model), asked("x"))
    await text(one.model, asked("x"))
    metrics = one.servers["r0"]._http.app.ingress.metrics
    assert metrics.requests.labels("m", ENDPOINT, "200")._value.get() == 2
    assert metrics.of("m").generation_tokens._value.get() == 8
    assert one.servers["r0"]._http.app.ingress.inflight == 0


async def test_what_came_before_a_call_was_given_up_is_counted(cluster: Make) -> None:
    one = await cluster(model=config(engine_kwargs={"time_per_token_ms": 1}))
    async with aclosing(one.model.completions(asked("x", 30_000))) as batches:
        await anext(batches)
    (server,) = one.servers.values()
    await until(lambda: server.ongoing == 0)
    ingress = server._http.app.ingress
    await until(lambda: ingress.inflight == 0)
    assert ingress.metrics.of("m").generation_tokens._value.get() > 0


async def test_what_a_lost_replica_has_not_answered_is_asked_again(cluster: Make) -> None:
    one = await cluster(2, model=config(engine_kwargs={"time_per_token_ms": 5}))
    model = CompleteAnswers(one.model)
    asking = [asyncio.create_task(text(model, asked(f"row {n}", 40))) for n in range(6)]
    await until(lambda: [server.ongoing for server in one.servers.values()] == [3, 3])
    await one.kill("r0")
    assert [len(answer) for answer in await asyncio.gather(*asking)] == [40] * 6


async def test_a_call_that_ends_every_replica_is_given_up(cluster: Make) -> None:
    one = await cluster(4)
    for replica in list(one.servers):
        await one.kill(replica)
    with pytest.raises(EngineDeadError, match="3 replicas were lost"):
        await text(CompleteAnswers(one.model), asked("x"))


async def test_a_call_that_ends_every_engine_is_given_up(
    cluster: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await cluster(1)
    asked_of_it = 0

    def dead(request: Any) -> Any:
        nonlocal asked_of_it
        asked_of_it += 1
        raise EngineDeadError("it is gone")

    monkeypatch.setattr(one.servers["r0"].model, "generate", dead)
    with pytest.raises(EngineDeadError, match="3 replicas were lost"):
        await text(CompleteAnswers(one.model), asked("x"))
    assert asked_of_it == 3


async def test_a_replica_that_goes_down_hands_its_calls_on(cluster: Make) -> None:
    one: Cluster = await cluster(2, model=config(engine_kwargs={"time_per_token_ms": 5}))
    model = CompleteAnswers(one.model)
    asking = [asyncio.create_task(text(model, asked(f"row {n}", 100))) for n in range(6)]
    await until(lambda: one.servers["r0"].ongoing == 3)
    server = one.servers["r0"]
    await server._http.app.ingress.drain(0.0)
    assert [len(answer) for answer in await asyncio.gather(*asking)] == [100] * 6


async def test_a_stream_of_a_replica_that_goes_down_ends_with_its_error(cluster: Make) -> None:
    one = await cluster(
        model=config(engine_kwargs={"time_per_token_ms": 1, "output_tokens": 30_000})
    )
    batches = one.model.generate(asked("x", 30_000))
    await anext(batches)
    await one.servers["r0"]._http.app.ingress.drain(0.0)
    with pytest.raises(PenstockError, match="shutting down"):
        async for _ in batches:
            pass


class Stranger(asyncio.Protocol):
    """Takes the preface for damaged HTTP, as a replica of another version does."""

    def connection_made(self, transport: Any) -> None:
        transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.mark.parametrize(
    ("peer", "why"),
    [(asyncio.Protocol, "cannot be reached"), (Stranger, "as a replica of this version")],
)
async def test_what_does_not_answer_the_preface_is_a_lost_replica(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, peer: Any, why: str
) -> None:
    if peer is asyncio.Protocol:
        monkeypatch.setattr(client, "CONNECT_TIMEOUT_S", 0.01)
    loop = asyncio.get_running_loop()
    other = await loop.create_server(peer, "127.0.0.1", 0)
    address = Address("127.0.0.1", other.sockets[0].getsockname()[1])
    with pytest.raises(EngineDeadError, match=why):
        await address.connected().ask("GET", "/", [("authorization", f"Bearer {KEY}")], b"")
    assert ("same version of Penstock on both sides" in caplog.text) == (peer is Stranger)
    other.close()
