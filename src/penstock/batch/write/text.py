"""JSON lines and CSV: the parts of a job, and the output made of them."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import msgspec

from penstock import private_files
from penstock.batch.read.text import CSV_LIMIT
from penstock.batch.rows.row import Outcome, Row, RowForm
from penstock.batch.write.parts import PartWriter, Segment, unwritten
from penstock.batch.write.state_files import to_disk
from penstock.errors import OutputError

_AT_ONCE = 256
_MOST_COLUMNS = 1000
"""The most columns of one object. More keys are data: a table would have rows × keys cells."""


class JsonlWriter(PartWriter):
    """A part of JSON lines."""

    def __init__(self, path: Path, form: RowForm) -> None:
        super().__init__(path)
        self._form = form
        try:
            # closed in complete
            self._file = open(  # noqa: SIM115
                self._temporary, "wb", buffering=1 << 18, opener=private_files.opener
            )
        except OSError as error:
            raise unwritten(error) from error

    def add(self, row: Row, outcome: Outcome) -> None:
        line = self._form.line(row, outcome)
        self.nbytes += len(line)
        try:
            self._file.write(line)
        except OSError as error:
            raise unwritten(error) from error

    def complete(self) -> None:
        to_disk(self._file)
        self._file.close()

    def abandon(self) -> None:
        # The last bytes may not fit on the disk, and nobody will read the file.
        with contextlib.suppress(OSError):
            self._file.close()
        super().abandon()


def write_jsonl(target: Path, folder: Path, rows: Iterable[Segment]) -> None:
    """Write JSON lines, copied unchanged."""
    with open(target, "wb", buffering=1 << 18, opener=private_files.opener) as out:
        for lines in _lines(folder, rows):
            out.writelines(lines)
        to_disk(out)


def write_csv(
    target: Path, folder: Path, rows: Callable[[], Iterable[Segment]], columns: Iterable[str]
) -> None:
    """Write CSV. Objects become columns with dotted names, lists become JSON. `columns` are there
    even if there are no rows.

    The objects of a column stay JSON in three cases: a dotted name would be that of another column
    of the row; they have more than 1,000 keys in all rows; or other rows of the column hold another
    value, such as JSON that an earlier run made of objects.
    """
    names, whole = _csv_columns(_objects(folder, rows()), columns, frozenset())
    if whole:
        names, _ = _csv_columns(_objects(folder, rows()), columns, whole)
    with open(target, "w", encoding="utf-8", newline="", opener=private_files.opener) as out:
        writer = csv.writer(_LineFeeds(out))
        writer.writerow(names)
        for values in _objects(folder, rows()):
            flat = dict(_flat(values, whole))
            writer.writerow([_cell(flat.get(name)) for name in names])
        to_disk(out)


class _LineFeeds:
    """Passes on the lines of a `csv.writer`, with a line feed at their end. The writer must use
    CR LF itself: before Python 3.13 it quotes only the characters of its own line end, and an
    unquoted carriage return would end a row.
    """

    def __init__(self, out: TextIO) -> None:
        self._write = out.write

    def write(self, line: str) -> None:
        self._write(f"{line[:-2]}\n")


def _objects(folder: Path, rows: Iterable[Segment]) -> Iterator[dict[str, Any]]:
    for lines in _lines(folder, rows):
        for line in lines:
            yield msgspec.json.decode(line)


def _csv_columns(
    rows: Iterable[dict[str, Any]], columns: Iterable[str], whole: frozenset[str]
) -> tuple[list[str], frozenset[str]]:
    """The columns of the CSV, and the columns whose objects stay JSON (see `write_csv`)."""
    filled = dict.fromkeys(columns, False)
    owners: dict[str, str] = {}  # by dotted name, the column whose objects have it
    others: set[str] = set()  # columns with values that are not objects
    unfit: set[str] = set()
    for values in rows:
        flat: list[tuple[str, Any]] = []
        for column, value in values.items():
            if isinstance(value, dict) and value and column not in whole:
                parts = list(_flat(value, prefix=f"{column}."))
                owners.update((name, column) for name, _ in parts)
                flat += parts
            else:
                flat.append((column, value))
                if value is not None and value != {}:
                    others.add(column)
        for name, value in flat:
            filled[name] = filled.get(name, False) or value is not None
        if len(dict(flat)) < len(flat):
            unfit.update(_clashing(values))
    counts = Counter(owners.values())
    unfit.update(name for name in counts if counts[name] > _MOST_COLUMNS or name in others)
    # A column that is null in some rows and an object in others has the object's fields as columns.
    objects = {name[:dot] for name in filled for dot in _dots(name)[:-1]}
    places = {name: place for place, name in enumerate(filled)}
    names = [name for name, has_value in filled.items() if has_value or name not in objects]
    names.sort(key=lambda name: min(places.get(name[:dot], places[name]) for dot in _dots(name)))
    return names, frozenset(unfit)


def _clashing(values: dict[str, Any]) -> Iterator[str]:
    """The columns whose objects have dotted names that other columns of the row have."""
    owners: dict[str, str] = {}
    for column, value in values.items():
        for name, _ in _flat({column: value}):
            if name in owners:
                yield from (
                    each for each in (column, owners[name]) if isinstance(values[each], dict)
                )
            owners[name] = column


def _dots(name: str) -> list[int]:
    return [*(place for place, letter in enumerate(name) if letter == "."), len(name)]


def _flat(
    values: dict[str, Any], whole: frozenset[str] = frozenset(), prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value and name not in whole:
            yield from _flat(value, prefix=f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _lines(folder: Path, rows: Iterable[Segment]) -> Iterator[list[bytes]]:
    """The lines of these rows, in lists. Each file is read from its first line to its last, so its
    segments must be in ascending order.
    """
    opened: dict[str, tuple[io.BufferedReader, int]] = {}
    try:
        for segment in rows:
            if segment.file in opened:
                file, place = opened.pop(segment.file)
            else:
                file, place = open(folder / segment.file, "rb"), 0  # noqa: SIM115 (closed below)
            for _ in range(segment.at - place):
                file.readline()
            left = segment.length
            while left:
                lines = list(itertools.islice(file, min(left, _AT_ONCE)))
                if not lines:
                    end = segment.start + segment.length
                    raise OutputError(f"{segment.file}: the file ends before row {end}")
                yield lines
                left -= len(lines)
            if file.peek(1):
                opened[segment.file] = file, segment.at + segment.length
            else:
                file.close()  # a job may have more parts than a process may have open files
    finally:
        for file, _ in opened.values():
            file.close()


def csv_to_jsonl(source: Path, target: Path, rows: int) -> None:
    """Write the rows of a CSV output as JSON lines of text, which make the same CSV again.

    Raises `OutputError` if there are not `rows` rows.
    """
    encode = msgspec.json.Encoder().encode
    count = 0
    with (
        open(source, encoding="utf-8", newline="") as written,
        open(target, "wb", buffering=1 << 18, opener=private_files.opener) as out,
    ):
        for values in dicts_of(written):
            count += 1
            out.write(encode({name: value or None for name, value in values.items()}) + b"\n")
        to_disk(out)
    if count != rows:
        raise OutputError(
            f"the CSV has {count:,} rows where the job wrote {rows:,}, so they cannot be told"
            " apart; --fresh computes all of them again"
        )


def dicts_of(written: TextIO) -> Iterator[dict[str, str]]:
    """The rows of a CSV output, however long its fields are."""
    rows = csv.DictReader(written)
    while True:
        with CSV_LIMIT:
            limit = csv.field_size_limit(sys.maxsize)
            try:
                values = next(rows, None)
            finally:
                csv.field_size_limit(limit)  # the limit applies to the whole process
        if values is None:
            return
        yield values
