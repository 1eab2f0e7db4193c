"""Takes what an async generator has ready, all at once, without a task of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
MOST_AT_ONCE = 256
"""So that a source that never waits does not keep its reader from sending."""


class ReadyItems(Generic[T]):
    """Reads `source` in batches: `take` waits for at least one item, `poll` for none.

    `async for` gives one item at a time, and a task that collects them would cost every token a switch. So the
    generator's steps are driven by hand: each either yields an item, or stops at something to wait for, and then what
    was collected is handed out first.
    """

    def __init__(self, source: AsyncGenerator[T, None]) -> None:
        self._source = source
        self._begun: _Step[T] | None = None
        self._failure: Exception | None = None
        self.exhausted = False

    async def take(self) -> list[T]:
        """The next batch. `exhausted` tells whether it is the last, which may be empty.

        An error of the source is raised after the items that came before it.
        """
        items = self.poll()
        if items or self.exhausted or self._begun is None:
            return items
        step, self._begun = self._begun, None
        try:
            return [await step, *self.poll()]
        except StopAsyncIteration:
            self.exhausted = True
            return []

    def poll(self) -> list[T]:
        """What is ready now, if anything is."""
        if self._failure is not None:
            raise self._failure
        items: list[T] = []
        try:
            while not self.exhausted and len(items) < MOST_AT_ONCE:
                if self._begun is None:
                    self._begun = _Step(self._source.__anext__())
                if not self._begun.advance():
                    break
                items.append(self._begun.value)
                self._begun = None
        except StopAsyncIteration:
            self.exhausted = True
            self._begun = None
        except Exception as error:
            self._begun = None
            self._failure = error
            if not items:
                raise
        return items

    async def aclose(self) -> None:
        """Close the source, whatever it is in the middle of."""
        step, self._begun = self._begun, None
        if step is not None:
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                await step.cancelled()
        await self._source.aclose()


class _Step(Generic[T]):
    """One step of a generator. It is advanced as far as it goes without waiting, and may be awaited from there on."""

    value: T

    def __init__(self, step: Coroutine[Any, Any, T]) -> None:
        self._step = step
        self._waits_for: Any = None
        self._cancel = False

    def advance(self) -> bool:
        """Whether the step has ended, with `value`. What ends it otherwise is raised."""
        if isinstance(self._waits_for, asyncio.Future) and not self._waits_for.done():
            return False
        try:
            self._waits_for = self._step.send(None)
        except StopIteration as produced:
            self.value = produced.value
            return True
        return False

    def cancelled(self) -> _Step[T]:
        """The same step, to be awaited to its end after a cancellation."""
        self._cancel = True
        return self

    def __await__(self) -> Generator[Any, None, T]:
        step, waits_for = self._step, self._waits_for
        try:
            if self._cancel:
                # What the step waits for is waited for by nobody else.
                waits_for = step.throw(asyncio.CancelledError())
            while True:
                try:
                    yield waits_for
                except GeneratorExit:
                    step.close()
                    raise
                except BaseException as error:
                    waits_for = step.throw(error)
                else:
                    waits_for = step.send(None)
        except StopIteration as produced:
            value: T = produced.value
            return value
