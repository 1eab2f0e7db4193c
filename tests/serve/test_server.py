"""One server: the way of a request, faults of its engine, sleep and pause."""

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from penstock.engines.simulated import SimulatedEngine
from penstock.errors import (
    ConfigError,
    EngineDeadError,
    EngineStartError,
    EngineTimeoutError,
    ModelNotFoundError,
    OverloadedError,
    RequestError,
    UnsupportedError,
)
from penstock.llm_config import LLMConfig
from penstock.serve import lifecycle
from penstock.serve.control import control_result
from penstock.serve.server import LLMServer
from penstock.types import ChatRequest, CompletionRequest, Delta, EmbeddingRequest, RerankRequest, Sampling, Usage

ASK = ChatRequest([{"role": "user", "content": "Hello"}])


class Scripted(SimulatedEngine):
    """Gives "a", then waits for the test before it gives "b" and ends. Dies and refuses to start when told so."""

    def __init__(self, **options):
        super().__init__(engine_kwargs=options)
        self.starts = self.stops = 0
        self.start_errors: list[Exception] = []
        self.seen: list[Any] = []
        self.silent_deaths = 0
        self.go_on = asyncio.Event()
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.died = asyncio.Event()

    async def start(self):
        self.starts += 1
        await self.may_start.wait()
        if self.start_errors:
            raise self.start_errors.pop(0)
        self.died = asyncio.Event()
        await super().start()

    async def stop(self):
        self.stops += 1
        self.kill()

    def kill(self):
        self._alive = False
        self.died.set()

    async def generate(self, request):
        await self.check_health()
        self.seen.append(request)
        if self.silent_deaths:
            self.silent_deaths -= 1
            self.kill()
            raise EngineDeadError("killed")
        yield Delta(text="a", token_ids=(1,))
        ended = {asyncio.create_task(event.wait()) for event in (self.go_on, self.died)}
        try:
            await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in ended:
                task.cancel()
        if self.died.is_set():
            raise EngineDeadError("killed")
        yield Delta(text="b", token_ids=(2,), finish_reason="stop", usage=Usage(5, 2))


class Sleeping(Scripted):
    """Has a sleep of its own."""

    asleep = False

    async def sleep(self, level=1):
        self.asleep = True

    async def wakeup(self):
        self.asleep = False

    async def is_sleeping(self):
        return self.asleep


class Pausing(Scripted):
    """Has a pause of its own."""

    def __init__(self, **options):
        super().__init__(**options)
        self.asked = []

    async def pause(self, mode="wait"):
        self.asked.append(mode)

    async def resume(self):
        self.asked.append("resume")


def config(**fields: Any) -> LLMConfig:
    return LLMConfig.from_dict({"model_loading_config": {"model_id": "m"}, "llm_engine": "simulated", **fields})


def limits(running, waiting):
    return {"max_ongoing_requests": running, "max_queued_requests": waiting}


@pytest.fixture(autouse=True)
def no_delays(monkeypatch):
    monkeypatch.setattr(lifecycle, "RESTART_DELAYS_S", (0.0, 0.0))
    monkeypatch.setattr(lifecycle, "RETRY_DELAYS_S", (0.0,))


@pytest.fixture
async def started():
    """Makes started servers, and sees to it that they leave nothing behind."""
    servers = []

    async def start(engine=None, **fields):
        server = LLMServer(config(**fields), engine=engine or Scripted())
        servers.append(server)
        await server.start()
        return server

    yield start
    for server in servers:
        await server.stop()
    for _ in range(5):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


async def texts(stream):
    return "".join([delta.text async for delta in stream])


async def begun(server, request=ASK):
    """A stream whose caller has seen a part, and the task that takes the rest."""
    stream = server.chat(request)
    assert (await anext(stream)).text == "a"

    async def rest():
        async with aclosing(stream):
            return [delta async for delta in stream]

    return asyncio.create_task(rest())


# The way of a request
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
            await control_result(server, "0", method, {"method": "x"} if method == "collective_rpc" else {})


async def test_an_unknown_adapter_is_a_404(started):
    server = await started()
    with pytest.raises(ModelNotFoundError, match="nobody"):
        await texts(server.chat(ChatRequest(ASK.messages, adapter="nobody")))


# Starting
async def test_the_engine_class_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("PENSTOCK_ENGINE_CLS", "penstock.engines.simulated:SimulatedEngine")
    assert type(LLMServer(config(llm_engine="vllm")).engine) is SimulatedEngine
    monkeypatch.setenv("PENSTOCK_ENGINE_CLS", "penstock.nowhere:Engine")
    with pytest.raises(ConfigError, match="PENSTOCK_ENGINE_CLS"):
        LLMServer(config())


def test_an_unknown_engine_is_refused_before_anything_is_loaded():
    with pytest.raises(ConfigError, match="llm_engine"):
        LLMServer(config(llm_engine="vllmm"))
    with pytest.raises(ConfigError, match=r"engine_kwargs\.output_token"):
        LLMServer(config(engine_kwargs={"output_token": 3}))


async def test_a_start_takes_no_longer_than_allowed():
    engine = Scripted()
    engine.may_start.clear()
    server = LLMServer(config(experimental_configs={"start_timeout_s": 0}), engine=engine)
    with pytest.raises(EngineTimeoutError, match="waited 0 s"):
        await server.start()
    assert server.state().state == "failed"
    assert "waited 0 s" in server.state().reason


async def test_callers_wait_while_it_loads_in_order_and_bounded():
    engine = Scripted()
    engine.may_start.clear()
    engine.go_on.set()
    server = LLMServer(config(deployment_config=limits(5, 2)), engine=engine, load_on_demand=True)
    assert server.state().state == "cold"
    waiting = [asyncio.create_task(texts(server.chat(ASK))) for _ in range(2)]
    await settle()
    assert (server.state().state, server.state().waiting, engine.starts) == ("loading", 2, 1)
    with pytest.raises(OverloadedError):
        await texts(server.chat(ASK))
    engine.may_start.set()
    assert await asyncio.gather(*waiting) == ["ab", "ab"]
    assert engine.starts == 1
    await server.stop()


async def test_a_failed_start_is_told_to_all_and_tried_again_later(monkeypatch):
    monkeypatch.setattr(lifecycle, "RETRY_DELAYS_S", (3600.0,))
    engine = Scripted()
    engine.go_on.set()
    engine.start_errors = [EngineStartError("no such file"), ValueError("odd")]
    server = LLMServer(config(), engine=engine, load_on_demand=True)
    waiting = [asyncio.create_task(texts(server.chat(ASK))) for _ in range(2)]
    for result in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(result, EngineStartError)
        assert "no such file" in str(result)
    assert server.state().state == "failed"
    assert "no such file" in server.state().reason
    with pytest.raises(EngineStartError, match="no such file"):  # not before its time
        await texts(server.chat(ASK))
    assert engine.starts == 1
    server.lifecycle._retry_at = 0.0
    with pytest.raises(EngineStartError, match="ValueError: odd"):
        await texts(server.chat(ASK))
    server.lifecycle._retry_at = 0.0
    assert await texts(server.chat(ASK)) == "ab"
    assert server.state() == type(server.state())("ready")
    await server.stop()


# Death
async def test_a_dead_engine_is_started_again_and_unseen_requests_are_tried_once_more(started):
    engine = Scripted()
    engine.go_on.set()
    server = await started(engine)
    engine.silent_deaths = 1
    assert await texts(server.chat(ASK)) == "ab"
    assert (engine.starts, len(engine.seen)) == (2, 2)


async def test_a_stream_that_had_begun_ends_with_the_death_and_others_go_on(started):
    server = await started()
    streams = [await begun(server) for _ in range(3)]
    server.engine.kill()
    for result in await asyncio.gather(*streams, return_exceptions=True):
        assert isinstance(result, EngineDeadError)
    server.engine.go_on.set()
    assert await texts(server.chat(ASK)) == "ab"
    assert server.engine.starts == 2  # once for all three


async def test_an_engine_that_dies_between_requests_is_not_noticed_by_the_next(started):
    server = await started()
    server.engine.go_on.set()
    server.engine.kill()
    assert await server.embeddings(EmbeddingRequest(["x"]))
    assert await texts(server.chat(ASK)) == "ab"
    assert server.engine.starts == 2


async def test_a_request_that_kills_every_engine_is_given_up(started):
    server = await started()
    server.engine.go_on.set()
    server.engine.silent_deaths = 2
    with pytest.raises(EngineDeadError):
        await texts(server.chat(ASK))
    assert await texts(server.chat(ASK)) == "ab"


async def test_an_engine_that_only_dies_has_failed(started):
    server = await started()
    server.engine.silent_deaths = 10
    results = [await asyncio.gather(texts(server.chat(ASK)), return_exceptions=True) for _ in range(3)]
    assert "without finishing a request" in server.state().reason
    assert server.state().state == "failed"
    assert isinstance(results[-1][0], (EngineStartError, EngineDeadError))


async def test_a_restart_that_fails_is_tried_again(started):
    server = await started()
    server.engine.go_on.set()
    server.engine.start_errors = [EngineStartError("busy")]
    server.engine.silent_deaths = 1
    assert await texts(server.chat(ASK)) == "ab"
    assert server.engine.starts == 3


# Stopping
async def test_stopping_drains_and_refuses_the_new():
    server: Any = LLMServer(config(), engine=Scripted())
    await server.start()
    stream = await begun(server)
    stopping = asyncio.create_task(server.stop(drain_timeout_s=3600))
    await settle()
    assert server.state().state == "draining"
    with pytest.raises(OverloadedError, match="shutting down"):
        await texts(server.chat(ASK))
    server.engine.go_on.set()
    assert [delta.text for delta in await stream] == ["b"]
    await stopping
    assert server.state().state == "cold"


async def test_what_is_not_done_in_time_ends_with_an_error():
    server: Any = LLMServer(config(deployment_config=limits(1, 5)), engine=Scripted())
    await server.start()
    stream = await begun(server)
    queued = asyncio.create_task(texts(server.chat(ASK)))
    await settle()
    await server.stop(drain_timeout_s=0)
    with pytest.raises(EngineDeadError):
        await stream
    with pytest.raises(OverloadedError):
        await queued
    assert server.engine.starts == 1  # a stop is no death


async def test_stopping_in_the_middle_of_a_start_tells_those_who_wait():
    engine = Scripted()
    engine.may_start.clear()
    server = LLMServer(config(), engine=engine, load_on_demand=True)
    waiting = asyncio.create_task(texts(server.chat(ASK)))
    await settle()
    await server.stop(drain_timeout_s=0)
    with pytest.raises(OverloadedError, match="shutting down"):
        await waiting
    assert asyncio.all_tasks() == {asyncio.current_task()}


# Pause and sleep
async def test_paused_requests_wait_and_those_under_way_finish(started):
    server = await started()
    stream = await begun(server)
    pausing = asyncio.create_task(server.pause("wait"))
    await settle()
    waiting = asyncio.create_task(texts(server.chat(ASK)))
    await settle()
    assert server.state().state == "paused"
    assert server.state().waiting == 1
    assert not pausing.done()
    server.engine.go_on.set()
    await pausing
    assert (await stream)[-1].finish_reason == "stop"
    assert not waiting.done()
    assert await server.is_paused()
    await server.resume()
    assert await waiting == "ab"
    assert not await server.is_paused()


async def test_pausing_may_abort(started):
    server = await started()
    stream = await begun(server)
    await server.pause("abort")
    assert [(d.finish_reason, d.usage.completion_tokens) for d in await stream] == [("abort", 1)]
    assert server.admission.idle


async def test_pausing_may_hold(started):
    server = await started()
    stream = await begun(server)
    await server.pause("keep")
    server.engine.go_on.set()
    await settle()
    assert not stream.done()
    await server.resume()
    assert [delta.text for delta in await stream] == ["b"]


async def test_an_engine_that_can_pause_is_asked_and_a_new_one_is_told_again(started):
    engine = Pausing()
    server = await started(engine)
    await server.pause("keep")
    server.lifecycle.restart(server.lifecycle.generation)
    await server.lifecycle.ready()
    assert engine.asked == ["keep", "keep"]
    waiting = asyncio.create_task(texts(server.chat(ASK)))
    await settle()
    assert server.state().state == "paused"
    assert not waiting.done()
    engine.go_on.set()
    await server.resume()
    assert await waiting == "ab"


async def test_a_sleeping_model_refuses_until_it_is_woken(started):
    server = await started()
    server.engine.go_on.set()
    await server.sleep()
    assert await server.is_sleeping()
    assert server.engine.stops == 1
    assert server.state().state == "asleep"
    await server.check_health()
    with pytest.raises(OverloadedError, match="asleep") as caught:
        await texts(server.chat(ASK))
    assert caught.value.status == 503
    await server.wakeup()
    assert await texts(server.chat(ASK)) == "ab"
    assert server.state().state == "ready"


async def test_an_engine_that_can_sleep_is_asked_and_woken_even_after_an_unload(started):
    engine = Sleeping()
    engine.go_on.set()
    server = await started(engine)
    await server.sleep()
    assert engine.asleep
    assert engine.stops == 0
    await server.wakeup()
    assert not engine.asleep
    await server.sleep()
    await server.unload()
    await server.wakeup()
    assert engine.asleep  # a model that is not loaded is not loaded for this
    await server.start()
    assert not engine.asleep
    assert await texts(server.chat(ASK)) == "ab"


async def test_sleep_waits_for_those_under_way_and_can_be_called_off(started):
    server = await started()
    stream = await begun(server)
    sleeping = asyncio.create_task(server.sleep())
    await settle()
    assert server.state().state == "draining"
    await server.wakeup()
    await sleeping
    assert server.state().state == "ready"
    assert server.engine.stops == 0
    server.engine.go_on.set()
    assert (await stream)[-1].finish_reason == "stop"


async def test_held_requests_survive_a_sleep(started):
    server = await started()
    stream = await begun(server)
    await server.pause("keep")
    server.engine.go_on.set()
    await server.sleep()
    await server.wakeup()
    assert server.state().state == "paused"
    await server.resume()
    assert [delta.text for delta in await stream] == ["b"]


async def test_what_was_asked_of_a_cold_model_holds_when_it_loads():
    engine = Scripted()
    engine.go_on.set()
    server = LLMServer(config(), engine=engine, load_on_demand=True)
    await server.sleep()
    assert server.state().state == "asleep"
    with pytest.raises(OverloadedError):
        await texts(server.chat(ASK))
    assert engine.starts == 0
    await server.wakeup()
    assert (server.state().state, engine.starts) == ("cold", 0)
    await server.pause()
    waiting = asyncio.create_task(texts(server.chat(ASK)))
    await settle()
    assert server.state().state == "paused"
    assert engine.starts == 1
    assert not waiting.done()
    await server.resume()
    assert await waiting == "ab"
    await server.stop()


async def test_control_results_and_refusals(started):
    server = await started()
    assert await control_result(server, "r0", "pause", {"mode": "abort"}) == {
        "replica": "r0",
        "ok": True,
        "result": None,
    }
    assert (await control_result(server, "r0", "is_paused", {}))["result"] is True
    assert (await control_result(server, "r0", "reset_prefix_cache", {}))["ok"]
    for method, options, param in (
        ("pauze", {}, "method"),
        ("pause", {"mode": "soon"}, "options.mode"),
        ("sleep", {"levle": 2}, "options.levle"),
        ("stop", {}, "method"),
    ):
        with pytest.raises(RequestError) as caught:
            await control_result(server, "r0", method, options)
        assert caught.value.param == param
    server.lifecycle.engine.start_errors = [EngineStartError("gone")]
    await server.resume()
    await server.sleep()
    result = await control_result(server, "r0", "wakeup", {})
    assert result["ok"] is False
    assert result["error"]["type"] == "engine_start_failed"
    assert "gone" in result["error"]["message"]
