"""One supervisor an engine: its users, its owner, and what both know of its deaths."""

import asyncio
import threading

import fsspec
import pytest

import penstock
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.engines.supervisor import Policy, Supervisor, supervisor_of
from penstock.errors import (
    EngineDeadError,
    EngineError,
    EngineStartError,
    ModelNotFoundError,
    RequestError,
    UnavailableError,
)
from penstock.serve.models.local import LocalModel
from penstock.serve.models.server import LLMServer
from scripted_server import ASK, config, settle, texts


class Counted(SimulatedEngine):
    """Counts its starts, which fail as the test says."""

    def __init__(self, **options):
        super().__init__(engine_kwargs=options)
        self.starts = 0
        self.failures = []
        self.may_start = asyncio.Event()
        self.may_start.set()

    async def start(self):
        self.starts += 1
        await self.may_start.wait()
        if self.failures:
            raise self.failures.pop(0)
        await super().start()


async def asked(supervisor, key, *, again=True, dies=0):
    """One request, whose engine dies at its first tries."""
    deaths = dies
    with supervisor.quarantine.visit(key.encode, lambda: again) as visit:
        while not visit.answered:
            async with visit:
                await supervisor.engine.check_health()
                if deaths:
                    deaths -= 1
                    supervisor.engine._die("killed")
                    raise EngineDeadError("killed")
                return key


async def test_users_share_what_the_first_of_them_starts_and_the_last_ends():
    engine = Counted()
    one = supervisor_of(engine)
    async with one.running():
        async with supervisor_of(engine).running():
            assert supervisor_of(engine) is one
        await engine.check_health()
    assert (engine.starts, engine._alive, one.phase) == (1, False, "cold")
    assert engine.supervisor is None
    assert supervisor_of(engine) is not one  # the next job begins anew, with no suspects


async def test_two_that_come_while_it_loads_wait_for_one_start():
    engine = Counted()
    engine.may_start.clear()

    async def use():
        async with supervisor_of(engine).running():
            await settle()

    users = [asyncio.create_task(use()) for _ in range(2)]
    await settle()
    engine.may_start.set()
    await asyncio.gather(*users)
    assert (engine.starts, engine._alive) == (1, False)


async def test_a_user_that_leaves_while_it_loads_leaves_nothing_behind():
    engine = Counted()
    engine.may_start.clear()

    async def use():
        async with supervisor_of(engine).running():
            pass

    user = asyncio.create_task(use())
    await settle()
    user.cancel()
    with pytest.raises(asyncio.CancelledError):
        await user
    assert not engine._alive
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_what_keeps_an_engine_from_starting_is_raised_as_it_is_and_tried_again():
    engine = Counted()
    engine.failures = [ValueError("odd")]
    with pytest.raises(ValueError, match="odd"):
        async with supervisor_of(engine).running():
            pass
    async with supervisor_of(engine).running():
        assert engine.starts == 2


async def test_a_start_that_is_cancelled_from_within_holds_nobody_up():
    engine = Counted()
    engine.failures = [asyncio.CancelledError()]
    with pytest.raises(EngineStartError, match="cancelled from within"):
        async with supervisor_of(engine).running():
            pass


async def test_a_start_that_is_cancelled_from_within_gives_its_memory_back():
    engine, room = Counted(), []

    async def make_room():
        room.append("made")

    engine.failures = [asyncio.CancelledError()]
    server = LLMServer(
        config(), engine=engine, load_on_demand=True, make_room=make_room, free_room=room.clear
    )
    with pytest.raises(EngineStartError, match="cancelled from within"):
        await texts(server.chat(ASK))
    assert (server.state().state, room) == ("failed", [])
    await server.stop()


async def test_a_user_that_comes_while_another_leaves_keeps_the_engine_no_longer_than_itself(
    monkeypatch,
):
    engine = Counted()
    checking, go_on = asyncio.Event(), asyncio.Event()
    check_health = engine.check_health

    async def slow():
        checking.set()
        await go_on.wait()
        await check_health()

    first = supervisor_of(engine).running()
    await first.__aenter__()
    monkeypatch.setattr(engine, "check_health", slow)
    second = supervisor_of(engine).running()
    coming = asyncio.create_task(second.__aenter__())
    await checking.wait()
    leaving = asyncio.create_task(first.__aexit__(None, None, None))
    await settle()
    go_on.set()
    await asyncio.gather(coming, leaving)
    assert engine._alive
    await second.__aexit__(None, None, None)
    assert (engine.starts, engine._alive) == (1, False)


async def test_a_dead_engine_is_started_once_for_all_its_requests():
    engine = Counted()
    supervisor = supervisor_of(engine)
    async with supervisor.running():
        assert await asyncio.gather(
            *(asked(supervisor, str(n), dies=n == 3) for n in range(8))
        ) == list("01234567")
        assert (engine.starts, supervisor.restarts, supervisor.generation) == (2, 1, 2)
        assert not supervisor.quarantine.troubled


async def test_a_request_that_would_not_be_asked_again_starts_no_engine_but_its_owners():
    for owned, starts in ((False, 1), (True, 2)):
        engine = Counted()
        supervisor = Supervisor(engine, Policy())
        if owned:
            supervisor.load()
        async with supervisor.running():
            with pytest.raises(EngineDeadError):
                await asked(supervisor, "a", again=False, dies=1)
            if owned:
                await supervisor.ready()
            assert engine.starts == starts
        await supervisor.unload()
        assert not engine._alive


@pytest.mark.parametrize(("retries", "starts"), [(False, 2), (True, 4)])
async def test_a_restart_that_fails_counts_as_a_death_or_ends_it(retries, starts):
    engine = Counted()
    supervisor = Supervisor(engine, Policy(start_retries=retries))
    async with supervisor.running():
        engine.failures = [EngineError("out of memory")] * 5
        with pytest.raises(EngineStartError, match="cannot serve 'simulated': out of memory"):
            await asked(supervisor, "a", dies=1)
        assert (engine.starts, supervisor.phase) == (starts, "failed")
        engine.failures = []
    assert not engine._alive


# Adapters
async def test_an_adapter_of_a_name_that_the_engine_has_from_elsewhere_is_refused(tmp_path):
    for place in (tmp_path / "a", tmp_path / "b"):
        place.mkdir()
    here, there = str(tmp_path / "a"), str(tmp_path / "b")
    engine, loads = Counted(), []
    resolve_lora = engine.resolve_lora

    async def resolved(name, path):
        loads.append(path)
        await settle()
        await resolve_lora(name, path)

    engine.resolve_lora = resolved  # type: ignore[method-assign]
    supervisor = supervisor_of(engine)
    async with supervisor.running():
        rows = (supervisor.adapter("style", place) for place in (here, there, f"{here}/.", here))
        first, other, *same = await asyncio.gather(*rows, return_exceptions=True)
        assert (first, same) == (None, [None, None])
        assert isinstance(other, RequestError)
        assert there in str(other)
        await supervisor.adapter("style")
        assert loads == [here]


async def test_an_adapter_that_comes_later_is_found_then(tmp_path):
    supervisor = supervisor_of(Counted())
    async with supervisor.running():
        with pytest.raises(ModelNotFoundError):
            await supervisor.adapter("style", str(tmp_path / "style"))
        (tmp_path / "style").mkdir()
        await supervisor.adapter("style", str(tmp_path / "style"))
        assert "style" in supervisor.engine.adapters


async def test_an_adapter_of_a_bucket_is_copied_once(tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path))
    files = fsspec.filesystem("memory")
    files.pipe("/rows/style/adapter_config.json", b"{}")
    supervisor = supervisor_of(Counted())
    async with supervisor.running():
        await asyncio.gather(*(supervisor.adapter("style", "memory://rows/style") for _ in "ab"))
        (copied,) = (tmp_path / "models").glob("style-*/adapter_config.json")
        assert supervisor.engine.adapters == {"style": str(copied.parent)}
        for _ in "ab":  # what failed is looked for again
            with pytest.raises(ModelNotFoundError, match="no files at 'memory://rows/absent'"):
                await supervisor.adapter("absent", "memory://rows/absent")
    files.rm("/rows", recursive=True)


async def test_an_adapter_whose_bucket_is_slow_keeps_no_other_waiting(tmp_path, monkeypatch):
    arrives = threading.Event()

    def slow(name, url):
        arrives.wait()
        return str(tmp_path)

    monkeypatch.setattr("penstock.engines.supervisor.local_adapter", slow)
    supervisor = supervisor_of(Counted())
    async with supervisor.running():
        far = asyncio.create_task(supervisor.adapter("far", "memory://rows/far"))
        try:
            await settle()
            await asyncio.wait_for(supervisor.adapter("near", str(tmp_path)), 5)
            assert list(supervisor.engine.adapters) == ["near"]
        finally:
            arrives.set()
        await far
        assert list(supervisor.engine.adapters) == ["near", "far"]


# A server's engine
async def test_a_job_on_a_served_engine_shares_its_supervisor():
    engine = Counted(die_on="fatal")
    server = LLMServer(config(), engine=engine)
    await server.start()
    rows = [{"text": "fatal" if number == 7 else f"text {number}"} for number in range(20)]
    result = await penstock.arun(rows, engine=engine, prompt="{text}", progress=False)
    assert (result.counts.ok, result.counts.failed) == (19, 1)
    assert engine.starts > 1
    assert server.state().restarts == engine.starts - 1  # nobody else has started it
    assert await texts(server.chat(ASK))
    await server.stop()


async def test_an_engine_that_a_job_uses_is_not_unloaded_when_its_server_is_idle():
    scaling = {"autoscaling_config": {"min_replicas": 0, "downscale_delay_s": 0}}
    engine = Counted()
    model = LocalModel(config(deployment_config=scaling), engine=engine)
    await model.server.start()
    async with supervisor_of(engine).running():
        assert model.idle_since is None
        await settle()
        await engine.check_health()
    while model.state().state != "cold":  # noqa: ASYNC110 - its timer goes off now
        await asyncio.sleep(0)
    await model.stop()
    assert not engine._alive


async def test_an_engine_whose_server_stops_ends_with_its_last_user():
    engine = Counted()
    server = LLMServer(config(), engine=engine)
    await server.start()
    async with supervisor_of(engine).running():
        await server.stop()
        await engine.check_health()
    assert not engine._alive
    assert engine.supervisor is None


async def test_an_engine_that_a_job_holds_gets_no_second_supervisor():
    engine = Counted()
    async with supervisor_of(engine).running():
        server = LLMServer(config(), engine=engine, load_on_demand=True)
        for use in (server.start(), texts(server.chat(ASK))):
            with pytest.raises(UnavailableError, match="a job or another server holds the engine"):
                await use
    await server.start()
    with pytest.raises(UnavailableError):
        await LLMServer(config(), engine=engine).start()
    assert engine.supervisor is server.supervisor
    await server.stop()


@pytest.mark.parametrize("by_hand", [False, True])
async def test_a_server_takes_an_engine_back_that_it_unloaded_under_a_job(by_hand):
    engine = Counted()
    server = LLMServer(config(), engine=engine, load_on_demand=not by_hand)
    await server.start()
    async with supervisor_of(engine).running():
        await server.unload_model()
        await engine.check_health()
        if by_hand:
            with pytest.raises(EngineDeadError, match="is not loaded"):
                await texts(server.chat(ASK))
            await server.load_model()
        assert await texts(server.chat(ASK))
    assert await texts(server.chat(ASK))
    assert engine.starts == 1
    await server.stop()
    assert not engine._alive


async def test_an_unload_does_not_stop_what_is_loaded_after_it():
    engine, stopping = Counted(), asyncio.Event()
    room = []

    async def slow_to_end():
        try:
            await asyncio.Event().wait()
        finally:
            await stopping.wait()

    async def make_room():
        room.append("made")

    supervisor = Supervisor(engine, Policy(make_room=make_room, free_room=room.clear))
    engine.may_start.wait = slow_to_end  # type: ignore[method-assign]
    supervisor.load()
    await settle()
    unloading = asyncio.create_task(supervisor.unload())
    await settle()
    engine.may_start = asyncio.Event()
    engine.may_start.set()
    supervisor.load()
    stopping.set()
    await unloading
    await supervisor.ready()
    assert (engine._alive, supervisor.phase, bool(room)) == (True, "ready", True)
    await supervisor.unload()
    assert (engine._alive, supervisor.phase, room) == (False, "cold", [])


async def test_a_new_engine_is_probed_before_it_is_as_it_was():
    order = []

    class Noted(Counted):
        def generate(self, request):
            order.append("probe")
            return super().generate(request)

    async def restore():  # such as a pause, in which no probe would be answered
        order.append("restore")

    supervisor = Supervisor(Noted(), Policy(probe_after=0, restore=restore))
    supervisor.load()
    await supervisor.ready()
    await asked(supervisor, "a", dies=1)
    assert order == ["restore", "probe", "restore"]
    await supervisor.unload()
