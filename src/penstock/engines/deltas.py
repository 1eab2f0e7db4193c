"""The deltas of one request on their way up: in batches between our own layers, one by one for
users.

What an engine has ready together travels together, so a layer costs a request once a step and not
once a token.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Protocol, TypeAlias

from penstock.types import Delta

Batches: TypeAlias = AsyncGenerator[list[Delta], None]
"""What `generate` returns. No batch is empty. Closing the generator aborts the request; an error of
the request is raised after the deltas that came before it.
"""


class Deltas(Protocol):
    """What `chat` and `completions` return: `Batches`, one delta at a time. An asynchronous
    generator of deltas is one.
    """

    def __aiter__(self) -> AsyncIterator[Delta]: ...

    def __anext__(self) -> Awaitable[Delta]: ...

    def aclose(self) -> Awaitable[None]: ...


class BatchedDeltas:
    """Batches of deltas, iterated one delta at a time."""

    def __init__(self, batches: Batches) -> None:
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


def in_batches(deltas: Deltas) -> Batches:
    """The batches of deltas; of a user's own generator, batches of one."""
    return deltas.batches if isinstance(deltas, BatchedDeltas) else _singly(deltas)


async def _singly(deltas: Deltas) -> Batches:
    async with aclosing(deltas):
        async for delta in deltas:
            yield [delta]


async def mapped(batches: Batches, change: Callable[[Delta], Delta]) -> Batches:
    """The batches with each delta changed."""
    async with aclosing(batches):
        async for batch in batches:
            yield [change(delta) for delta in batch]
