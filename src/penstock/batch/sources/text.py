"""Rows from JSON lines and CSV, read as streams. A damaged line becomes a faulty row that names its file and line."""

from __future__ import annotations

import csv
import io
import itertools
import lzma
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import msgspec

from penstock.batch.rows import Row
from penstock.batch.sources.base import BATCH_BYTES, BATCH_ROWS, Source, columns_of, first_of
from penstock.batch.sources.files import DataFile, contains, fingerprint
from penstock.errors import InputError
from penstock.json_faults import json_fault

_PREVIEW_ROWS = 64
_MAX_FIELD = 1 << 24  # csv's own limit of 128 KiB is less than one long document
_BOM = b"\xef\xbb\xbf"
_STDIN = 0
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError)  # what files and their decompression raise


class JsonLines(Source):
    """Files of JSON objects, one a line. Empty lines do not count."""

    json_values = True

    def __init__(self, name: str, files: list[DataFile]) -> None:
        self.name = name
        self._files = files
        self.fingerprint = fingerprint(name, files)
        preview = list(itertools.islice(itertools.chain.from_iterable(self.batches()), _PREVIEW_ROWS))
        self.columns = columns_of(preview)
        self.first = first_of(preview)

    def reads(self, path: str) -> bool:
        return contains(self._files, path, self.name)

    def batches(self, start: int = 0, columns: Sequence[str] | None = None) -> Iterator[list[Row]]:
        return _batched(_parsed(_lines(self._files), start))


class JsonStream(Source):
    """JSON lines from an open stream such as stdin, which can be read once."""

    json_values = True

    def __init__(self, name: str, stream: BinaryIO) -> None:
        self.name = name
        self._rows = _parsed((name, number, line) for number, line in enumerate(stream, 1))
        self._preview = list(itertools.islice(self._rows, 1))  # no more: the next line may be long in coming
        self.columns = columns_of(self._preview)
        self.first = first_of(self._preview)

    def every_column(self) -> None:
        return None

    def batches(self, start: int = 0, columns: Sequence[str] | None = None) -> Iterator[list[Row]]:
        rows = itertools.chain(self._preview, self._rows)
        return ([row] for row in itertools.islice(rows, start, None))


class Csv(Source):
    """CSV files with a header line each. Every value is text; fields that a row lacks are null."""

    json_values = True

    def __init__(self, name: str, files: list[DataFile]) -> None:
        self.name = name
        self._files = files
        self.fingerprint = fingerprint(name, files)
        with files[0].open() as file:
            self.columns = tuple(next(_records(file, files[0].path), (0, [], None))[1])
        preview = list(itertools.islice(itertools.chain.from_iterable(self.batches()), _PREVIEW_ROWS))
        self.first = first_of(preview)

    def reads(self, path: str) -> bool:
        return contains(self._files, path, self.name)

    def batches(self, start: int = 0, columns: Sequence[str] | None = None) -> Iterator[list[Row]]:
        return _batched(itertools.islice(self._read(), start, None))

    def _read(self) -> Iterator[Row]:
        index = itertools.count()
        for file in self._files:
            with file.open() as stream:
                records = _records(stream, file.path)
                _, header, fault = next(records, (0, [], None))
                if fault or len(set(header)) < len(header):
                    raise InputError(f"{file.path}: {fault or 'two columns of its header have the same name'}")
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


def _lines(files: list[DataFile]) -> Iterator[tuple[str, int, bytes]]:
    for file in files:
        with file.open() as stream:
            try:
                for number, line in enumerate(stream, 1):
                    yield file.path, number, line
            except _DAMAGE as error:
                raise InputError(f"{file.path}: {error}") from error


def _parsed(lines: Iterable[tuple[str, int, bytes]], start: int = 0) -> Iterator[Row]:
    decode = msgspec.json.Decoder().decode
    index = 0
    for path, number, line in lines:
        if number == 1:
            line = line.removeprefix(_BOM)
        if line.isspace() or not line:
            continue
        if index >= start:
            try:
                values = decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError):
                yield Row(index, None, f"{path}:{number}: malformed JSON: {json_fault(line)}", len(line))
            else:
                if isinstance(values, dict):
                    yield Row(index, values, None, len(line))
                else:
                    yield Row(index, None, f"{path}:{number}: not a JSON object", len(line))
        index += 1


def _records(stream: BinaryIO, path: str) -> Iterator[tuple[int, list[str], str | None]]:
    """Line number, fields and fault of each record, the header included."""
    allow_long_fields()
    # Bytes that are no UTF-8 come through as lone surrogates, so that one bad row is not the end of the file.
    with io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        # Strict, so that a quote without end is an error and not one long field that swallows the rows after it.
        reader = csv.reader(text, strict=True)
        while True:
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield reader.line_num, [], f"malformed CSV: {error}"
                continue
            except _DAMAGE as error:
                raise InputError(f"{path}: {error}") from error
            if fields:
                yield reader.line_num, fields, None if _is_sound(fields) else "invalid UTF-8"


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


def _batched(rows: Iterator[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    nbytes = 0
    for row in rows:
        batch.append(row)
        nbytes += row.nbytes
        if len(batch) >= BATCH_ROWS or nbytes >= BATCH_BYTES:
            yield batch
            batch, nbytes = [], 0
    if batch:
        yield batch


def stdin() -> JsonStream:
    """JSON lines from standard input."""
    # Not sys.stdin: the thread that waits for its next line holds its lock, on which the interpreter's end would fail.
    return JsonStream("stdin", open(_STDIN, "rb", closefd=False))
