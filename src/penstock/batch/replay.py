"""Rows that come again when a job resumes: are they those that the journal knows?"""

from __future__ import annotations

from penstock.batch.journal import Journal, digest_key
from penstock.batch.rows import Row
from penstock.batch.sources.base import Source
from penstock.errors import JobMismatchError


class Replay:
    """Checks that a stream which is read again, and has no fingerprint, is the one that the journal knows."""

    def __init__(self, journal: Journal | None, source: Source) -> None:
        self._journal = journal
        self._expected = journal.check if journal is not None and journal.done.runs else None
        self._last = journal.done.runs[-1][1] - 1 if journal is not None and journal.done.runs else -1
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


def other_rows(index: int) -> JobMismatchError:
    """The error that says so; rows up to number `index` were compared."""
    return JobMismatchError(
        f"the input is not the one this job began with: up to row {index} its rows differ. "
        "Give another output, or --fresh to discard what was done",
        {"input": ("the rows read earlier", "other rows")},
    )
