"""All results, or none of the work goes on."""

import asyncio

import pytest

from penstock.engines.side_by_side import all_of, begin, end_all


async def test_results_come_in_the_order_of_the_work():
    async def after(turns: int) -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        return turns

    assert await all_of(map(after, (3, 1, 2))) == [3, 1, 2]
    assert await all_of([]) == []


async def test_a_failure_is_raised_when_the_others_have_ended():
    ended = []

    async def endless(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # an end that takes a while
            ended.append(name)

    async def fails() -> None:
        await asyncio.sleep(0)
        raise KeyError("it")

    with pytest.raises(KeyError, match="it"):
        await all_of([endless("a"), fails(), endless("b")])
    assert ended == ["a", "b"]


async def test_who_cancels_it_cancels_all_of_the_work():
    ended = asyncio.Event()

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    whole = asyncio.create_task(all_of([endless()]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    whole.cancel()
    with pytest.raises(asyncio.CancelledError):
        await whole
    assert ended.is_set()


async def test_ending_is_silent_about_what_the_tasks_raise():
    async def fails() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError

    task = asyncio.create_task(fails())
    await asyncio.sleep(0)
    await end_all([task])
    assert isinstance(task.exception(), ValueError)


async def test_a_task_is_among_those_that_run_until_it_has_ended():
    done = asyncio.Event()
    running: set[asyncio.Task[object]] = set()
    begin(done.wait(), running)
    (task,) = running
    done.set()
    await task
    await asyncio.sleep(0)
    assert not running
