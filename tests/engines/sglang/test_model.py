"""The gate of SGLang's engine, in this process, where a call can be cut off at any place."""

import asyncio
import sys

import pytest


class Manager:
    """Never comes to the end of a pause, unless it may."""

    def __init__(self):
        self.ends = asyncio.Event()
        self.paused = False

    async def pause_generation(self, request):
        self.paused = True
        await self.ends.wait()

    async def continue_generation(self, request):
        self.paused = False


@pytest.fixture
def model(stand_in, monkeypatch):
    known = set(sys.modules)
    from penstock.engines.sglang.model import Model

    model = Model.__new__(Model)
    model._manager, model._kept = Manager(), False
    model._open, model._idle = asyncio.Event(), asyncio.Event()
    model._open.set()
    yield model
    for name in set(sys.modules) - known:
        if name.startswith(("sglang", "penstock.engines.sglang.model")):
            del sys.modules[name]


async def given_up(work):
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


@pytest.mark.parametrize("mode", ["wait", "keep", "abort"])
async def test_a_pause_that_is_cut_off_leaves_everything_as_it_was(model, mode):
    await given_up(model.pause(mode))
    assert model._open.is_set()
    assert not model._manager.paused


@pytest.mark.parametrize("mode", ["wait", "keep", "abort"])
async def test_a_pause_that_is_cut_off_ends_no_earlier_one(model, mode):
    model._manager.ends.set()
    await model.pause("keep")
    model._manager.ends.clear()
    await given_up(model.pause(mode))
    assert not model._open.is_set()
    assert model._manager.paused
    await model.resume()
    assert model._open.is_set()


async def test_a_sleep_that_is_cut_off_ends_no_pause(model):
    model._idle.set()
    await model.pause("wait")
    model._idle.clear()
    await given_up(model.sleep(["weights"]))
    assert not model._open.is_set()
