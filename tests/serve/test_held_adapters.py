"""The adapters that an engine holds: loaded once, so many at most, and dropped."""

import asyncio

import pytest

from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import EngineError, ModelNotFoundError
from penstock.serve.adapters import Adapters, AdapterVersion


class Counting(SimulatedEngine):
    def __init__(self):
        super().__init__(engine_kwargs={})
        self.loads: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failures: list[Exception] = []
        self.removals: list[Exception] = []
        self.may_remove = asyncio.Event()
        self.may_remove.set()

    async def remove_lora(self, name):
        await self.may_remove.wait()
        if self.removals:
            raise self.removals.pop()
        await super().remove_lora(name)

    async def resolve_lora(self, name, path):
        self.loads.append(name)
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop()
        await super().resolve_lora(name, path)


def version(name, digest="1"):
    return AdapterVersion(name, digest, f"/{name}/{digest}")


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)


async def use(adapters, wanted, until=None):
    async with adapters.use(wanted):
        if until is not None:
            await until.wait()
    return wanted.loaded_as


async def test_first_requests_at_once_load_once():
    engine = Counting()
    engine.gate.clear()
    adapters = Adapters(engine, 4)
    users = [asyncio.create_task(use(adapters, version("a"))) for _ in range(5)]
    await settle()
    engine.gate.set()
    assert await asyncio.gather(*users) == ["a@1"] * 5
    assert engine.loads == ["a@1"]


async def test_the_least_recently_used_leaves():
    engine = Counting()
    adapters = Adapters(engine, 2)
    for name in ("a", "b", "a", "c"):
        await use(adapters, version(name))
    assert adapters.names == sorted(engine.adapters) == ["a@1", "c@1"]


async def test_one_in_use_never_leaves():
    engine = Counting()
    adapters, done = Adapters(engine, 1), asyncio.Event()
    user = asyncio.create_task(use(adapters, version("a"), done))
    await settle()
    waiting = asyncio.create_task(use(adapters, version("b")))
    await settle()
    assert list(engine.adapters) == ["a@1"]
    assert not waiting.done()
    done.set()
    await asyncio.gather(user, waiting)
    assert list(engine.adapters) == ["b@1"]


async def test_a_busy_adapter_does_not_keep_another_out():
    engine = Counting()
    adapters, first_leaves, others_leave = Adapters(engine, 1), asyncio.Event(), asyncio.Event()
    first = asyncio.create_task(use(adapters, version("a"), first_leaves))
    await settle()
    other = asyncio.create_task(use(adapters, version("b")))
    await settle()
    later = [asyncio.create_task(use(adapters, version("a"), others_leave)) for _ in range(3)]
    await settle()
    first_leaves.set()
    # Though there were users of a all the time.
    assert list(await asyncio.gather(first, other)) == ["a@1", "b@1"]
    others_leave.set()
    assert await asyncio.gather(*later) == ["a@1"] * 3
    assert engine.loads == ["a@1", "b@1", "a@1"]


async def test_a_new_version_takes_the_place_of_the_old():
    engine = Counting()
    adapters = Adapters(engine, 4)
    assert await use(adapters, version("a", "1")) == "a@1"
    assert await use(adapters, version("a", "2")) == "a@2"
    assert list(engine.adapters) == ["a@2"]


async def test_a_load_that_fails_is_tried_again_by_the_next():
    engine = Counting()
    adapters = Adapters(engine, 4)
    engine.failures = [ModelNotFoundError("damaged")]
    with pytest.raises(ModelNotFoundError):
        await use(adapters, version("a"))
    assert await use(adapters, version("a")) == "a@1"


async def test_one_that_the_engine_does_not_let_go_stays_known():
    engine = Counting()
    adapters = Adapters(engine, 1)
    await use(adapters, version("a"))
    engine.removals = [EngineError("it is in use")]
    with pytest.raises(EngineError, match="in use"):
        await use(adapters, version("b"))
    assert adapters.names == list(engine.adapters) == ["a@1"]
    await use(adapters, version("b"))
    assert adapters.names == list(engine.adapters) == ["b@1"]


async def test_a_fresh_engine_gets_what_it_lacks_and_an_unloaded_one_nothing():
    engine = Counting()
    adapters = Adapters(engine, 4)
    await use(adapters, version("a"))
    engine.adapters.clear()
    await adapters.reapply()
    assert list(engine.adapters) == ["a@1"]
    adapters.forget()
    assert adapters.names == []
    assert engine.adapters == {}


async def test_a_dropped_adapter_waits_for_its_users_and_keeps_nobody_else_waiting():
    engine = Counting()
    adapters, done = Adapters(engine, 4), asyncio.Event()
    user = asyncio.create_task(use(adapters, version("a"), done))
    await settle()
    dropping = asyncio.create_task(adapters.drop("a"))
    await settle()
    assert await use(adapters, version("b")) == "b@1"
    assert not dropping.done()
    done.set()
    await asyncio.gather(user, dropping)
    assert list(engine.adapters) == ["b@1"]


async def test_a_drop_hears_of_a_user_that_leaves_while_it_removes_another_version():
    engine = Counting()
    adapters = Adapters(engine, 4)
    leave = [asyncio.Event(), asyncio.Event()]
    users = [
        asyncio.create_task(use(adapters, version("a", digest), until))
        for digest, until in zip("12", leave, strict=True)
    ]
    await settle()
    dropping = asyncio.create_task(adapters.drop("a"))
    engine.may_remove.clear()
    for event in reversed(leave):  # the user of "1" while "2" is removed
        event.set()
        await settle()
    engine.may_remove.set()
    await settle()
    assert dropping.done()
    assert engine.adapters == {}
    await asyncio.gather(*users)


async def test_a_drop_leaves_what_is_loaded_later():
    engine = Counting()
    adapters = Adapters(engine, 4)
    old, new = asyncio.Event(), asyncio.Event()
    user = asyncio.create_task(use(adapters, version("a", "1"), old))
    await settle()
    dropping = asyncio.create_task(adapters.drop("a"))
    await settle()
    later = asyncio.create_task(use(adapters, version("a", "2"), new))
    await settle()
    old.set()
    await settle()
    assert dropping.done()
    assert list(engine.adapters) == ["a@2"]
    new.set()
    await asyncio.gather(user, later)


async def test_a_load_whose_request_has_left_is_counted():
    engine = Counting()
    engine.gate.clear()
    adapters = Adapters(engine, 1)
    leaving = asyncio.create_task(use(adapters, version("a")))
    await settle()
    leaving.cancel()
    other = asyncio.create_task(use(adapters, version("b")))
    await settle()
    assert engine.loads == ["a@1"]
    engine.gate.set()
    await other
    assert leaving.cancelled()
    assert (engine.loads, list(engine.adapters)) == (["a@1", "b@1"], ["b@1"])
