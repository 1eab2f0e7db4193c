"""Rows of a stream that come again: are they those that the journal, or the manifest of a complete
job, knows?
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from hashlib import blake2b

from penstock.batch.read.feed import read_ahead
from penstock.batch.read.sources import Source
from penstock.batch.rows.row import Row
from penstock.batch.values.plain import json_line
from penstock.batch.write.journal import Journal, digest_key
from penstock.batch.write.manifest import StreamSum
from penstock.errors import JobMismatchError


class Replay:
    """Checks that a stream which is read again, and has no fingerprint, is the one that the journal
    knows.
    """

    def __init__(self, journal: Journal | None, source: Source) -> None:
        self._journal = journal
        self._expected = journal.check if journal is not None and journal.done.runs else None
        self._last = (
            journal.done.runs[-1][1] - 1 if journal is not None and journal.done.runs else -1
        )
        self._sum = 0
        self.wanted = source.fingerprint is None and self._expected is not None

    def compare(self, row: Row) -> None:
        """Take a row that was done in an earlier run, prepared again."""
        if self.wanted:
            self._sum += digest_key(row.digest)
            if row.index == self._last and self._sum % (1 << 64) != self._expected:
                raise other_rows(row.index)

    def finish(self) -> None:
        """The stream has ended: it must not have ended too soon."""
        if self.wanted and self._sum % (1 << 64) != self._expected:
            raise other_rows(self._last)
        if self._journal is not None and self._journal.pending:
            raise other_rows(max(self._journal.pending))


def add_row(total: StreamSum, row: Row) -> None:
    """Add a row, as it would stand in the output, to the sum of its stream."""
    try:
        data = json_line(row.values) if row.values is not None else b""
    except Exception:  # values of the caller's own types can fail in any way
        data = b""
    key = digest_key(blake2b(b"%d:" % row.index + data, digest_size=8).digest())
    total.rows += 1
    total.digest = (total.digest + key) % (1 << 56)


async def compare_stream(
    source: Source, limit: int | None, columns: Sequence[str] | None, expected: StreamSum | None
) -> None:
    """Raise `JobMismatchError` unless the stream gives the rows that a complete job read. None: it
    is not known.
    """
    if expected is None:
        return
    found = StreamSum(0, 0)
    async with contextlib.aclosing(read_ahead(source, 0, limit, columns)) as batches:
        async for batch in batches:
            for row in batch:
                add_row(found, row)
    if found != expected:
        raise other_rows(min(found.rows, expected.rows))


def other_rows(index: int) -> JobMismatchError:
    """The error that says so; rows up to number `index` were compared."""
    return JobMismatchError(
        f"the input is not the one this job began with: up to row {index} its rows differ. "
        "Give another output, or --fresh to discard what was done",
        {"input": ("the rows read earlier", "other rows")},
    )
