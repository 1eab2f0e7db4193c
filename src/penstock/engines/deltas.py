"""The deltas of one request on their way up: one by one for whoever reads them, in batches between
our own layers.

What an engine has ready together travels together, so a layer costs a request once a step and not
once a token.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Protocol

from penstock.types import Delta


class Deltas(Protocol):
    """What `chat` and `completions` return. An asynchronous generator of deltas is one; closing it
    aborts the request.

    An error of the request is raised by the iteration, after the deltas that came before it.
    """

    def __aiter__(self) -> AsyncIterator[Delta]: ...

    def __anext__(self) -> Awaitable[Delta]: ...

    def aclose(self) -> Awaitable[None]: ...


class BatchedDeltas:
    """Deltas from a generator of batches. No batch is empty."""

    def __init__(self, batches: AsyncGenerator[list[Delta], None]) -> None:
        self.batches = batches
        self._rest: Iterator[Delta] = iter(())

    def __aiter__(self) -> BatchedDeltas:
        return self

    async def __anext__(self) -> Delta:
        for delta in self._rest:
            return delta
        self._rest = iter(await anext(self.batches))
        return next(self._rest)

    async def aclose(self) -> None:
        self._rest = iter(())
        await self.batches.aclose()


def in_batches(deltas: Deltas) -> AsyncGenerator[list[Delta], None]:
    """The same deltas, those that are ready together in one list; closing the generator closes
    them.
    """
    return deltas.batches if isinstance(deltas, BatchedDeltas) else _singly(deltas)


async def _singly(deltas: Deltas) -> AsyncGenerator[list[Delta], None]:
    async with aclosing(deltas):
        async for delta in deltas:
            yield [delta]


def mapped(deltas: Deltas, change: Callable[[Delta], Delta]) -> BatchedDeltas:
    """The deltas, each changed."""

    async def batches() -> AsyncGenerator[list[Delta], None]:
        async with aclosing(in_batches(deltas)) as source:
            async for batch in source:
                yield [change(delta) for delta in batch]

    return BatchedDeltas(batches())
