"""Brings finished rows into the order of the input, or lets them pass as they finish."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from penstock.batch.state.ranges import RowSet

T = TypeVar("T")


class Reorder(Generic[T]):
    """Items by row number. `done` are rows that were written earlier and will not come."""

    def __init__(self, done: RowSet, *, keep_order: bool) -> None:
        self._done = done
        self._keep_order = keep_order
        self._next = done.first_missing()
        self._held: dict[int, T] = {}

    def __len__(self) -> int:
        return len(self._held)

    def held(self) -> Iterator[T]:
        """Items that wait for an earlier row."""
        return iter(self._held.values())

    def put(self, index: int, item: T) -> list[T]:
        """Take one item, give back those whose turn has come."""
        if not self._keep_order:
            return [item]
        if index != self._next:
            self._held[index] = item
            return []
        ready = [item]
        self._next = self._done.first_missing(index + 1)
        while self._held and (following := self._held.pop(self._next, None)) is not None:
            ready.append(following)
            self._next = self._done.first_missing(self._next + 1)
        return ready
