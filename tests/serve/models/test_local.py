"""Models in this process: loaded on demand, unloaded when idle, within a memory budget."""

import asyncio
from typing import Any, ClassVar

import msgspec
import pytest

from penstock.engines.base import engine_class
from penstock.engines.openvino.logits.second_copy import SecondCopy
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import (
    ConfigError,
    EngineStartError,
    OverloadedError,
    RequestError,
    UnavailableError,
)
from penstock.llm_config import LLMConfig
from penstock.serve.config.serving_args import read_args
from penstock.serve.models.local import build_local_handles
from penstock.serve.models.server import LLMServer
from penstock.types import ChatRequest, CompletionRequest, Sampling

ASK = ChatRequest([{"role": "user", "content": "Hello"}], Sampling(temperature=0.0))


class Watched(SimulatedEngine):
    """Fails to load what is called "broken"; counts what is in memory."""

    loaded: ClassVar[set[str]] = set()
    order: ClassVar[list[str]] = []

    async def start(self):
        if self.model_source == "broken":
            raise EngineStartError("no such file")
        await super().start()
        self.loaded.add(self.model_source)
        self.order.append(self.model_source)

    async def stop(self):
        await super().stop()
        self.loaded.discard(self.model_source)


@pytest.fixture(autouse=True)
def watched(monkeypatch):
    monkeypatch.setattr(
        "penstock.serve.models.server.engine_class",
        lambda name: Watched if name == "simulated" else engine_class(name),
    )
    Watched.loaded, Watched.order = set(), []


def config(name, *, scaling=None, memory=None, **deployment):
    options: dict[str, Any] = {
        "autoscaling_config": scaling if scaling is not None else {"min_replicas": 0},
        **deployment,
    }
    if memory:
        options["ray_actor_options"] = {"memory": memory}
    return LLMConfig.from_dict(
        {
            "model_loading_config": {"model_id": name},
            "llm_engine": "simulated",
            "deployment_config": options,
        }
    )


@pytest.fixture
async def build():
    """Builds handles, and sees to it that stopping them leaves nothing behind."""
    built: list[Any] = []

    def make(*configs, **options):
        handles = build_local_handles(configs, **options)
        built.extend(handles.values())
        return handles

    yield make
    for handle in built:
        await handle.stop(0)
    await settle()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert Watched.loaded == set()


async def settle():
    for _ in range(30):
        await asyncio.sleep(0)


async def until_it_waits_for_room(budget):
    while (  # noqa: ASYNC110 - nothing tells of it
        budget._changed.is_set() or not budget._acquiring.locked()
    ):
        await asyncio.sleep(0)


async def ask(handle: Any) -> str:
    return "".join([delta.text async for delta in handle.chat(ASK)])


def states(handles):
    return {name: handle.state().state for name, handle in handles.items()}


async def test_nothing_is_loaded_until_it_is_asked_for(build):
    handles = build(*(config(name) for name in "abc"))
    for handle in handles.values():
        await handle.start()
    assert states(handles) == {"a": "cold", "b": "cold", "c": "cold"}
    assert await handles["b"].adapters() == []
    assert handles["b"].card().id == "b"
    assert handles["b"].engine_name == "simulated"
    assert await ask(handles["b"])
    assert states(handles) == {"a": "cold", "b": "ready", "c": "cold"}
    assert Watched.loaded == {"b"}


@pytest.mark.parametrize(
    "scaling", [{}, {"min_replicas": 1}, {"min_replicas": 0, "initial_replicas": 1}]
)
async def test_some_are_loaded_at_the_start(build, scaling):
    handle = build(config("a", scaling=scaling))["a"]
    await handle.start()
    assert handle.state().state == "ready"


async def test_a_broken_model_says_why_and_harms_no_other(build):
    handles = build(config("a"), config("broken"), config("c"))
    results = await asyncio.gather(
        *(ask(handle) for handle in handles.values()), return_exceptions=True
    )
    assert isinstance(results[1], EngineStartError)
    assert results[1].status == 503
    assert results[0]
    assert results[2]
    assert states(handles) == {"a": "ready", "broken": "failed", "c": "ready"}
    assert "no such file" in handles["broken"].state().reason
    with pytest.raises(EngineStartError):
        await handles["broken"].server.check_health()


async def test_an_idle_model_is_unloaded_and_comes_back(build):
    handle = build(config("a", scaling={"min_replicas": 0, "downscale_delay_s": 0}))["a"]
    first = await ask(handle)
    while handle._unloading is None:  # noqa: ASYNC110 - nothing tells of the timer, which is due
        await asyncio.sleep(0)
    await handle._unloading
    assert handle.state().state == "cold"
    assert await ask(handle) == first
    assert Watched.order == ["a", "a"]


async def test_a_request_that_comes_with_the_timer_is_answered(build):
    handle = build(config("a", scaling={"min_replicas": 0, "downscale_delay_s": 100}))["a"]
    first = await ask(handle)
    handle._timer.cancel()
    handle._idle_since -= 100
    asking = asyncio.create_task(ask(handle))  # it runs before the task that unloads
    handle._look()
    assert await asking == first
    await handle._unloading
    assert handle.state().state == "ready"
    assert handle._timer is not None
    assert Watched.order == ["a"]


async def test_the_delay_counts_from_the_last_request(build, monkeypatch):
    handle = build(
        config(
            "a",
            scaling={"min_replicas": 0, "downscale_to_zero_delay_s": 100, "downscale_delay_s": 7},
        )
    )["a"]
    await ask(handle)
    timers: list[float] = []
    now = asyncio.get_running_loop().time()
    handle._timer.cancel()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "call_later", lambda delay, call: timers.append(delay))
    monkeypatch.setattr(loop, "time", lambda: now + 60)
    handle._idle_since = now + 30  # the last request ended 30 s after the timer was set
    handle._look()
    assert timers == pytest.approx([70])
    assert handle.state().state == "ready"
    monkeypatch.setattr(loop, "time", lambda: now + 131)
    handle._look()
    monkeypatch.undo()
    await settle()
    assert handle.state().state == "cold"


async def test_a_model_that_stays_is_not_unloaded(build):
    handle = build(config("a", scaling={"min_replicas": 1, "downscale_delay_s": 0}))["a"]
    await ask(handle)
    assert handle._timer is None
    assert handle.idle_since is None
    assert handle.state().state == "ready"


async def test_a_request_in_the_middle_of_an_unload_loads_again(build):
    handle = build(config("a"))["a"]
    first = await ask(handle)
    unloading = asyncio.create_task(handle.unload())
    asking = asyncio.create_task(ask(handle))
    await unloading
    assert await asking == first
    assert handle.state().state == "ready"


async def test_the_least_recently_used_idle_model_makes_room(build):
    handles = build(*(config(name, memory=40) for name in "abc"), memory_budget_bytes=100)
    await ask(handles["a"])
    await ask(handles["b"])
    await ask(handles["a"])
    handles["a"]._idle_since += 1  # clocks may be too coarse to tell
    await ask(handles["c"])
    assert Watched.loaded == {"a", "c"}
    assert states(handles) == {"a": "ready", "b": "cold", "c": "ready"}


async def test_a_busy_model_makes_no_room_until_it_is_idle(build):
    handles = build(*(config(name, memory=60) for name in "ab"), memory_budget_bytes=100)
    busy = handles["a"].chat(ASK)
    await anext(busy)
    waiting = asyncio.create_task(ask(handles["b"]))
    await until_it_waits_for_room(handles["a"]._budget)
    assert states(handles) == {"a": "ready", "b": "loading"}
    assert Watched.loaded == {"a"}
    await busy.aclose()
    assert await waiting
    assert states(handles) == {"a": "cold", "b": "ready"}


async def test_what_cannot_fit_fails_alone(build):
    handles = build(config("a", memory=40), config("huge", memory=1 << 40), memory_budget_bytes=100)
    await ask(handles["a"])
    with pytest.raises(EngineStartError, match="memory budget"):
        await ask(handles["huge"])
    assert states(handles) == {"a": "ready", "huge": "failed"}


async def test_models_that_take_each_others_room_all_answer(build):
    handles = build(*(config(name, memory=60) for name in "abcd"), memory_budget_bytes=100)
    answers = await asyncio.gather(*(ask(handles[name]) for name in "abcd" * 5))
    assert all(answers)
    assert len(Watched.loaded) == 1


async def test_a_sleeping_model_takes_no_memory_and_its_state_is_its_own(build):
    handles = build(*(config(name, memory=60) for name in "ab"), memory_budget_bytes=100)
    await ask(handles["a"])
    assert await handles["a"].control("sleep", {}) == [
        {"replica": "local-0", "ok": True, "result": None}
    ]
    assert await ask(handles["b"])
    assert states(handles) == {"a": "asleep", "b": "ready"}
    with pytest.raises(UnavailableError):
        await ask(handles["a"])
    await handles["a"].control("wakeup", {})
    assert await ask(handles["a"])
    assert states(handles) == {"a": "ready", "b": "cold"}


async def test_a_stop_while_it_loads_or_after_it_stopped_is_harmless(build):
    handle = build(config("a"))["a"]
    asking = asyncio.create_task(ask(handle))
    await asyncio.sleep(0)
    await handle.stop(0)
    with pytest.raises(UnavailableError):
        await asking
    await handle.stop(0)


async def test_everything_is_checked_before_anything_is_loaded():
    good = config("a")
    with pytest.raises(ConfigError, match="two models are called 'a'"):
        build_local_handles([good, good])
    wrong = config("b").model_copy(update={"engine_kwargs": {"stepps": 1}})
    with pytest.raises(ConfigError, match=r"model 'b'.*unknown key 'stepps'"):
        build_local_handles([good, wrong])
    with pytest.raises(ConfigError, match="server_cls"):
        build_local_handles(
            [LLMConfig.from_dict({**_fields(good), "server_cls": "penstock.errors:ConfigError"})]
        )
    assert Watched.loaded == set()


class OtherServer(LLMServer):
    pass


async def test_the_server_class_may_be_another(build):
    handle = build(LLMConfig.from_dict({**_fields(config("a")), "server_cls": OtherServer}))["a"]
    assert type(handle.server) is OtherServer


async def test_a_server_of_a_users_own_judges_its_requests_itself(build):
    given = {**_fields(config("a")), "server_cls": OtherServer}
    beyond = CompletionRequest([1 << 40])
    await build(LLMConfig.from_dict(given))["a"].check_before_load("completions", beyond)
    with pytest.raises(RequestError, match="token ids"):
        await build(config("b"))["b"].check_before_load("completions", beyond)


def _fields(one):
    return {
        name: getattr(one, name)
        for name in ("model_loading_config", "llm_engine", "deployment_config")
    }


async def test_a_request_in_the_turn_of_the_timer_is_answered(build):
    handle = build(config("a", scaling={"min_replicas": 0, "downscale_delay_s": 100}))["a"]
    await handle.server.start()
    stream = handle.chat(ASK)
    first = asyncio.create_task(anext(stream))
    handle._idle_delay_s = 0.0
    handle._look()
    assert await first
    assert [delta async for delta in stream]
    assert handle.state().loads == 1


async def test_a_request_does_not_wait_for_memory_that_waits_for_its_end(build, monkeypatch):
    class Copying(Watched):
        """Has a copy beside it, for which a request makes room."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.beside = SecondCopy(self.give_back)

        async def give_back(self):
            pass

    monkeypatch.setattr("penstock.serve.models.server.engine_class", lambda name: Copying)
    monkeypatch.setattr("penstock.serve.models.local.copy_estimate", lambda config: 40)
    handles = build(*(config(name, memory=60) for name in "abc"), memory_budget_bytes=120)
    copy = handles["a"].server.engine.beside
    await ask(handles["c"])
    busy = handles["a"].chat(ASK)
    await anext(busy)
    async with copy.used():  # another model that is idle makes room
        assert states(handles) == {"a": "ready", "b": "cold", "c": "cold"}
    await copy.unload()
    other = handles["c"].chat(ASK)
    await anext(other)
    waiting = asyncio.create_task(ask(handles["b"]))
    await until_it_waits_for_room(handles["a"]._budget)
    with pytest.raises(OverloadedError, match="'a' needs about 0 MiB more for this request"):
        async with copy.used():
            pass
    await busy.aclose()
    assert await waiting
    await other.aclose()


async def test_a_request_waits_for_memory_that_is_about_to_be_free(build, monkeypatch):
    ends = asyncio.Event()

    class Slow(Watched):
        """Takes its time to stop."""

        async def stop(self):
            await ends.wait()
            await super().stop()

    monkeypatch.setattr("penstock.serve.models.server.engine_class", lambda name: Slow)
    handles = build(*(config(name, memory=60) for name in "ab"), memory_budget_bytes=120)
    budget = handles["a"]._budget
    for handle in handles.values():
        await ask(handle)
    busy = handles["a"].chat(ASK)
    await anext(busy)
    leaving = asyncio.create_task(handles["b"].unload())
    await settle()
    beside = SecondCopy(settle)
    making = asyncio.create_task(budget.make_room(beside, 40))
    await settle()
    found = (states(handles)["b"], making.done())
    ends.set()
    assert found == ("cold", False)
    assert await making
    budget.release(beside)
    await leaving
    await busy.aclose()


def test_what_one_process_cannot_honour_of_a_prefill_side_is_named(caplog):
    side = {
        "model_loading_config": {"model_id": "m", "model_source": "simulated"},
        "llm_engine": "simulated",
        "engine_kwargs": {"kv_transfer_config": {"kv_connector": "SimulatedConnector"}},
    }
    wide = {**side, "deployment_config": {"num_replicas": 3}}
    build_local_handles(read_args({"prefill_config": wide, "decode_config": side}).llm_configs)
    (record,) = caplog.records
    assert (
        record.getMessage()
        == "the prefill side of model 'm': the local runtime parts CPU cores and nothing else; it"
        " passes over deployment_config.num_replicas (3)"
    )


def test_what_one_process_cannot_honour_is_named(caplog):
    build_local_handles([config("plain", num_replicas=1, max_ongoing_requests=5)])
    assert not caplog.records
    wide = {"min_replicas": 2, "max_replicas": 4, "upscale_delay_s": 1}
    given = config("wide", scaling=wide, health_check_period_s=3, max_ongoing_requests=5)
    build_local_handles([LLMConfig(**{**msgspec.structs.asdict(given), "accelerator_type": "L4"})])
    (record,) = caplog.records
    assert (
        record.getMessage()
        == "model 'wide': the local runtime parts CPU cores and nothing else; it passes over"
        " accelerator_type, deployment_config.health_check_period_s,"
        " deployment_config.autoscaling_config.max_replicas (4)"
    )


async def test_the_start_says_which_engine_and_why(caplog):
    caplog.set_level("INFO")
    build_local_handles([LLMConfig.from_dict({"model_loading_config": {"model_id": "demo"}})])
    assert "model 'demo' runs on openvino: nothing in the configuration asks" in caplog.text
