import asyncio
import threading
from functools import partial

import pytest

from penstock.batch.pipeline.offload import Offload
from penstock.errors import UserCodeError


async def test_a_slow_call_leaves_the_loop_free():
    offload = Offload()
    gate = threading.Event()
    future = offload.submit(lambda: gate.wait(30))
    await asyncio.sleep(0)  # the loop runs on
    assert not future.done()
    gate.set()
    assert await future is True
    offload.close()


async def test_quick_calls_are_made_in_place_after_a_trial():
    offload = Offload()
    threads = {await offload.submit(threading.get_ident) for _ in range(10)}
    assert threading.get_ident() not in threads
    while not offload.in_place:
        await offload.submit(int)
    future = offload.submit(threading.get_ident)
    assert future.done()
    assert future.result() == threading.get_ident()
    offload.close()


async def test_what_may_wait_is_never_made_in_place():
    offload = Offload(in_place=False)
    threads = {await offload.submit(threading.get_ident) for _ in range(200)}
    assert threading.get_ident() not in threads
    offload.close()


async def test_errors_and_order():
    offload = Offload()
    with pytest.raises(ZeroDivisionError):
        await offload.submit(lambda: 1 // 0)
    futures = [offload.submit(partial(int, number)) for number in range(50)]
    assert await asyncio.gather(*futures) == list(range(50))
    offload.close()


class Ending(BaseException):
    """A caller's own."""


@pytest.mark.parametrize(
    "error",
    [StopIteration, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, Ending],
)
async def test_what_no_future_can_hold_is_an_error_too(error):
    def call():
        raise error(3)

    offload = Offload()
    futures = [offload.submit(call), offload.submit(int)]
    with pytest.raises(UserCodeError, match=f"^{error.__name__}: 3$"):
        await futures[0]
    assert await futures[1] == 0
    offload.close()


async def test_so_many_threads():
    offload = Offload(3)
    barrier = threading.Barrier(3)
    await asyncio.gather(*(offload.submit(lambda: barrier.wait(30)) for _ in range(3)))
    offload.close()


async def test_what_was_cancelled_is_not_heard():
    offload = Offload()
    gate = threading.Event()
    future = offload.submit(lambda: gate.wait(30))
    future.cancel()
    gate.set()
    assert await offload.submit(lambda: "next") == "next"
    offload.close()


@pytest.mark.parametrize("in_place", [True, False])
async def test_a_result_does_not_wait_for_the_next_call(in_place):
    offload = Offload(in_place=in_place)
    queued, gate = threading.Event(), threading.Event()
    futures = [offload.submit(queued.wait), offload.submit(gate.wait)]
    queued.set()
    async with asyncio.timeout(30):
        assert await futures[0]
    gate.set()
    await futures[1]
    offload.close()


async def test_what_was_cancelled_while_it_waited_is_not_made():
    offload = Offload()
    gate = threading.Event()
    made: list[int] = []
    running = offload.submit(gate.wait)
    waiting = [offload.submit(partial(made.append, number)) for number in range(3)]
    waiting[1].cancel()
    gate.set()
    await running
    await asyncio.gather(waiting[0], waiting[2])
    assert made == [0, 2]
    offload.close()


async def test_cancelled_calls_do_not_count_as_quick():
    offload = Offload()
    gate = threading.Event()
    running = offload.submit(gate.wait)
    for _ in range(100):
        offload.submit(int).cancel()
    gate.set()
    await running
    await offload.submit(int)
    assert not offload.in_place
    offload.close()
