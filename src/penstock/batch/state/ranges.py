"""Sets of row numbers, kept as runs: half-open ranges `(start, stop)`.

A job finishes its rows nearly in order, so a handful of runs says which of a billion rows are done.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

Run = tuple[int, int]
"""Rows `start` up to and without `stop`."""


def in_order(rows: Iterable[int]) -> list[Run]:
    """The runs of row numbers as they come: consecutive ascending numbers join, the order stays."""
    runs: list[Run] = []
    start = stop = -1
    for row in rows:
        if row == stop:
            stop += 1
            continue
        if start >= 0:
            runs.append((start, stop))
        start, stop = row, row + 1
    if start >= 0:
        runs.append((start, stop))
    return runs


def union(*sets: Iterable[Run]) -> list[Run]:
    """All rows of several sets, as sorted runs that neither touch nor overlap."""
    merged: list[Run] = []
    for start, stop in sorted(run for runs in sets for run in runs):
        if merged and start <= merged[-1][1]:
            if stop > merged[-1][1]:
                merged[-1] = (merged[-1][0], stop)
        elif stop > start:
            merged.append((start, stop))
    return merged


def without(runs: Iterable[Run], removed: list[Run]) -> Iterator[Run]:
    """The rows of `runs`, in their order, that are not in `removed` (sorted, as from `union`)."""
    starts = [start for start, _ in removed]
    for start, stop in runs:
        at = max(bisect_right(starts, start) - 1, 0)
        while start < stop and at < len(removed):
            gap_start, gap_stop = removed[at]
            if gap_start >= stop:
                break
            if gap_stop > start:
                if gap_start > start:
                    yield start, gap_start
                start = gap_stop
            at += 1
        if start < stop:
            yield start, stop


def size(runs: Iterable[Run]) -> int:
    """How many rows these runs hold."""
    return sum(stop - start for start, stop in runs)


class RowSet:
    """Row numbers that can be asked for one by one."""

    def __init__(self, runs: Iterable[Run] = ()) -> None:
        self.runs = union(runs)
        self._starts = [start for start, _ in self.runs]

    def __contains__(self, row: int) -> bool:
        at = bisect_right(self._starts, row) - 1
        return at >= 0 and row < self.runs[at][1]

    def __len__(self) -> int:
        return size(self.runs)

    def first_missing(self, row: int = 0) -> int:
        """The first row from `row` on that is not in the set."""
        if not self.runs:
            return row
        at = bisect_right(self._starts, row) - 1
        return max(row, self.runs[at][1]) if at >= 0 else row
