"""Sinks: where finished rows go while a job runs (memory, standard output, journal and parts)."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

from penstock.batch.rows.row import Outcome, Row, RowForm
from penstock.batch.write.journal import Journal, digest_key
from penstock.batch.write.parts import Part, PartWriter, RowSet, in_order, union
from penstock.batch.write.state_files import checksum_of
from penstock.errors import OutputError, PenstockError

PART_ROWS = 8192
PART_BYTES = 16 << 20
_MOST_PARTS = 4
"""The rows of how many parts may gather while one part is being committed."""

T = TypeVar("T")


class Sink(ABC):
    """Takes finished rows in any order. All its methods raise `OutputError`.

    The flow sets two functions before the first row: `fail` takes an error that occurs between
    calls, `on_room` is called when the sink is no longer `full`. While it is `full`, no further row
    may start.
    """

    fail: Callable[[PenstockError], None]
    full = False
    on_room: Callable[[], None]

    @abstractmethod
    def put(self, row: Row, outcome: Outcome, *, journaled: bool = False) -> list[Row]:
        """Take a row. Returns the rows that are no longer held in memory. `journaled`: the row is
        in the journal already.
        """

    async def finish(self) -> None:  # noqa: B027 (there may be nothing left)
        """All rows have come: write the rest."""

    async def close(self) -> None:  # noqa: B027 (there may be nothing to keep)
        """No more rows will come, but rows may be missing: keep the rows that are done."""

    def _or_fail(self, flush: Callable[[], None]) -> None:
        try:
            flush()
        except OutputError as error:
            self.fail(error)


class Reorder(Generic[T]):
    """Brings items into the order of the input, by row number, or lets them pass as they come.

    `done` are rows that were written earlier and will not come.
    """

    def __init__(self, done: RowSet, *, keep_order: bool) -> None:
        self._done = done
        self._keep_order = keep_order
        self._next = done.first_missing()
        self._held: dict[int, T] = {}

    def waiting(self) -> Iterator[T]:
        """Items that wait for an earlier row."""
        return iter(self._held.values())

    def put(self, index: int, item: T) -> list[T]:
        """Take one item. Returns the items whose turn has come."""
        if not self._keep_order:
            return [item]
        if index != self._next:
            self._held[index] = item
            return []
        ready = [item]
        self._next = self._done.first_missing(index + 1) if self._done.runs else index + 1
        while self._held and (following := self._held.pop(self._next, None)) is not None:
            ready.append(following)
            self._next = self._done.first_missing(self._next + 1)
        return ready


class MemorySink(Sink):
    """Keeps all rows in memory, in order. `items` are the rows with their outcomes."""

    def __init__(self, *, keep_order: bool) -> None:
        self.items: list[tuple[Row, Outcome]] = []
        self._reorder: Reorder[tuple[Row, Outcome]] = Reorder(RowSet(), keep_order=keep_order)

    def put(self, row: Row, outcome: Outcome, *, journaled: bool = False) -> list[Row]:
        ready = self._reorder.put(row.index, (row, outcome))
        self.items += [(row, outcome) for row, outcome in ready if not outcome.skipped]
        return [row for row, _ in ready]


class StreamSink(Sink):
    """Writes JSON lines to a stream, once a turn of the event loop."""

    def __init__(self, stream: BinaryIO, form: RowForm, *, keep_order: bool) -> None:
        self._stream = stream
        self._form = form
        self._reorder: Reorder[tuple[Row, Outcome]] = Reorder(RowSet(), keep_order=keep_order)
        self._lines: list[bytes] = []

    def put(self, row: Row, outcome: Outcome, *, journaled: bool = False) -> list[Row]:
        ready = self._reorder.put(row.index, (row, outcome))
        if ready and not self._lines:
            asyncio.get_running_loop().call_soon(self._or_fail, self._flush)
        self._lines += [self._form.line(*item) for item in ready if not item[1].skipped]
        return [row for row, _ in ready]

    async def finish(self) -> None:
        self._flush()

    close = finish

    def _flush(self) -> None:
        lines, self._lines = self._lines, []
        try:
            if lines:
                self._stream.write(b"".join(lines))
                self._stream.flush()
        except (OSError, ValueError) as error:  # ValueError: the stream was closed
            raise OutputError(f"standard output cannot be written: {error}") from error


class DurableSink(Sink):
    """Journals each row, and writes rows whose turn has come into part files.

    `make_writer` opens a part; `part_name` makes a file name from a stem. A part is committed in
    another thread while rows go into the next one. On a slow disk the sink is `full` when that next
    part has four times its usual size.
    """

    def __init__(
        self,
        journal: Journal,
        make_writer: Callable[[Path], PartWriter],
        part_name: Callable[[str], str],
        *,
        keep_order: bool,
    ) -> None:
        self.columnar = part_name("").endswith(".parquet")
        self._journal = journal
        self._make_writer = make_writer
        self._part_name = part_name
        self._reorder: Reorder[tuple[Row, Outcome]] = Reorder(journal.done, keep_order=keep_order)
        self._number = journal.parts
        self._part: _OpenPart | None = None
        self._committing: asyncio.Future[None] | None = None
        self._failure: PenstockError | None = None

    def put(self, row: Row, outcome: Outcome, *, journaled: bool = False) -> list[Row]:
        if not journaled and self._journal.add(row.index, row.digest, outcome, row.key):
            asyncio.get_running_loop().call_soon(self._or_fail, self._journal.flush)
        left: list[Row] = []
        for item in self._reorder.put(row.index, (row, outcome)):
            if self._part is None:
                self._part = self._open_part()
            self._part.add(*item)
            left.append(item[0])
        part = self._part
        if part is not None and part.is_full and self._failure is None:
            if self._committing is None:
                self._commit(part)
            else:
                self.full = part.is_large
        return left

    async def finish(self) -> None:
        await self._wait()
        if self._part is not None and self._failure is None:
            self._commit(self._part)
            await self._wait()
        if self._failure is not None:  # it occurred after the last row, when nobody listened
            raise self._failure

    async def close(self) -> None:
        await self._wait()
        if self._part is not None:
            self._part.writer.abandon()  # its rows are journaled
            self._part = None
        self._journal.sync()
        self._journal.close()

    async def _wait(self) -> None:
        """Wait until a commit that is under way has ended, with or without an error."""
        if self._committing is not None:
            await asyncio.wait([self._committing])

    def _open_part(self) -> _OpenPart:
        file = self._part_name(f"part-{self._journal.generation}-{self._number}")
        self._number += 1
        return _OpenPart(file, self._make_writer(self._journal.folder / file))

    def _commit(self, part: _OpenPart) -> None:
        waiting = (
            (row.index, row.digest, outcome, row.key) for row, outcome in self._reorder.waiting()
        )
        commit = self._journal.rotate(waiting)
        self._part = None

        def work() -> None:
            part.writer.finish()
            commit(part.record(self._journal.folder))

        self._committing = asyncio.get_running_loop().run_in_executor(None, work)
        self._committing.add_done_callback(self._committed)

    def _committed(self, done: asyncio.Future[None]) -> None:
        self._committing = None
        error = None if done.cancelled() else done.exception()
        if error is not None:
            if not isinstance(error, PenstockError):
                cause, error = error, OutputError(f"a part cannot be written: {error}")
                error.__cause__ = cause
            self._failure = error
            self.fail(self._failure)
        elif self.full:
            self.full = False
            self.on_room()


class _OpenPart:
    """A part that still grows, with the facts for its record."""

    def __init__(self, file: str, writer: PartWriter) -> None:
        self.file = file
        self.writer = writer
        self.is_full = False
        self._rows: list[int] = []
        self._failed: list[int] = []
        self._skipped: list[int] = []
        self._errors: Counter[str] = Counter()
        self._check = 0

    def add(self, row: Row, outcome: Outcome) -> None:
        self.writer.add(row, outcome)
        self._rows.append(row.index)
        self.is_full = len(self._rows) >= PART_ROWS or self.writer.nbytes >= PART_BYTES
        self._check += digest_key(row.digest)
        if outcome.skipped:
            self._skipped.append(row.index)
        if outcome.error is not None:
            self._failed.append(row.index)
            self._errors[outcome.error.type] += 1

    @property
    def is_large(self) -> bool:
        """Whether it has many times the rows or bytes of a full part."""
        return (
            len(self._rows) >= _MOST_PARTS * PART_ROWS
            or self.writer.nbytes >= _MOST_PARTS * PART_BYTES
        )

    def record(self, folder: Path) -> Part:
        """The record of the part. The file is read for its checksum, so it must be finished."""
        path = folder / self.file
        return Part(
            file=self.file,
            checksum=checksum_of(path),
            runs=in_order(self._rows),
            failed=union(in_order(self._failed)),
            skipped=union(in_order(self._skipped)),
            errors=dict(self._errors),
            check=self._check % (1 << 64),
        )
