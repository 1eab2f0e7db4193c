"""Rows from CSV, read as streams. A damaged record becomes a faulty row that names its file and
line.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, TextIO, cast

from penstock.batch.read.base import Source, first_of, twice_in
from penstock.batch.read.files import DataFile, contains, fingerprint, reading
from penstock.batch.read.json_lines import batched
from penstock.batch.read.lines import MAX_LINE, check_text
from penstock.batch.rows.row import Row
from penstock.errors import InputError

_PREVIEW_ROWS = 64
_MAX_FIELD = 1 << 24  # csv's own limit of 128 KiB is less than one long document
_NO_END = "a quote that begins here has no end"
_MALFORMED = (
    f"a quote stands in the wrong place, or a field is longer than {_MAX_FIELD >> 20} Mi characters"
)


class Csv(Source):
    """CSV files with a header line each. Every value is text; fields that a row lacks are null."""

    json_values = True

    def __init__(self, name: str, files: list[DataFile]) -> None:
        self.name = name
        self._files = files
        self.fingerprint = fingerprint(name, files)
        with files[0].open() as file:
            self.columns = tuple(_header(_records(file, files[0].path), files[0].path))
        preview = list(
            itertools.islice(itertools.chain.from_iterable(self.batches()), _PREVIEW_ROWS)
        )
        self.first = first_of(preview)

    def reads(self, path: str) -> bool:
        return contains(self._files, path, self.name)

    def batches(self, start: int = 0, columns: Sequence[str] | None = None) -> Iterator[list[Row]]:
        return batched(itertools.islice(self._read(), start, None))

    def _read(self) -> Iterator[Row]:
        index = itertools.count()
        for file in self._files:
            with file.open() as stream:
                records = _records(stream, file.path)
                header = _header(records, file.path)
                blank = dict.fromkeys(header)
                for line, fields, fault in records:
                    if fault is None and len(fields) > len(header):
                        fault = f"{len(fields)} fields where the header has {len(header)}"
                    if fault is not None:
                        yield Row(next(index), None, f"{file.path}:{line}: {fault}")
                        continue
                    values: dict[str, Any] = dict(zip(header, fields, strict=False))
                    if len(fields) < len(header):
                        values = {**blank, **values}
                    yield Row(next(index), values, None, sum(map(len, fields)))
            file.check_unchanged()


_Record = tuple[int, list[str], str | None]


def _header(records: Iterator[_Record], path: str) -> list[str]:
    """The names of the columns; none where the file is empty. Raises `InputError`."""
    for line, names, fault in records:
        if fault is not None:
            raise InputError(f"{path}:{line}: {fault}")
        if len(names) == 1 and not names[0].strip():
            continue  # a blank line
        twice = twice_in(names)
        if twice is not None:
            raise InputError(f"{path}: two columns of its header have the same name, '{twice}'")
        return names
    return []


def _records(stream: BinaryIO, path: str) -> Iterator[_Record]:
    """Line number, fields and fault of each record, the header included."""
    allow_long_fields()
    with reading(path):
        source = io.BufferedReader(cast(io.RawIOBase, stream))
        check_text(source.peek(64), path)
        # Bytes that are no UTF-8 come through as lone surrogates, so that one bad row is not the
        # end of the file.
        with io.TextIOWrapper(
            source, encoding="utf-8-sig", errors="surrogateescape", newline=""
        ) as text:
            # Strict, so that a quote without end is an error and not one long field that swallows
            # the rows after it.
            lines = _Lines(text)
            reader = csv.reader(lines, strict=True)
            while True:
                begin = reader.line_num + 1
                try:
                    fields = next(reader)
                except StopIteration:
                    return
                except _TooLongError:
                    yield begin, [], f"the line is longer than {MAX_LINE >> 20} Mi characters"
                    continue
                except csv.Error:
                    yield begin, [], f"malformed CSV: {_NO_END if lines.ended else _MALFORMED}"
                    continue
                if fields:
                    yield reader.line_num, fields, None if _is_sound(fields) else "invalid UTF-8"


class _TooLongError(Exception):
    pass


class _Lines:
    """Lines of text. In the place of one longer than `MAX_LINE` it raises `_TooLongError`, and goes
    on after it.
    """

    def __init__(self, text: TextIO) -> None:
        self._readline = text.readline
        self.ended = False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._readline(MAX_LINE)
        if not line:
            self.ended = True
            raise StopIteration
        if len(line) == MAX_LINE and line[-1] not in "\r\n":
            while line and line[-1] not in "\r\n":
                line = self._readline(MAX_LINE)
            raise _TooLongError
        return line


def allow_long_fields() -> None:
    """Let the csv module read fields as long as a document."""
    if csv.field_size_limit() < _MAX_FIELD:
        csv.field_size_limit(_MAX_FIELD)


def _is_sound(fields: list[str]) -> bool:
    try:
        "".join(fields).encode()
    except UnicodeEncodeError:
        return False
    return True
