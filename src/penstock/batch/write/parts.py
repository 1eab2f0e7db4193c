"""The parts of a job: sets of row numbers, the list of the part files, and where each row stands.

A set of row numbers is kept as *runs*, half-open ranges `(start, stop)`. A job finishes its rows
nearly in order, so a handful of runs says which of a billion rows are done.
"""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct

from penstock import private_files
from penstock.batch.rows.row import Outcome, Row
from penstock.batch.write.state_files import (
    Records,
    checksum_of,
    guarded,
    replace_file,
    sync_folder,
    write_all,
)
from penstock.errors import OutputError

Run = tuple[int, int]
"""Rows `start` up to and without `stop`."""


def in_order(rows: Iterable[int]) -> list[Run]:
    """The runs of row numbers, in their order. Consecutive ascending numbers form one run."""
    runs: list[Run] = []
    for row in rows:
        if runs and row == runs[-1][1]:
            runs[-1] = (runs[-1][0], row + 1)
        else:
            runs.append((row, row + 1))
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
        at = bisect_right(self._starts, row) - 1
        return max(row, self.runs[at][1]) if at >= 0 else row


class Part(Struct, omit_defaults=True):
    """One committed part: `runs` are its rows in written order, `at` is the place of the first of
    them in `file`.

    `failed` are its error rows, `errors` their number by type. `skipped` rows are left out of the
    output, failed or not; `dropped` rows are no longer done. `check` is the sum of the digests of
    the rows' requests, which tells whether a stream that is read again is the same; None if it is
    unknown. `checksum` is that of the file.
    """

    file: str
    runs: list[Run]
    at: int = 0
    failed: list[Run] = []
    errors: dict[str, int] = {}
    dropped: list[Run] = []
    check: int | None = 0
    skipped: list[Run] = []
    checksum: int = 0

    @property
    def rows(self) -> int:
        """The number of rows in the file, dropped ones included."""
        return size(self.runs)

    def absent(self, *, without_failed: bool) -> list[Run]:
        """The rows of the file that are not in the output. `without_failed`: failed rows are
        not.
        """
        return union(self.dropped, self.skipped, self.failed if without_failed else [])

    @property
    def left_out(self) -> list[Run]:
        """The rows that were answered and that a filter keeps from the output."""
        return list(without(self.skipped, union(self.failed, self.dropped)))


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Part).decode


class PartList:
    """The parts of generation `generation` in the state directory `folder`.

    `write` is `os.write`, so that tests can let it fail. All methods raise `OutputError`.
    """

    def __init__(
        self, folder: Path, generation: int, key: int, write: Callable[[int, bytes], int] = os.write
    ) -> None:
        self.path = folder / f"parts-{generation}.jsonl"
        self._folder = folder
        self._key = key
        self._write = write
        self._records = Records(self.path, key)

    @property
    def lost(self) -> int:
        """How many records were damaged or missing when the list was read."""
        return self._records.lost

    @property
    def mark(self) -> int:
        """The checksum of the list, which changes no more when the job is complete."""
        return guarded(checksum_of, self.path) if self.path.exists() else 0

    def read(self) -> list[Part]:
        """The parts whose records are sound, first to last."""
        return [_decode(record) for record in self._records.read()] if self.path.exists() else []

    def cut(self) -> None:
        """Cut off a torn end, once it was read."""
        if self.path.exists():
            self._records.cut()

    def append(self, part: Part) -> None:
        """Commit a part. Its file must be on disk."""
        new = not self.path.exists()
        descriptor = guarded(
            private_files.opener, self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND
        )
        try:
            write_all(descriptor, self._records.seal(_encode(part)), self._write)
            guarded(os.fsync, descriptor)
        finally:
            os.close(descriptor)
        if new:
            sync_folder(self._folder)

    def replace(self, parts: Iterable[Part]) -> None:
        """Write the whole list anew, atomically."""
        fresh = Records(self.path, self._key)
        replace_file(self.path, b"".join(fresh.seal(_encode(part)) for part in parts), self._write)
        self._records = fresh

    def damaged_files(self, parts: Iterable[Part]) -> dict[str, str]:
        """The files of parts that are damaged or gone, and what is wrong with each."""
        bad: dict[str, str] = {}
        for part in {part.file: part for part in parts}.values():
            path = self._folder / part.file
            try:
                if checksum_of(path) != part.checksum:
                    bad[part.file] = "is damaged"
            except FileNotFoundError:
                bad[part.file] = "is gone"
            except OSError as error:
                bad[part.file] = f"cannot be read ({error.strerror or error})"
        return bad


class PartWriter(ABC):
    """Writes one part: output rows in the job's form. The file is complete and on disk before it
    gets its name. `nbytes` is about its size so far. Raises `OutputError`.
    """

    def __init__(self, path: Path) -> None:
        self.nbytes = 0
        self._path = path
        self._temporary = path.with_name(path.name + ".tmp")

    @abstractmethod
    def add(self, row: Row, outcome: Outcome) -> None: ...

    @abstractmethod
    def complete(self) -> None:
        """Write the rest, and force the file to disk. May raise `OSError`."""

    def finish(self) -> None:
        """Put the part in place under its name. May run in another thread."""
        try:
            self.complete()
            os.replace(self._temporary, self._path)
        except OSError as error:
            self.abandon()
            raise unwritten(error) from error

    def abandon(self) -> None:
        with contextlib.suppress(OSError):  # the next run removes it
            self._temporary.unlink(missing_ok=True)


def unwritten(error: OSError) -> OutputError:
    """The error of a part that cannot be written."""
    return OutputError(f"the results cannot be written: {error.strerror or error}")


class Segment(NamedTuple):
    """`length` rows of `file` from place `at` on; the first is row number `start` of the input."""

    start: int
    length: int
    file: str
    at: int


def segments(
    parts: Iterable[Part], *, keep_order: bool, without_failed: bool = False
) -> Iterable[Segment]:
    """The rows of the output in their order: that of the input, or that of the parts.

    `without_failed`: only the rows that did not fail.
    """
    absent = ((part, part.absent(without_failed=without_failed)) for part in parts)
    return _segments(absent, keep_order)


def failed_segments(parts: Iterable[Part], *, keep_order: bool) -> Iterable[Segment]:
    """The rows that failed, in the same order, without those that are skipped."""
    absent = (
        (part, union(without(part.runs, part.failed), part.dropped, part.skipped)) for part in parts
    )
    return _segments(absent, keep_order)


def _segments(parts: Iterable[tuple[Part, list[Run]]], keep_order: bool) -> Iterable[Segment]:
    found = (segment for part, absent in parts for segment in _part_segments(part, absent))
    return sorted(found) if keep_order else found


def _part_segments(part: Part, absent: list[Run]) -> Iterator[Segment]:
    at = part.at
    for start, stop in part.runs:
        for first, last in without([(start, stop)], absent):
            yield Segment(first, last - first, part.file, at + first - start)
        at += stop - start
