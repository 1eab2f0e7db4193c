"""Rows from JSON lines and CSV, read as streams: as they come, in bounded memory, in UTF-8 only.

A damaged line or record becomes a row with a fault, which names the file and line. If only some
text of it is not Unicode, it has its values too.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, TextIO, cast

import msgspec

from penstock.batch.read.compressed import MAGIC
from penstock.batch.read.file_source import FileSource
from penstock.batch.read.files import DataFile, reading
from penstock.batch.read.sources import (
    BATCH_BYTES,
    BATCH_ROWS,
    SEPARATORS,
    Stream,
    columns_of,
    first_of,
    first_repeated,
)
from penstock.batch.rows.row import Row
from penstock.errors import InputError
from penstock.parsing import MAX_NESTING, TOO_DEEP, is_too_deep, json_fault, other_encoding

MAX_LINE = 1 << 27
"""The longest line in bytes, which bounds memory. A longer line is one bad row."""

_BLOCK = 1 << 18
_OLD_LINE_END = re.compile(rb"\r[^\n]")
_CONTROL = re.compile(rb"[\0-\x08\x0e-\x1f]")
_LONE = re.compile("[\ud800-\udfff]")
_PREVIEW_ROWS = 64
_STDIN = 0
_TOO_LONG = f"the line is longer than {MAX_LINE >> 20} MiB"
_TOO_LONG_TEXT = f"the line is longer than {MAX_LINE >> 20} Mi characters"
_MAX_FIELD = 1 << 24  # csv's own limit of 128 KiB is less than one long document
CSV_LIMIT = threading.Lock()
"""Held while `csv.field_size_limit` is changed, which applies to the whole process."""
_SEPARATOR = re.compile(r'sep=([^\w"\s]|[\t ])\r?\n', re.ASCII)
"""The line before the header that tells Excel the separator (`sep=;`)."""
_TABS = re.compile(r"\.(tsv|tab)(\.\w+)?(\?.*)?$", re.IGNORECASE)
"""The end of a path or URL whose columns are parted by tabs; it may be compressed."""
_NO_END = "a quote that begins here has no end"
_MALFORMED = (
    f"a quote stands in the wrong place, or a field is longer than {_MAX_FIELD >> 20} Mi characters"
)
_NOT_UTF8 = (
    "invalid UTF-8. If the file has the code page of Windows, as Excel saves CSV,"
    " `iconv -f WINDOWS-1252 -t UTF-8` converts it"
)


class JsonLines(FileSource):
    """Files of JSON objects, one per line. Empty lines do not count."""

    json_values = True

    def __init__(self, name: str, files: list[DataFile]) -> None:
        super().__init__(name, files)
        preview = list(
            itertools.islice(itertools.chain.from_iterable(self.batches()), _PREVIEW_ROWS)
        )
        _refuse_array(preview, files)
        self.columns = columns_of(preview)
        self.first = first_of(preview)

    def every_column(self, needed: Iterable[str]) -> tuple[str, ...]:
        known = dict.fromkeys(self.columns)
        wanted = set(needed)
        batches = self.batches()
        while not wanted <= known.keys() and (batch := next(batches, None)) is not None:
            known.update(dict.fromkeys(columns_of(batch)))
        return tuple(known)

    def batches(self, start: int = 0, columns: Sequence[str] | None = None) -> Iterator[list[Row]]:
        return batched(_parsed(_blocks(self._files), start))


_Block = tuple[str, int, list[bytes | None]]  # path, number of the first line, lines


def _blocks(files: list[DataFile]) -> Iterator[_Block]:
    for file in files:
        with file.open() as stream:
            yield from _blocks_of(stream, file.path)
        file.check_unchanged()


def _blocks_of(stream: BinaryIO, path: str) -> Iterator[_Block]:
    number = 1
    with reading(path):
        for lines in lines_of(stream, path):
            if number == 1 and lines[0] is not None:
                lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
            yield path, number, lines
            number += len(lines)


def _parsed(blocks: Iterable[_Block], start: int = 0) -> Iterator[Row]:
    decode = msgspec.json.Decoder().decode
    short = 2 * MAX_NESTING  # an array or object takes at least two bytes
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
                except RecursionError:
                    yield Row(index, None, f"{path}:{number}: {TOO_DEEP}", len(line))
                except ValueError:
                    fault = f"{path}:{number}: malformed JSON: {json_fault(line)}"
                    yield Row(index, _mended(line), fault, len(line))
                else:
                    size = len(line)
                    if not isinstance(values, dict):
                        yield Row(index, None, f"{path}:{number}: not a JSON object", size)
                    elif (
                        size > short
                        and line.count(b"[") + line.count(b"{") > MAX_NESTING
                        and is_too_deep(values)
                    ):
                        yield Row(index, None, f"{path}:{number}: {TOO_DEEP}", size)
                    else:
                        yield Row(index, values, None, size)
            index += 1


def _mended(line: bytes) -> dict[str, Any] | None:
    """The object of a line, with U+FFFD for invalid UTF-8; None if more is wrong with the line."""
    if len(line) > _BLOCK:
        return None
    try:
        text = json.dumps(json.loads(line.decode(errors="replace")), ensure_ascii=False)
        values = msgspec.json.decode(_LONE.sub("\ufffd", text))
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) and not is_too_deep(values) else None


def _refuse_array(preview: list[Row], files: list[DataFile]) -> None:
    """Raise `InputError` if the first file holds a JSON array, or objects of several lines, in the
    place of lines.
    """
    if not preview or preview[0].values is not None:
        return
    path, _, lines = next(_blocks(files))
    first = next((line for line in lines if line and not line.isspace()), b"").strip()
    if first == b"{" and all(row.values is None for row in preview):
        raise InputError(
            f"{path}: is JSON whose objects take several lines, not one each; jq -c . makes such"
            " lines"
        )
    if not first.startswith(b"["):
        return
    try:
        msgspec.json.decode(first)
    except (ValueError, RecursionError):
        pass  # the array goes on in the next line
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


def stdin() -> Stream:
    """JSON lines from standard input. Raises `InputError` if standard input is closed."""
    if sys.stdin is None:
        raise InputError("standard input is closed")
    with reading("stdin"):
        # Not sys.stdin: the thread that waits for a line holds the lock of sys.stdin, and the
        # interpreter would fail on that lock at its end.
        stream = open(_STDIN, "rb", closefd=False)  # noqa: SIM115
    return Stream(_parsed(_blocks_of(stream, "stdin")), "stdin", json_values=True)


class Csv(FileSource):
    """CSV files with a header line each, which shows the separator. Every value is text; fields
    that a row lacks are null.
    """

    json_values = True

    def __init__(self, name: str, files: list[DataFile]) -> None:
        super().__init__(name, files)
        names: dict[str, None] = {}
        for file in files:
            with file.open() as stream:
                names.update(dict.fromkeys(_header(_records(stream, file.path), file.path)))
        self.columns = tuple(names)
        preview = list(
            itertools.islice(itertools.chain.from_iterable(self.batches()), _PREVIEW_ROWS)
        )
        self.first = first_of(preview)

    def batches(self, start: int = 0, columns: Sequence[str] | None = None) -> Iterator[list[Row]]:
        return batched(self._read(start))

    def _read(self, start: int) -> Iterator[Row]:
        numbers = itertools.count()
        for file in self._files:
            with file.open() as stream:
                records = _records(stream, file.path)
                header = _header(records, file.path)
                for line, fields, fault in records:
                    if (index := next(numbers)) < start:
                        continue
                    values: dict[str, Any] | None = None
                    if len(fields) > len(header):
                        fault = f"{len(fields)} fields where the header has {len(header)}"
                    elif fields:
                        values = dict(itertools.zip_longest(header, fields))
                    if fault is not None:
                        fault = f"{file.path}:{line}: {fault}"
                    yield Row(index, values, fault, sum(map(len, fields)))
            file.check_unchanged()


_Record = tuple[int, list[str], str | None]


def _header(records: Iterator[_Record], path: str) -> list[str]:
    """The names of the columns; empty if the file is empty. Raises `InputError`."""
    for line, names, fault in records:
        if fault is not None:
            raise InputError(f"{path}:{line}: {fault}")
        if (len(names) == 1 and not names[0].strip()) or names == ["sep=", ""]:
            continue  # a blank line, or the line that tells Excel the separator
        twice = first_repeated(names)
        if twice is not None:
            raise InputError(f"{path}: two columns of its header have the same name, '{twice}'")
        return names
    return []


def _records(stream: BinaryIO, path: str) -> Iterator[_Record]:
    """Line number, fields and fault of each record, the header included."""
    with CSV_LIMIT:
        csv.field_size_limit(max(csv.field_size_limit(), _MAX_FIELD))
    with reading(path):
        source = io.BufferedReader(cast(io.RawIOBase, stream))
        check_text(source.peek(64), path)
        # Invalid UTF-8 becomes lone surrogates, so that one bad row does not end the reading.
        with io.TextIOWrapper(
            source, encoding="utf-8-sig", errors="surrogateescape", newline=""
        ) as text:
            lines = _BoundedLines(text)
            try:
                begun = lines.until_text()
            except _TooLongError:
                yield 1, [], _TOO_LONG_TEXT
                return
            delimiter = _separator(begun[-1] if begun else "", path)
            # Strict, so that a quote without end is an error.
            reader = csv.reader(itertools.chain(begun, lines), strict=True, delimiter=delimiter)
            while True:
                begin = reader.line_num + 1
                try:
                    fields = next(reader)
                except StopIteration:
                    return
                except _TooLongError:
                    yield begin, [], _TOO_LONG_TEXT
                    continue
                except csv.Error:
                    fault = f"malformed CSV: {_NO_END if lines.ended else _MALFORMED}"
                    if (last := reader.line_num) > begin:
                        # The rest is not read as rows: it may be the lines of one text.
                        fault += f"; lines {begin} to {last}, with all rows there, are lost to it"
                    yield begin, [], fault
                    continue
                if fields and _is_sound(fields):
                    yield reader.line_num, fields, None
                elif fields:
                    mended = [_LONE.sub("\ufffd", field) for field in fields]
                    yield reader.line_num, mended, _NOT_UTF8


def _separator(line: str, path: str) -> str:
    """What parts the columns of a file whose first line that is not blank is `line`: what it tells
    Excel; a tab in *.tsv; else a comma, unless the header has none but has one of the others.
    """
    if told := _SEPARATOR.match(line):
        return told[1]
    if _TABS.search(path):
        return "\t"
    if line.isspace():
        return ","
    return next((mark for mark in SEPARATORS if _parts(line, mark)), ",")


def _parts(line: str, separator: str) -> bool:
    """Whether `separator` parts a header. A quote within a name shows that it does not."""
    try:
        names = next(csv.reader([line], strict=True, delimiter=separator), [])
    except csv.Error:
        return False  # a name goes on in the next line
    return len(names) > 1 and not any('"' in name for name in names)


class _TooLongError(Exception):
    """A line is longer than `MAX_LINE`."""


class _BoundedLines:
    """Lines of text. A line longer than `MAX_LINE` raises `_TooLongError`; the next line
    follows.
    """

    def __init__(self, text: TextIO) -> None:
        self._readline = text.readline
        self.ended = False

    def __iter__(self) -> _BoundedLines:
        return self

    def until_text(self) -> list[str]:
        """The next lines, to the first that is not blank."""
        taken: list[str] = []
        for line in self:
            taken.append(line)
            if not line.isspace():
                break
        return taken

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


def _is_sound(fields: list[str]) -> bool:
    try:
        "".join(fields).encode()
    except UnicodeEncodeError:
        return False
    return True


def lines_of(stream: BinaryIO, path: str) -> Iterator[list[bytes | None]]:
    """The lines without their ends, in lists as they come; None for a line that is longer than
    `MAX_LINE`.

    Lines end with LF or CR LF; or all with CR alone. Raises `InputError` if the stream is not text
    in UTF-8.
    """
    # Only the bytes that have come already: the rest may be long in coming.
    read = getattr(stream, "read1", stream.read)
    block: bytes = read(_BLOCK)
    check_text(block, path)
    end = b"\r" if b"\n" not in block and _OLD_LINE_END.search(block) else b"\n"
    begun: list[bytes] = []  # the parts of a line that has not ended
    length = 0
    while block:
        first, *others = block.split(end)
        length += len(first)
        if length <= MAX_LINE:
            begun.append(first)
        else:
            begun.clear()
        if others:
            last = others.pop()
            yield [b"".join(begun) if length <= MAX_LINE else None, *others]
            begun, length = [last], len(last)
        block = read(_BLOCK)
    if length:
        yield [b"".join(begun) if length <= MAX_LINE else None]


def check_text(head: bytes, path: str) -> None:
    """Raise `InputError` if a file that begins with `head` is not text in UTF-8."""
    if (found := other_form(head)) is not None:
        form, cure = found
        raise InputError(f"{path}: is {form}; {cure}")


def other_form(head: bytes) -> tuple[str, str] | None:
    """What a file that begins with `head` is, if it is not text in UTF-8, and how a job reads
    it.
    """
    if (encoding := other_encoding(head)) is not None:
        return f"{encoding}, not UTF-8", f"iconv -f {encoding} -t UTF-8 converts it"
    if head.startswith((b"BZh", b"PAR1")) and not _CONTROL.search(head):
        return None  # text: a CSV's column may be called so
    for magic, extension in MAGIC.items():
        if head.startswith(magic):
            cure = (
                "give the file a name that ends so (if it has one, it was compressed twice:"
                " decompress it once), or decompress what goes to standard input"
            )
            return f"compressed, as *{extension} files are", cure
    if head.startswith(b"PAR1"):
        return "Parquet", "its name must end in .parquet"
    return ("a ZIP archive", "unpack it") if head.startswith(b"PK\x03\x04") else None
