import asyncio

import pytest

from penstock.engines.vllm.adapters import Adapters


class Slots:
    """What vLLM would hold."""

    def __init__(self, limit):
        self.held = {}
        self.most = 0
        self.adapters = Adapters(limit, self.load, self.unload)

    async def load(self, name, number, path):
        await asyncio.sleep(0)
        if path == "broken":
            raise ValueError("broken")
        self.held[number] = path
        self.most = max(self.most, len(self.held))
        return f"{path}#{number}"

    async def unload(self, number):
        await asyncio.sleep(0)
        del self.held[number]

    async def used(self, name):
        async with self.adapters.use(name) as request:
            await asyncio.sleep(0)
            assert request.partition("#")[0] in self.held.values()
            return request


async def test_the_least_recently_used_leaves_and_comes_back():
    slots = Slots(2)
    for name in "abc":
        await slots.adapters.add(name, f"/{name}")
    assert set(slots.held.values()) == {"/b", "/c"}
    await slots.used("a")
    assert set(slots.held.values()) == {"/c", "/a"}


async def test_never_more_than_the_limit_however_many_use_them():
    slots = Slots(2)
    for name in "abcd":
        slots.adapters.know(name, f"/{name}")
    requests = await asyncio.gather(*(slots.used(name) for name in "abcd" * 5))
    assert slots.most == 2
    assert {request.partition("#")[0] for request in requests} == {"/a", "/b", "/c", "/d"}


async def test_a_replaced_adapter_stays_for_those_who_use_it_and_shares_no_number():
    slots = Slots(2)
    await slots.adapters.add("a", "/old")
    async with slots.adapters.use("a") as old:
        await slots.adapters.add("a", "/new")
        assert set(slots.held.values()) == {"/old", "/new"}
    assert set(slots.held.values()) == {"/new"}
    new = await slots.used("a")
    assert new.partition("#")[2] != old.partition("#")[2]


async def test_one_that_cannot_be_loaded_is_not_known():
    slots = Slots(1)
    await slots.adapters.add("a", "/a")
    with pytest.raises(ValueError, match="broken"):
        await slots.adapters.add("b", "broken")
    with pytest.raises(KeyError):
        await slots.used("b")
    assert await slots.used("a")


async def test_a_removed_adapter_leaves_when_its_last_user_does():
    slots = Slots(1)
    await slots.adapters.add("a", "/a")
    async with slots.adapters.use("a"):
        await slots.adapters.remove("a")
        assert slots.held
    assert not slots.held


async def test_one_whose_loading_is_given_up_takes_no_place():
    slots, began = Slots(1), asyncio.Event()

    async def load(name, number, path):
        loading = asyncio.create_task(Slots.load(slots, name, number, path))
        began.set()
        return await asyncio.shield(loading)  # as in vLLM's core, whoever waits for it

    adapters = slots.adapters = Adapters(1, load, slots.unload)
    for name in "ab":
        adapters.know(name, f"/{name}")
    given_up = asyncio.create_task(slots.used("a"))
    await began.wait()
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    await slots.used("b")
    assert slots.most == 1
    assert set(slots.held.values()) == {"/b"}
    await slots.used("a")
