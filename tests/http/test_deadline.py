"""The time limit of many tasks: what it ends, what it leaves alone, and who is blamed."""

from __future__ import annotations

import asyncio

import pytest

from penstock.http.client import Deadline


async def waits(deadline: Deadline, until: asyncio.Event) -> str:
    try:
        with deadline:
            await until.wait()
    except TimeoutError:
        return "late"
    return "done"


async def test_who_is_late_gets_a_timeout_and_others_go_on():
    deadline = Deadline(0.05)
    never, now = asyncio.Event(), asyncio.Event()
    now.set()
    late = [asyncio.create_task(waits(deadline, never)) for _ in range(3)]
    assert await waits(deadline, now) == "done"
    assert await asyncio.gather(*late) == ["late"] * 3
    assert [task.cancelling() for task in late] == [0, 0, 0]
    assert await waits(deadline, now) == "done"  # after a limit has passed it can be entered again
    assert await waits(deadline, never) == "late"


async def test_a_later_one_keeps_its_whole_time():
    deadline = Deadline(0.1)
    never, loop = asyncio.Event(), asyncio.get_running_loop()
    first = asyncio.create_task(waits(deadline, never))
    await asyncio.sleep(0.05)
    began = loop.time()
    assert await waits(deadline, never) == "late"
    assert loop.time() - began >= 0.1
    assert await first == "late"


async def test_a_cancelled_task_stays_cancelled():
    deadline = Deadline(60.0)
    task = asyncio.create_task(waits(deadline, asyncio.Event()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelled_and_late_in_the_same_turn_is_cancelled():
    deadline = Deadline(0.0)
    task = asyncio.create_task(waits(deadline, asyncio.Event()))
    await asyncio.sleep(0)  # it is within its limit, which passes in the next turn
    task.cancel()
    deadline._look()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_other_errors_pass():
    deadline = Deadline(60.0)
    with pytest.raises(KeyError), deadline:
        raise KeyError
    assert not deadline._running
