"""Engines by name: made once, shared, and ended by their owner."""

from __future__ import annotations

import asyncio
import sys

import pytest

import penstock
from penstock.batch import OpenVINOEngineProcessorConfig, build_processor
from penstock.engines.base import ENGINES
from penstock.engines.registry import engine_for, engines, stop_engines
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import ConfigError, EngineDeadError, ModelNotFoundError

made: list[Recorded] = []


class Recorded(SimulatedEngine):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.starts = 0
        made.append(self)

    async def start(self):
        self.starts += 1
        await super().start()


@pytest.fixture(autouse=True)
def recorded(monkeypatch):
    made.clear()
    monkeypatch.setitem(ENGINES, "openvino", f"{__name__}:Recorded")
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or __import__(__name__))


def processor(name, source="m", **options):
    config = OpenVINOEngineProcessorConfig(model_source=source, engine=name, **options)
    params = {"temperature": 0.0, "max_tokens": 8}
    return build_processor(
        config, preprocess=lambda row: {"prompt": str(row["id"]), "sampling_params": params}
    )


async def all_of(stream):
    return [row async for row in stream]


ROWS = [{"id": n} for n in range(10)]


async def test_processors_that_name_the_same_engine_share_it():
    await all_of(processor("main")(ROWS))
    await all_of(processor("main")(ROWS))
    (engine,) = made
    assert engine.starts == 1
    assert engine.requests_served == 20
    await engine.check_health()
    assert list(engines()) == ["main"]
    await engines().stop()
    with pytest.raises(EngineDeadError):
        await engine.check_health()
    assert list(engines()) == []


async def test_a_processor_without_a_name_has_an_engine_of_its_own():
    await all_of(processor(None)(ROWS))
    await all_of(processor(None)(ROWS))
    assert len(made) == 2
    for engine in made:
        with pytest.raises(EngineDeadError):
            await engine.check_health()
    assert list(engines()) == []


async def test_concurrency_is_so_many_engines():
    await all_of(processor(None, concurrency=2)(ROWS))
    assert sorted(engine.requests_served for engine in made) == [5, 5]


async def test_a_name_stands_for_one_engine_only():
    await all_of(processor("main")(ROWS[:1]))
    with pytest.raises(
        ConfigError, match="'main' is an engine with another model or other options"
    ):
        await all_of(processor("main", "other")(ROWS[:1]))
    with pytest.raises(ConfigError, match="other options"):
        await all_of(processor("main", engine_kwargs={"seed": 1})(ROWS[:1]))
    await engines().stop()


async def test_an_engine_that_its_owner_named():
    engine = SimulatedEngine()
    await engine.start()
    engines().put("mine", engine)
    assert engines().get("mine") is engine
    await all_of(processor("mine", None)(ROWS))
    assert engine.requests_served == 10
    await engines().stop()
    await engine.check_health()  # it is the owner's
    with pytest.raises(ConfigError, match="taken"):
        engines().put("mine", SimulatedEngine())
    engines().remove("mine")
    with pytest.raises(ModelNotFoundError, match="there is no engine 'mine'"):
        engines().get("mine")
    await engine.stop()


def test_work_without_an_event_loop_shares_engines_too():
    processor("main")(ROWS).take_all()
    processor("main")(ROWS).take(1)
    (engine,) = made
    assert engine.starts == 1
    stop_engines()
    with pytest.raises(EngineDeadError):
        asyncio.run(engine.check_health())


def test_jobs_share_engines_with_each_other_and_with_loops():
    for _ in range(2):
        assert penstock.run(ROWS, processor=processor("main"), progress=False).counts.ok == 10
    processor("main")(ROWS).take_all()
    (engine,) = made
    assert (engine.starts, engine.requests_served) == (1, 30)
    stop_engines()
    assert not engine._alive


def test_a_named_engine_ends_with_its_event_loop():
    async def once():
        await all_of(processor("main")(ROWS))
        await made[-1].check_health()  # it stays as long as that

    for _ in range(2):
        asyncio.run(once())
    assert [engine._alive for engine in made] == [False, False]


async def test_options_of_an_engine_that_is_only_looked_up():
    with pytest.raises(
        ConfigError, match="engine_kwargs: say in model_source of which model 'main' is made"
    ):
        processor("main", None, engine_kwargs={"seed": 1})


def test_an_engine_that_runs_in_another_event_loop():
    engine = SimulatedEngine()
    asyncio.run(engine.start())
    rows = processor(engine, None)(ROWS)
    with pytest.raises(ConfigError, match="runs in another event loop"):
        asyncio.run(all_of(rows))
    with pytest.raises(ConfigError, match="runs in another event loop"):
        rows.take_all()
    asyncio.run(engine.stop())
    assert len(rows.take_all()) == 10


async def test_an_engine_that_another_event_loop_uses():
    engine = Recorded("m")  # nobody has started it: it would be by each
    rows = aiter(processor(engine, None)(ROWS))
    await anext(rows)
    with pytest.raises(ConfigError, match="runs in another event loop"):
        await asyncio.to_thread(processor(engine, None)(ROWS).take_all)
    await rows.aclose()
    assert engine.starts == 1
    assert not engine._alive


async def test_who_comes_while_an_engine_is_being_stopped_finds_it_started_again():
    stopping, go_on = asyncio.Event(), asyncio.Event()

    class Slow(Recorded):
        async def stop(self):
            stopping.set()
            await go_on.wait()
            await super().stop()

    engine = Slow("m")
    first = asyncio.create_task(all_of(processor(engine, None)(ROWS)))
    await stopping.wait()
    second = asyncio.create_task(all_of(processor(engine, None)(ROWS)))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not second.done()
    go_on.set()
    assert len(await first) == len(await second) == 10
    assert engine.starts == 2
    assert not engine._alive


async def test_each_event_loop_has_one_engine_of_a_processor():
    """Also where a stage beside that of the engine uses it."""
    both = processor(None, tokenize_stage={})
    rows = aiter(both(ROWS))
    await anext(rows)
    assert len(await asyncio.to_thread(both(ROWS).take_all)) == 10
    await rows.aclose()
    assert len(made) == 2


@pytest.mark.parametrize("model", ["", " "])
def test_a_model_without_a_name_is_not_the_default_one(model):
    with pytest.raises(ConfigError, match="model: is empty"):
        engine_for(model, None, None)
