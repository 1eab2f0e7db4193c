"""Rows on their way in: prepared, compared with those of an earlier run, and put in order.

The order is that in which the rows of a window enter the engine. Rows whose prompts begin alike go
one after another, so that the shared beginning is computed once and is still in the engine's prefix
cache. Rows with long answers go first, so that none of them runs on alone at the end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from hashlib import blake2b
from operator import attrgetter

from penstock.batch.read.sources import Source, read_ahead
from penstock.batch.rows.row import Outcome, Row, RowForm
from penstock.batch.values.plain import json_line
from penstock.batch.write.journal import Journal, digest_key
from penstock.batch.write.manifest import StreamSum
from penstock.errors import (
    InputError,
    JobMismatchError,
    PenstockError,
    RequestError,
    class_and_text,
)

FIRST_WINDOW = 64
LARGEST_WINDOW = 4096
_SHORTEST = 64  # characters; a shorter beginning is less than a cache block
_WORTHWHILE = 0.05  # of all prompt text
_SAMPLES = 256


def prepare(form: RowForm, row: Row) -> Outcome | None:
    """Let the form make the row's request. Returns the row's outcome if that fails."""
    if row.sound is None:
        return form.failure(row, InputError(row.fault or "the row cannot be read"), "read", 0)
    if row.failed_before is not None:
        return Outcome(error=row.failed_before)
    try:
        if row.failure is not None:
            raise row.failure
        form.prepare(row)
    except PenstockError as error:
        return form.failure(row, error, form.preparing, 0)
    except Exception as error:  # values of the caller's own types can fail in any way
        return form.failure(row, RequestError(class_and_text(error)), form.preparing, 0)
    return None


class Replay:
    """Compares a stream without fingerprint, row by row, with the stream that the journal knows."""

    def __init__(self, journal: Journal | None, source: Source) -> None:
        self._journal = journal
        runs = journal.done.runs if journal is not None else ()
        self._expected = journal.check if journal is not None and runs else None
        self._last = runs[-1][1] - 1 if runs else -1
        self._sum = 0
        self.wanted = source.fingerprint is None and self._expected is not None

    def compare(self, row: Row) -> None:
        """Compare a row that was done in an earlier run, and is prepared again."""
        if self.wanted:
            self._sum += digest_key(row.digest)
            if row.index == self._last and self._sum % (1 << 64) != self._expected:
                raise other_rows(row.index)

    def finish(self) -> None:
        """The stream has ended. Raises if it has fewer rows than before."""
        if self.wanted and self._sum % (1 << 64) != self._expected:
            raise other_rows(self._last)
        if self._journal is not None and self._journal.pending:
            raise other_rows(max(self._journal.pending))


def add_row(total: StreamSum, row: Row) -> None:
    """Add a row, as it would be in the output, to the sum of its stream."""
    try:
        data = b"" if (values := row.sound) is None else json_line(values)
    except Exception:  # values of the caller's own types can fail in any way
        data = b""
    key = digest_key(blake2b(b"%d:" % row.index + data, digest_size=8).digest())
    total.rows += 1
    total.digest = (total.digest + key) % (1 << 56)


async def compare_stream(
    source: Source, limit: int | None, columns: Sequence[str] | None, expected: StreamSum | None
) -> None:
    """Raise `JobMismatchError` unless the stream has the rows that a complete job read. `expected`
    None: they are unknown.
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
    """The error for a stream with other rows; the rows before number `index` were compared."""
    return JobMismatchError(
        f"the input is not the one this job began with: up to row {index} its rows differ. "
        "Give another output, or --fresh to discard what was done",
        {"input": ("the rows read earlier", "other rows")},
    )


def other_requests(index: int) -> JobMismatchError:
    """The error of a row that asks for something else now, though its files are the same."""
    return JobMismatchError(
        f"row {index} no longer asks for what it was answered. Files that rows name have changed,"
        " `preprocess` gives other columns than before, or this version of Penstock makes other"
        " requests of the same rows: finish the job with the one that began it, give another"
        " output, or --fresh to discard what was done",
        {"requests": ("those of the answers", "others")},
    )


def by_prefix(rows: Sequence[Row]) -> list[Row]:
    """The rows with equal beginnings together; in their own order if that would gain nothing.

    The beginning that all prompts share (of a template, a system prompt) does not count: it is
    cached in any order.
    """
    arranged = sorted(rows, key=attrgetter("prefix"))  # stable: equal prompts keep their order
    if len(arranged) < 3:
        return list(rows)
    common = shared(arranged[0].prefix, arranged[-1].prefix)
    before, total = _gain(rows, common)
    after, _ = _gain(arranged, common)
    return arranged if after - before > _WORTHWHILE * total else list(rows)


def in_order(rows: Sequence[Row]) -> list[Row]:
    """The rows in the order to ask them: by the size of their answers, then by prefix."""
    arranged = by_prefix(rows)
    if len({row.longest.bit_length() for row in arranged}) > 1:
        arranged.sort(key=lambda row: -row.longest.bit_length())  # stable
    return arranged


def by_length(rows: Sequence[Row]) -> list[Row]:
    """The rows from the longest to the shortest: an engine that pads texts to one length pads
    neighbours little.
    """
    return sorted(rows, key=lambda row: -len(row.prefix))


def shared(first: str, second: str) -> int:
    """How many characters two texts have in common at their beginnings."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first.startswith(second[low:middle], low):
            low = middle
        else:
            high = middle - 1
    return low


def _gain(rows: Sequence[Row], common: int) -> tuple[int, int]:
    """Over a sample of neighbours: characters they share beyond `common`, and all characters."""
    gain = total = 0
    least = common + _SHORTEST
    pairs = len(rows) - 1
    samples = min(pairs, _SAMPLES)
    for number in range(samples):
        at = number * pairs // samples
        one, other = rows[at].prefix, rows[at + 1].prefix
        total += len(other)
        if len(other) >= least and one.startswith(other[:least]):
            gain += shared(one, other) - common
    return gain, total
