import asyncio
from typing import Any

import pytest

from penstock.errors import EngineStartError, OverloadedError
from penstock.serve.models.admission import Admission


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def opened(slots, max_waiting=10, **options):
    admission = Admission(max_waiting, **options)
    admission.max_running = slots
    admission.open()
    return admission


async def entered(admission, name, order, priority=0):
    await admission.enter(priority)
    order.append(name)


async def test_so_many_run_so_many_wait_and_the_next_is_turned_away():
    admission = opened(1, max_waiting=1)
    order: list[Any] = []
    await entered(admission, "a", order)
    waiting = asyncio.create_task(entered(admission, "b", order))
    await settle()
    assert (admission.running, admission.waiting, order) == (1, 1, ["a"])
    with pytest.raises(OverloadedError) as caught:
        await admission.enter()
    assert caught.value.retry_after > 0
    admission.leave()
    await waiting
    assert (admission.running, admission.waiting, order) == (1, 0, ["a", "b"])


async def test_lower_priority_values_go_first_and_equals_in_order():
    admission = opened(1)
    order: list[Any] = []
    await admission.enter()
    tasks = [
        asyncio.create_task(entered(admission, name, order, priority))
        for name, priority in (("batch 1", 5), ("batch 2", 5), ("online", 0))
    ]
    await settle()
    for _ in tasks:
        admission.leave()
        await settle()
    assert order == ["online", "batch 1", "batch 2"]


async def test_what_takes_no_slot_leaves_the_slots_to_others():
    admission = opened(1)
    order: list[Any] = []
    for _ in range(3):
        admission.enter_at_once()
    await entered(admission, "a", order)
    waiting = asyncio.create_task(entered(admission, "b", order))
    await settle()
    assert (admission.running, admission.waiting, order) == (4, 1, ["a"])
    for _ in range(3):
        admission.leave("slotless")
    assert not waiting.done()
    admission.leave()
    await waiting
    admission.leave()
    assert admission.idle


async def test_a_closed_gate_lets_nobody_in_until_it_opens():
    admission = Admission(10)
    order: list[Any] = []
    admission.max_running = 2
    tasks = [asyncio.create_task(entered(admission, n, order)) for n in range(3)]
    await settle()
    assert (order, admission.waiting) == ([], 3)
    admission.open()
    await settle()
    assert (order, admission.waiting) == ([0, 1], 1)
    admission.leave()
    await asyncio.gather(*tasks)


async def test_whoever_leaves_the_queue_or_was_just_let_in_takes_no_slot():
    admission = opened(1)
    await admission.enter()
    queued = asyncio.create_task(admission.enter())
    await settle()
    queued.cancel()
    await settle()
    assert admission.waiting == 0
    lucky = asyncio.create_task(admission.enter())
    next_one = asyncio.create_task(admission.enter())
    await settle()
    admission.leave()  # lets it in …
    lucky.cancel()  # … in the moment when it goes
    await next_one
    assert (admission.running, admission.waiting) == (1, 0)


async def test_refusing_tells_everyone_why():
    admission = Admission(10)
    tasks = [asyncio.create_task(admission.enter()) for _ in range(3)]
    await settle()
    admission.refuse_waiting(lambda: EngineStartError("no such file"))
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, EngineStartError)
    assert admission.idle


async def test_idleness_is_told_once_all_have_left():
    told = []
    admission = opened(2, on_idle=lambda: told.append(True))
    await admission.enter()
    await admission.enter()
    admission.leave()
    assert told == []
    admission.leave()
    assert told == [True]


async def test_drained_waits_for_those_inside_or_for_the_gate():
    admission = opened(2)
    await admission.enter()
    admission.close()
    draining = asyncio.create_task(admission.drained())
    await settle()
    assert not draining.done()
    admission.open()
    await draining
    emptied = asyncio.create_task(admission.emptied())
    await settle()
    assert not emptied.done()
    admission.leave()
    await emptied


async def test_batch_requests_wait_behind_all_others_and_take_only_idle_slots():
    admission = opened(2)
    order: list[Any] = []

    async def enters(name, batch):
        await admission.enter(kind="batch" if batch else "online")
        order.append(name)

    await enters("batch 1", True)
    await enters("online 1", False)
    waiting = [
        asyncio.create_task(enters(name, batch))
        for name, batch in (("batch 2", True), ("online 2", False))
    ]
    await settle()
    assert (admission.running, admission.batch_running, admission.waiting) == (2, 1, 2)
    admission.leave("batch")
    await settle()
    assert order == ["batch 1", "online 1", "online 2"]
    assert admission.batch_running == 0
    admission.leave()
    await asyncio.gather(*waiting)
    assert (admission.running, admission.batch_running) == (2, 1)


async def test_an_engine_that_shares_itself_gets_as_many_of_either_class():
    admission = opened(1, max_waiting=1)
    admission.engine_shares_steps = True
    await admission.enter(kind="batch")
    await admission.enter()
    assert (admission.running, admission.batch_running) == (2, 1)
    queued = [
        asyncio.create_task(admission.enter(kind="batch" if batch else "online"))
        for batch in (True, False)
    ]
    await settle()
    for batch in (True, False):
        with pytest.raises(OverloadedError):
            await admission.enter(kind="batch" if batch else "online")
    admission.leave("batch")
    await settle()
    assert (queued[0].done(), queued[1].done()) == (True, False)
    queued[1].cancel()
    await settle()
    assert (admission.running, admission.batch_running, admission.waiting) == (2, 1, 0)
    admission.refuse_waiting(lambda: EngineStartError("no"))


async def test_what_the_engine_cannot_share_waits_for_an_idle_slot():
    admission = opened(1)
    admission.engine_shares_steps = True
    await admission.enter(kind="batch")
    await admission.enter(kind="idle")  # a batch row's slot is not in its way
    online = asyncio.create_task(admission.enter())
    idle = asyncio.create_task(admission.enter(kind="idle"))
    await settle()
    assert (online.done(), idle.done()) == (False, False)
    admission.leave("batch")
    await settle()
    assert (online.done(), idle.done()) == (False, False)
    admission.leave("idle")
    await settle()
    assert (online.done(), idle.done()) == (True, False)
    admission.leave()
    await idle
    assert (admission.running, admission.batch_running, admission.waiting) == (1, 0, 0)


async def test_idle_slots_go_to_those_who_came_first():
    admission = opened(1)
    order: list[str] = []

    async def enters(kind):
        await admission.enter(kind=kind)
        order.append(kind)

    await admission.enter()
    tasks = [asyncio.create_task(enters(kind)) for kind in ("idle", "batch", "idle", "online")]
    await settle()
    for kind in ("online", "online", "idle", "batch"):
        admission.leave(kind)
        await settle()
    await asyncio.gather(*tasks)
    assert order == ["online", "idle", "batch", "idle"]
    assert (admission.running, admission.batch_running) == (1, 0)
