"""Rows from JSON lines, read as streams. A damaged line becomes a faulty row that names its file
and line.
"""

from __future__ import annotations

import codecs
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

import msgspec

from penstock.batch.read.base import BATCH_BYTES, BATCH_ROWS, Source, columns_of, first_of
from penstock.batch.read.files import DataFile, contains, fingerprint, reading
from penstock.batch.read.lines import MAX_LINE, lines_of
from penstock.batch.rows.row import Row
from penstock.errors import InputError
from penstock.parsing import MAX_NESTING, TOO_DEEP, is_too_deep, json_fault

_PREVIEW_ROWS = 64
_STDIN = 0
_TOO_LONG = f"the line is longer than {MAX_LINE >> 20} MiB"


class JsonLines(Source):
    """Files of JSON objects, one a line. Empty lines do not count."""

    json_values = True

    def __init__(self, name: str, files: list[DataFile]) -> None:
        self.name = name
        self._files = files
        self.fingerprint = fingerprint(name, files)
        preview = list(
            itertools.islice(itertools.chain.from_iterable(self.batches()), _PREVIEW_ROWS)
        )
        _refuse_array(preview, files)
        self.columns = columns_of(preview)
        self.first = first_of(preview)

    def reads(self, path: str) -> bool:
        return contains(self._files, path, self.name)

    def batches(self, start: int = 0, columns: Sequence[str] | None = None) -> Iterator[list[Row]]:
        return batched(_parsed(_lines(self._files), start))


class JsonStream(Source):
    """JSON lines from an open stream such as stdin, which can be read once."""

    json_values = True

    def __init__(self, name: str, stream: BinaryIO) -> None:
        self.name = name
        self._rows = _parsed(_read(stream, name))
        # No more: the next line may be long in coming.
        self._preview = list(itertools.islice(self._rows, 1))
        self.columns = columns_of(self._preview)
        self.first = first_of(self._preview)

    def every_column(self) -> None:
        return None

    def batches(self, start: int = 0, columns: Sequence[str] | None = None) -> Iterator[list[Row]]:
        rows = itertools.chain(self._preview, self._rows)
        return ([row] for row in itertools.islice(rows, start, None))


_Lines = tuple[str, int, list[bytes | None]]  # path, number of the first line, lines


def _lines(files: list[DataFile]) -> Iterator[_Lines]:
    for file in files:
        with file.open() as stream:
            yield from _read(stream, file.path)
        file.check_unchanged()


def _read(stream: BinaryIO, path: str) -> Iterator[_Lines]:
    number = 1
    with reading(path):
        for lines in lines_of(stream, path):
            if number == 1 and lines[0] is not None:
                lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
            yield path, number, lines
            number += len(lines)


def _parsed(blocks: Iterable[_Lines], start: int = 0) -> Iterator[Row]:
    decode = msgspec.json.Decoder().decode
    short = 2 * MAX_NESTING  # an array or object takes two bytes at least
    index = 0
    for path, first, lines in blocks:
        for number, line in enumerate(lines, first):
            if line is None:
                if index >= start:
                    yield Row(index, None, f"{path}:{number}: {_TOO_LONG}")
                index += 1
                continue
            if not line or line.isspace():
                continue
            if index >= start:
                try:
                    values = decode(line)
                except (msgspec.DecodeError, ValueError, RecursionError) as error:
                    yield Row(index, None, f"{path}:{number}: {_fault(error, line)}", len(line))
                else:
                    size = len(line)
                    if not isinstance(values, dict):
                        yield Row(index, None, f"{path}:{number}: not a JSON object", size)
                    elif size > short and _may_be_deep(line) and is_too_deep(values):
                        yield Row(index, None, f"{path}:{number}: {TOO_DEEP}", size)
                    else:
                        yield Row(index, values, None, size)
            index += 1


def _fault(error: Exception, line: bytes) -> str:
    return TOO_DEEP if isinstance(error, RecursionError) else f"malformed JSON: {json_fault(line)}"


def _may_be_deep(line: bytes) -> bool:
    return line.count(b"[") + line.count(b"{") > MAX_NESTING


def _refuse_array(preview: list[Row], files: list[DataFile]) -> None:
    """Raise `InputError` if the first file holds one JSON array in the place of lines."""
    if not preview or preview[0].values is not None:
        return
    path, _, lines = next(_lines(files))
    first = next((line for line in lines if line and not line.isspace()), b"").strip()
    if not first.startswith(b"["):
        return
    try:
        msgspec.json.decode(first)
    except (msgspec.DecodeError, ValueError, RecursionError):
        pass  # it goes on in the next line
    else:
        if any(row.values is not None for row in preview):
            return  # a bad row among good ones
    raise InputError(
        f"{path}: is a JSON array, not JSON objects, one a line; jq -c '.[]' makes such lines"
    )


def batched(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Rows in lists of bounded size."""
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
    """JSON lines from standard input. Raises `InputError` if it is closed."""
    if sys.stdin is None:
        raise InputError("standard input is closed")
    with reading("stdin"):
        # Not sys.stdin: the thread that waits for its next line holds its lock, on which the
        # interpreter's end would fail.
        stream = open(_STDIN, "rb", closefd=False)  # noqa: SIM115
    return JsonStream("stdin", stream)
