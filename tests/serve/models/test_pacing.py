import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from penstock.engines.tasks import BatchedDeltas
from penstock.errors import EngineError
from penstock.serve.models.pacing import Coalescer, DeltaStream, joined
from penstock.types import Delta, TokenLogprob, Usage

END = Delta(0, "!", (9,), finish_reason="stop", usage=Usage(1, 3))


def test_joining_loses_nothing():
    token = TokenLogprob("a", -1.0)
    one = joined(
        [
            Delta(2, "a", (1,), (token,)),
            Delta(2, "b", (2, 3), (token, token)),
            Delta(2, "", (), None, "stop"),
        ]
    )
    assert one == Delta(2, "ab", (1, 2, 3), (token, token, token), "stop")
    one = joined(
        [
            Delta(chunks=(b"x",)),
            Delta(chunks=(b"y", b"z")),
            Delta(text="a", finish_reason="stop", stop="END"),
        ]
    )
    assert one == Delta(text="a", finish_reason="stop", stop="END", chunks=(b"x", b"y", b"z"))


def test_the_first_delta_of_each_answer_never_waits():
    buffer = Coalescer(interval_s=10)
    buffer.add(Delta(0, "a"))
    assert buffer.wait_s(100.0) == 0
    assert buffer.take(100.0) == [Delta(0, "a")]
    buffer.add(Delta(0, "b"))
    buffer.add(Delta(1, "x"))
    assert buffer.wait_s(101.0) == 0
    assert buffer.take(101.0) == [Delta(1, "x")]


def test_later_deltas_wait_for_the_interval_and_leave_joined():
    buffer = Coalescer(interval_s=10)
    buffer.add(Delta(0, "a"))
    buffer.take(100.0)
    buffer.add(Delta(0, "b"))
    assert buffer.wait_s(103.0) == 7
    assert buffer.take(103.0) == []
    buffer.add(Delta(0, "c"))
    assert buffer.take(110.0) == [Delta(0, "bc")]


def test_the_end_never_waits():
    buffer = Coalescer(interval_s=10)
    buffer.add(Delta(0, "a"))
    buffer.take(100.0)
    buffer.add(Delta(0, "b"))
    buffer.add(END)
    assert buffer.wait_s(101.0) == 0
    assert buffer.take(101.0) == [Delta(0, "b!", (9,), finish_reason="stop", usage=Usage(1, 3))]


def stream_of(source, **options):
    stream: Any = DeltaStream(**options)
    stream.deltas = BatchedDeltas(stream.batches(aclosing(source.batches())))
    return stream


def one_by_one(stream):
    return stream.deltas


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


class Source:
    """Deltas that the test hands out."""

    def __init__(self):
        self.queue: asyncio.Queue[Delta | Exception | None] = asyncio.Queue()
        self.closed = False

    async def batches(self):
        try:
            while (item := await self.queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield [item]
        finally:
            self.closed = True

    async def give(self, *items):
        for item in items:
            self.queue.put_nowait(item)
        await settle()


async def test_with_an_interval_a_caller_who_lags_finds_one_delta():
    source, now = Source(), [0.0]
    stream = stream_of(source, interval_s=10, clock=lambda: now[0])
    async with aclosing(one_by_one(stream)) as deltas:
        await source.give(Delta(0, "a"))
        assert await anext(deltas) == Delta(0, "a")
        await source.give(Delta(0, "b"), Delta(0, "c"), Delta(0, "d"))
        now[0] = 50.0
        assert await anext(deltas) == Delta(0, "bcd")
        await source.give(END, None)
        assert await anext(deltas) == END
        with pytest.raises(StopAsyncIteration):
            await anext(deltas)


async def test_without_one_the_caller_is_handed_all_that_is_there_without_waiting():
    source = Source()
    async with aclosing(one_by_one(stream_of(source))) as deltas:
        await source.give(Delta(0, "a"), Delta(0, "b"), END)
        for text in ("a", "b", "!"):
            # A step that had to wait would not end at its first push.
            with pytest.raises(StopIteration) as ready:
                anext(deltas).send(None)
            assert ready.value.value.text == text


@pytest.mark.parametrize("interval_s", [0.0, 3600.0])
async def test_an_abort_interrupts_a_source_that_gives_nothing(interval_s):
    source = Source()
    stream = stream_of(source, interval_s=interval_s)

    async def take():
        return [delta async for delta in one_by_one(stream)]

    caller = asyncio.create_task(take())
    await settle()
    stream.abort()
    assert [delta.finish_reason for delta in await caller] == ["abort"]
    assert caller.cancelling() == 0
    assert source.closed


@pytest.mark.parametrize("interval_s", [0.0, 3600.0])
async def test_a_caller_who_is_cancelled_is_cancelled(interval_s):
    source = Source()
    stream = stream_of(source, interval_s=interval_s)
    caller = asyncio.create_task(anext(one_by_one(stream)))
    await settle()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert source.closed


async def test_a_caller_who_waits_gets_each_delta():
    source = Source()
    seen = []

    async def take():
        async for delta in one_by_one(stream_of(source)):
            seen.append(delta.text)

    caller = asyncio.create_task(take())
    await asyncio.sleep(0)
    for text in "abc":
        await source.give(Delta(0, text))
    await source.give(END, None)
    await caller
    assert seen == ["a", "b", "c", "!"]


async def test_with_an_interval_the_end_brings_what_waited():
    source = Source()
    stream = stream_of(source, interval_s=3600)
    await source.give(Delta(0, "a"))
    async with aclosing(one_by_one(stream)) as deltas:
        assert (await anext(deltas)).text == "a"
        await source.give(Delta(0, "b"), Delta(0, "c"), END, None)
        assert [delta.text async for delta in deltas] == ["bc!"]


async def test_the_interval_passes_by_the_clock():
    source, now = Source(), [0.0]
    stream = stream_of(source, interval_s=3600, clock=lambda: now[0])
    async with aclosing(one_by_one(stream)) as deltas:
        await source.give(Delta(0, "a"))
        assert (await anext(deltas)).text == "a"
        await source.give(Delta(0, "b"))
        now[0] = 3600.0
        assert (await anext(deltas)).text == "b"


async def test_an_error_comes_after_what_came_before_it():
    source = Source()
    await source.give(Delta(0, "a"), EngineError("broken"))
    async with aclosing(one_by_one(stream_of(source))) as deltas:
        assert (await anext(deltas)).text == "a"
        with pytest.raises(EngineError, match="broken"):
            await anext(deltas)


async def test_closing_early_closes_the_source_and_leaves_no_task():
    source = Source()
    async with aclosing(one_by_one(stream_of(source))) as deltas:
        await source.give(Delta(0, "a"))
        await anext(deltas)
        assert not source.closed
    assert source.closed
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_abort_finishes_each_open_answer():
    source = Source()
    stream = stream_of(source, answers=3)
    async with aclosing(one_by_one(stream)) as deltas:
        await source.give(Delta(0, "ab", (1, 2)), Delta(1, "!", (3,), finish_reason="stop"))
        assert (await anext(deltas)).index == 0
        assert (await anext(deltas)).index == 1
        stream.abort()  # while its caller is elsewhere
        rest = [delta async for delta in deltas]
    assert [(d.index, d.finish_reason, d.usage) for d in rest] == [
        (0, "abort", Usage(completion_tokens=2)),
        (2, "abort", Usage()),
    ]
    assert source.closed


async def test_held_deltas_come_when_they_are_released():
    source = Source()
    stream = stream_of(source)
    stream.hold()
    async with aclosing(one_by_one(stream)) as deltas:
        taking = asyncio.create_task(anext(deltas))
        await source.give(Delta(0, "a"), END, None)
        await stream.read_out()
        assert not taking.done()
        stream.release()
        assert (await taking).text == "a"
        assert await anext(deltas) == END


async def test_a_stream_that_is_released_halfway_loses_nothing():
    source = Source()
    stream = stream_of(source)
    async with aclosing(one_by_one(stream)) as deltas:
        stream.hold()
        taking = asyncio.create_task(anext(deltas))
        await source.give(Delta(0, "a"))
        stream.release()
        await source.give(Delta(0, "b"), END, None)
        assert (await taking).text + "".join([delta.text async for delta in deltas]) == "ab!"
