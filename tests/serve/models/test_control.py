"""Sleep and pause: what was asked for holds, whatever the engine can do itself."""

import asyncio

import pytest
from msgspec.structs import replace

from penstock.engines.supervisor import supervisor_of
from penstock.errors import EngineError, EngineStartError, RequestError, UnavailableError
from penstock.serve.models.control import control_result
from penstock.serve.models.server import LLMServer
from penstock.types import Usage
from scripted_server import ASK, Pausing, Scripted, Sleeping, begun, config, settle, texts


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
    (last,) = await stream
    assert (last.finish_reason, last.usage) == ("abort", Usage(completion_tokens=1))
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


async def test_what_a_pause_holds_ends_in_a_pause_that_waits(started):
    server = await started()
    stream = await begun(server)
    await server.pause("keep")
    server.engine.go_on.set()
    await settle()
    assert not stream.done()
    await server.pause("wait")
    assert (await stream)[-1].finish_reason == "stop"
    await server.sleep()
    assert server.supervisor.phase == "asleep"


async def test_a_model_whose_engine_does_not_resume_stays_paused(started):
    engine = Pausing()
    server = await started(engine)
    await server.pause("keep")
    engine.resume_errors = [EngineError("no")]
    with pytest.raises(EngineError, match="no"):
        await server.resume()
    waiting = asyncio.create_task(texts(server.chat(ASK)))
    await settle()
    assert (server.state().state, server.state().waiting) == ("paused", 1)
    engine.go_on.set()
    await server.resume()
    assert await waiting == "ab"


class SlowToResume(Pausing):
    def __init__(self):
        super().__init__()
        self.may_resume = asyncio.Event()

    async def resume(self):
        await self.may_resume.wait()
        await super().resume()


@pytest.mark.parametrize("fails", [False, True])
async def test_a_pause_that_comes_during_a_resume_holds(started, fails):
    engine = SlowToResume()
    server = await started(engine)
    await server.pause("keep")
    resuming = asyncio.create_task(server.resume())
    await settle()
    await server.pause("wait")
    if fails:
        engine.resume_errors = [EngineError("no")]
    engine.may_resume.set()
    await asyncio.wait([resuming])
    assert server.paused == "wait"
    waiting = asyncio.create_task(texts(server.chat(ASK)))
    await settle()
    assert not waiting.done()
    engine.go_on.set()
    await server.resume()
    assert await waiting == "ab"


async def test_a_second_resume_tries_again_what_the_first_could_not(started):
    engine = SlowToResume()
    engine.go_on.set()
    server = await started(engine)
    await server.pause("keep")
    engine.resume_errors = [EngineError("no")]
    resuming = [asyncio.create_task(server.resume()) for _ in "ab"]
    await settle()
    engine.may_resume.set()
    first, second = await asyncio.gather(*resuming, return_exceptions=True)
    assert (type(first), second, server.paused) == (EngineError, None, None)
    assert await texts(server.chat(ASK)) == "ab"


async def test_an_engine_that_can_pause_is_asked_and_a_new_one_is_told_again(started):
    engine = Pausing()
    server = await started(engine)
    await server.pause("keep")
    server.supervisor.revive(server.supervisor.generation)
    await server.supervisor.ready()
    assert engine.asked == ["keep", "keep"]
    waiting = asyncio.create_task(texts(server.chat(ASK)))
    await settle()
    assert server.state().state == "paused"
    assert not waiting.done()
    engine.go_on.set()
    await server.resume()
    assert await waiting == "ab"


@pytest.mark.parametrize("before", [True, False])
async def test_an_engine_that_dies_while_it_is_paused_does_not_keep_the_server_closed(
    started, before
):
    engine = Pausing()
    engine.go_on.set()
    server = await started(engine)
    if before:
        engine.kill()
    await server.pause("keep")
    engine.kill()
    waiting = asyncio.create_task(texts(server.chat(ASK)))
    await settle()
    assert not waiting.done()
    await server.resume()
    assert await waiting == "ab"
    assert engine.starts == 2


async def test_a_sleeping_model_refuses_until_it_is_woken(started):
    server = await started()
    server.engine.go_on.set()
    await server.sleep()
    assert await server.is_sleeping()
    assert server.engine.stops == 1
    assert server.state().state == "asleep"
    await server.check_health()
    with pytest.raises(UnavailableError, match="asleep") as caught:
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


@pytest.mark.parametrize(
    ("kind", "level", "frees"), [(Sleeping, 0, 0), (Sleeping, 1, 1), (Scripted, 0, 1)]
)
async def test_a_sleep_that_keeps_all_memory_gives_no_room(kind, level, frees):
    freed = []
    server = LLMServer(config(), engine=kind(), free_room=lambda: freed.append(1))
    await server.start()
    await server.sleep(level)
    assert len(freed) == frees
    await server.stop()


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


class SlowToSleep(Sleeping):
    def __init__(self):
        super().__init__()
        self.go_on.set()
        self.going, self.may_sleep = asyncio.Event(), asyncio.Event()
        self.errors: list[Exception] = []

    async def sleep(self, level=1):
        self.going.set()
        await self.may_sleep.wait()
        if self.errors:
            raise self.errors.pop()
        await super().sleep(level)


@pytest.mark.parametrize("fails", [False, True])
async def test_a_model_that_is_woken_while_it_goes_to_sleep_wakes(started, fails):
    engine = SlowToSleep()
    server = await started(engine)
    sleeping = asyncio.create_task(server.sleep())
    await engine.going.wait()
    if fails:
        engine.errors = [EngineError("no")]
    waking = asyncio.create_task(server.wakeup())
    await settle()
    engine.may_sleep.set()
    await waking
    assert [type(one) for one in await asyncio.gather(sleeping, return_exceptions=True)] == [
        EngineError if fails else type(None)
    ]
    assert (server.state().state, engine.asleep) == ("ready", False)
    assert await texts(server.chat(ASK)) == "ab"


async def test_a_sleep_that_fails_can_be_undone(started):
    engine = SlowToSleep()
    server = await started(engine)
    engine.may_sleep.set()
    engine.errors = [EngineError("no")]
    with pytest.raises(EngineError, match="no"):
        await server.sleep()
    assert server.state().state == "ready"
    await server.wakeup()
    assert await texts(server.chat(ASK)) == "ab"
    assert engine.starts == 1


@pytest.mark.parametrize("method", ["sleep", "unload_model"])
async def test_what_is_called_off_while_requests_end_leaves_the_model_ready(started, method):
    server = await started()
    stream = await begun(server)
    ending = asyncio.create_task(getattr(server, method)())
    await settle()
    ending.cancel()
    await asyncio.wait([ending])
    assert server.state().state == "ready"
    server.engine.go_on.set()
    assert await texts(server.chat(ASK)) == "ab"
    await stream


@pytest.mark.parametrize("cancelled", [(0,), (1,), (0, 1)])
async def test_a_sleep_that_is_cancelled_leaves_another_one_as_it_is(started, cancelled):
    server = await started()
    stream = await begun(server)
    sleeps = [asyncio.create_task(server.sleep()) for _ in "ab"]
    await settle()
    for number in cancelled:
        sleeps[number].cancel()
    await settle()
    both = len(cancelled) == 2
    assert server.state().state == ("ready" if both else "draining")
    server.engine.go_on.set()
    await stream
    await asyncio.wait(sleeps)
    assert server.state().state == ("ready" if both else "asleep")
    await server.wakeup()
    assert await texts(server.chat(ASK)) == "ab"


async def test_a_second_sleep_that_is_cancelled_does_not_wake_the_model(started):
    server = await started()
    await server.sleep()
    async with server.supervisor._changing:
        again = asyncio.create_task(server.sleep())
        await settle()
        again.cancel()
        await asyncio.wait([again])
    assert server.state().state == "asleep"
    with pytest.raises(UnavailableError):
        await texts(server.chat(ASK))


async def test_a_sleep_that_was_called_off_does_not_undo_a_later_one(started):
    server = await started()
    stream = await begun(server)
    first = asyncio.create_task(server.sleep())
    await settle()
    await server.wakeup()
    second = asyncio.create_task(server.sleep())
    await settle()
    first.cancel()
    await settle()
    assert server.state().state == "draining"
    server.engine.go_on.set()
    await stream
    await second
    assert server.state().state == "asleep"


async def test_a_sleep_while_it_loads_can_be_called_off():
    engine = Sleeping()
    engine.go_on.set()
    engine.may_start.clear()
    server = LLMServer(config(), engine=engine)
    starting = asyncio.create_task(server.start())
    await settle()
    sleeping = asyncio.create_task(server.sleep())
    await settle()
    await server.wakeup()
    engine.may_start.set()
    await asyncio.gather(starting, sleeping)
    assert (server.state().state, engine.asleep) == ("ready", False)
    assert await texts(server.chat(ASK)) == "ab"
    await server.stop()


async def test_a_model_does_not_sleep_while_a_job_uses_it(started):
    engine = Sleeping()
    server = await started(engine)
    stream = await begun(server)
    running = supervisor_of(engine).running()
    sleeping = asyncio.create_task(server.sleep())
    await settle()
    async with running:  # it comes while the sleep waits for a request
        engine.go_on.set()
        await stream
        await sleeping
        assert not engine.asleep
        await server.wakeup()
        with pytest.raises(RequestError, match="a job uses the engine of 'm'"):
            await server.sleep()
    await server.sleep()
    assert engine.asleep


async def test_a_model_sleeps_again_when_the_job_that_woke_it_has_ended(started):
    engine = Sleeping()
    server = await started(engine)
    stream = await begun(server)
    sleeping = asyncio.create_task(server.sleep())
    await settle()
    async with supervisor_of(engine).running():  # it comes while the sleep waits for a request
        engine.go_on.set()
        await stream
        await sleeping
        assert (server.state().state, engine.asleep) == ("asleep", False)
    assert engine.asleep
    async with supervisor_of(engine).running():
        assert not engine.asleep
    assert engine.asleep
    await server.wakeup()
    async with supervisor_of(engine).running():
        pass
    assert not engine.asleep


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
    with pytest.raises(UnavailableError):
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


async def test_a_model_that_is_paused_while_it_loads_is_known_to_be():
    engine = Scripted()
    engine.may_start.clear()
    server = LLMServer(config(), engine=engine, load_on_demand=True)
    starting = asyncio.create_task(server.start())
    await settle()
    await server.pause()
    state = replace(server.state(), on_demand=True)
    assert (state.state, state.is_paused, state.can_answer) == ("loading", True, False)
    await server.resume()
    state = replace(server.state(), on_demand=True)
    assert (state.state, state.is_paused, state.can_answer) == ("loading", False, True)
    engine.may_start.set()
    await starting
    await server.stop()


async def test_a_model_is_unloaded_when_its_requests_have_ended_and_loaded_again():
    engine = Scripted()
    server = LLMServer(config(), engine=engine, load_on_demand=True)
    await server.start()
    under_way = asyncio.create_task(texts(server.chat(ASK)))
    await settle()
    unloading = asyncio.create_task(server.unload_model())
    await settle()
    late = asyncio.create_task(texts(server.chat(ASK)))
    await settle()
    assert (engine.stops, unloading.done()) == (0, False)
    engine.go_on.set()
    assert await under_way == "ab"
    await unloading
    assert await late == "ab"  # it came meanwhile, and loads the model
    assert (engine.starts, engine.stops) == (2, 1)
    await server.unload_model()
    assert server.state().state == "cold"
    await server.load_model()
    assert (server.state().state, engine.starts) == ("ready", 3)
    await server.load_model()
    assert engine.starts == 3
    await server.stop()


async def test_what_is_held_or_asleep_is_neither_unloaded_nor_loaded(started):
    server = await started()
    await server.pause("keep")
    result = await control_result(server, "r0", "unload_model", {})
    assert (result["ok"], "resume it first" in result["error"]["message"]) == (False, True)
    await server.resume()
    await server.sleep()
    result = await control_result(server, "r0", "load_model", {})
    assert (result["ok"], "asleep" in result["error"]["message"]) == (False, True)


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
    server.supervisor.engine.start_errors = [EngineStartError("gone")]
    await server.resume()
    await server.sleep()
    result = await control_result(server, "r0", "wakeup", {})
    assert result["ok"] is False
    assert result["error"]["type"] == "engine_start_failed"
    assert "gone" in result["error"]["message"]
