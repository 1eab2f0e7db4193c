"""The memory of the second copy is taken at its first use and given back when it is idle."""

import asyncio

import pytest

from penstock.engines.base import Room
from penstock.engines.openvino.logits import second_copy
from penstock.engines.openvino.logits.second_copy import SecondCopy
from penstock.errors import EngineDeadError, EngineStartError


class Owner:
    """Counts what the copy takes."""

    def __init__(self, copy):
        self.calls: list[str] = []
        self.full = False
        copy.room = Room(self.make, lambda: self.calls.append("idle"), lambda: self.call("free"))

    def call(self, name):
        self.calls.append(name)

    async def make(self):
        if self.full:
            raise EngineStartError("no room")
        self.call("make")

    async def give_back(self):
        self.call("give back")


@pytest.fixture
async def owned():
    async def give_back():
        await owner.give_back()

    copy = SecondCopy(give_back)
    owner = Owner(copy)
    return copy, owner


async def test_room_is_made_once_and_kept_while_it_is_used(owned):
    copy, owner = owned
    async with copy.used(), copy.used():
        assert copy.idle_since is None
        await copy.unload()
    assert copy.idle_since is not None
    async with copy.used():
        pass
    assert owner.calls == ["make", "idle", "idle"]
    copy.lost()


async def test_an_idle_copy_is_given_back(owned, monkeypatch):
    copy, owner = owned
    monkeypatch.setattr(second_copy, "IDLE_SECONDS", 0.0)
    async with copy.used():
        pass
    while "free" not in owner.calls:  # noqa: ASYNC110 (nobody announces it)
        await asyncio.sleep(0)
    assert owner.calls == ["make", "idle", "give back", "free"]
    assert copy.idle_since is None


async def test_it_goes_with_the_process(owned):
    copy, owner = owned
    async with copy.used():
        copy.lost()
    assert owner.calls == ["make", "free"]

    async def dead():
        raise EngineDeadError("gone")

    owner.give_back = dead
    async with copy.used():
        pass
    await copy.unload()
    assert owner.calls[2:] == ["make", "idle", "free"]


async def test_without_room_there_is_none(owned):
    copy, owner = owned
    owner.full = True
    with pytest.raises(EngineStartError):
        async with copy.used():
            pass
    owner.full = False
    async with copy.used():
        pass
    assert owner.calls == ["make", "idle"]
    copy.lost()


async def test_without_an_owner_nothing_is_counted():
    async def never():
        raise AssertionError

    copy = SecondCopy(never)
    async with copy.used():
        pass
    await copy.unload()
    assert copy.idle_since is None
