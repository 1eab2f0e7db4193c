"""One server: the way of a request, and the end."""

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import (
    EngineDeadError,
    ModelNotFoundError,
    OverloadedError,
    RequestError,
    UnavailableError,
    UnsupportedError,
)
from penstock.serve.models.control import control_result
from penstock.serve.models.server import LLMServer
from penstock.types import ChatRequest, CompletionRequest, EmbeddingRequest, RerankRequest, Sampling
from scripted_server import ASK, Scripted, begun, config, limits, settle, texts


async def test_a_request_is_answered_and_has_an_id():
    engine = SimulatedEngine(engine_kwargs={"output_tokens": 5})
    server = LLMServer(config(), engine=engine)
    await server.start()
    last = [delta async for delta in server.chat(ASK)][-1]
    assert last.finish_reason is not None
    assert last.usage is not None
    assert last.usage.completion_tokens == 5
    assert (await server.embeddings(EmbeddingRequest(["x"]))).vectors
    assert len((await server.score(RerankRequest("a", ["a", "b"]))).scores) == 2
    assert await server.detokenize(await server.tokenize("text")) == "text"
    assert await texts(server.completions(CompletionRequest("x", Sampling(max_tokens=3))))
    await server.check_health()
    assert server.state().state == "ready"
    await server.stop()
    assert server.state().state == "cold"


async def test_errors_carry_the_request_id():
    server = LLMServer(config(), engine=SimulatedEngine(engine_kwargs={}))
    await server.start()
    request = ChatRequest(ASK.messages, Sampling(temperature=-1.0), request_id="req-7")
    with pytest.raises(RequestError) as caught:
        await texts(server.chat(request))
    assert "request req-7" in caught.value.__notes__
    await server.stop()


async def test_a_server_that_is_not_started_refuses():
    server: Any = LLMServer(config(), engine=Scripted())
    with pytest.raises(EngineDeadError, match="not loaded"):
        await texts(server.chat(ASK))


async def test_slots_and_queue_are_bounded(started):
    server = await started(deployment_config=limits(1, 1))
    first = await begun(server)
    second = asyncio.create_task(texts(server.chat(ASK)))
    await settle()
    assert (server.state().running, server.state().waiting) == (1, 1)
    with pytest.raises(OverloadedError) as caught:
        await texts(server.chat(ASK))
    assert caught.value.retry_after > 0
    assert await server.tokenize("x") == [120]  # does not wait behind generation
    server.engine.go_on.set()
    await first
    assert await second == "ab"
    assert (server.state().running, server.state().waiting) == (0, 0)


async def test_a_caller_who_leaves_frees_the_slot(started):
    server = await started(deployment_config=limits(1, 1))
    for _ in range(3):
        async with aclosing(server.chat(ASK)) as stream:
            await anext(stream)
        assert server.state().running == 0
    queued = asyncio.create_task(texts(server.chat(ASK)))
    await settle()
    queued.cancel()
    await settle()
    assert server.admission.idle


async def test_what_the_engine_cannot_do_is_a_501_that_names_it(started):
    server = await started()
    with pytest.raises(UnsupportedError, match="simulated"):
        await server.transcriptions(None)
    for method in ("start_profile", "collective_rpc"):
        with pytest.raises(UnsupportedError, match="simulated"):
            await control_result(
                server, "0", method, {"method": "x"} if method == "collective_rpc" else {}
            )


async def test_an_unknown_adapter_is_a_404(started):
    server = await started()
    with pytest.raises(ModelNotFoundError, match="nobody"):
        await texts(server.chat(ChatRequest(ASK.messages, adapter="nobody")))


# Stopping
async def test_stopping_drains_and_refuses_the_new():
    server: Any = LLMServer(config(), engine=Scripted())
    await server.start()
    stream = await begun(server)
    stopping = asyncio.create_task(server.stop(drain_timeout_s=3600))
    await settle()
    assert server.state().state == "draining"
    with pytest.raises(UnavailableError, match="shutting down"):
        await texts(server.chat(ASK))
    server.engine.go_on.set()
    assert [delta.text for delta in await stream] == ["b"]
    await stopping
    assert server.state().state == "cold"


@pytest.mark.parametrize("interval_ms", [0, 1])
async def test_what_a_pause_holds_ends_when_the_server_stops(interval_ms):
    server: Any = LLMServer(
        config(experimental_configs={"stream_batching_interval_ms": interval_ms}),
        engine=Scripted(),
    )
    await server.start()
    stream = await begun(server)
    await server.pause("keep")
    await server.stop(drain_timeout_s=0)
    with pytest.raises(EngineDeadError):
        await stream


async def test_what_is_not_done_in_time_ends_with_an_error():
    server: Any = LLMServer(config(deployment_config=limits(1, 5)), engine=Scripted())
    await server.start()
    stream = await begun(server)
    queued = asyncio.create_task(texts(server.chat(ASK)))
    await settle()
    await server.stop(drain_timeout_s=0)
    with pytest.raises(EngineDeadError):
        await stream
    with pytest.raises(UnavailableError):
        await queued
    assert server.engine.starts == 1  # a stop is no death


async def test_stopping_in_the_middle_of_a_start_tells_those_who_wait():
    engine = Scripted()
    engine.may_start.clear()
    server = LLMServer(config(), engine=engine, load_on_demand=True)
    waiting = asyncio.create_task(texts(server.chat(ASK)))
    await settle()
    await server.stop(drain_timeout_s=0)
    with pytest.raises(UnavailableError, match="shutting down"):
        await waiting
    assert asyncio.all_tasks() == {asyncio.current_task()}
