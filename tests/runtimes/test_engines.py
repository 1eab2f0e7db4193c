"""Engines by name: made once, shared, and ended by their owner."""

from __future__ import annotations

import asyncio
import sys

import pytest

from penstock.batch import OpenVINOEngineProcessorConfig, build_processor
from penstock.engines.base import ENGINES
from penstock.engines.simulated import SimulatedEngine
from penstock.errors import ConfigError, EngineDeadError, ModelNotFoundError
from penstock.runtimes.engines import engines, stop_engines

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
    return build_processor(config, preprocess=lambda row: {"prompt": str(row["id"]), "sampling_params": params})


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
    with pytest.raises(ConfigError, match="'main' is an engine with another model or other options"):
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
