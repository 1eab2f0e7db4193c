from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from penstock.serve.ready_items import MOST_AT_ONCE, ReadyItems


class Source:
    """Gives what is fed to it; tells how it ended."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.ended_by: type[BaseException] | None = None
        self.closed = False

    async def items(self) -> AsyncGenerator[Any, None]:
        try:
            while (item := await self.queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        except BaseException as error:
            self.ended_by = type(error)
            await asyncio.sleep(0)  # closing may take its time
            raise
        finally:
            self.closed = True

    def feed(self, *items: Any) -> None:
        for item in items:
            self.queue.put_nowait(item)


async def test_what_is_ready_comes_at_once_and_the_rest_is_waited_for() -> None:
    source = Source()
    ready = ReadyItems(source.items())
    source.feed(1, 2, 3)
    assert await ready.take() == [1, 2, 3]
    waiting = asyncio.create_task(ready.take())
    await asyncio.sleep(0)
    assert not waiting.done()
    source.feed(4, 5, None)
    assert await waiting == [4, 5]
    assert ready.exhausted
    assert source.closed


async def test_an_error_comes_after_the_items_before_it() -> None:
    source = Source()
    ready = ReadyItems(source.items())
    source.feed(1, ValueError("broken"))
    assert await ready.take() == [1]
    with pytest.raises(ValueError, match="broken"):
        await ready.take()


async def test_closing_ends_a_step_that_waits() -> None:
    source = Source()
    ready = ReadyItems(source.items())
    source.feed(1)
    assert await ready.take() == [1]  # the next step has begun
    await ready.aclose()
    assert source.closed
    assert source.ended_by is asyncio.CancelledError


async def test_closing_before_the_first_take_and_after_the_last() -> None:
    source = Source()
    await ReadyItems(source.items()).aclose()
    ready = ReadyItems(source.items())
    source.feed(None)
    assert await ready.take() == []
    await ready.aclose()


async def test_cancellation_reaches_the_source() -> None:
    source = Source()
    ready = ReadyItems(source.items())
    source.feed(1)
    await ready.take()
    waiting = asyncio.create_task(ready.take())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert source.ended_by is asyncio.CancelledError
    await ready.aclose()


async def test_a_source_that_never_waits_is_read_in_parts() -> None:
    async def endless() -> AsyncGenerator[int, None]:
        while True:
            yield 1

    ready = ReadyItems(endless())
    assert len(await ready.take()) == MOST_AT_ONCE
    await ready.aclose()
