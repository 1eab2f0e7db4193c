"""Parquet: the parts of a job, and the output made of them, one file or a directory of files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from penstock import private_files
from penstock.batch.read.files import for_arrow
from penstock.batch.rows.row import Outcome, Row
from penstock.batch.values.arrow import python_rows
from penstock.batch.values.common_type import conform, unify, unify_tables
from penstock.batch.values.plain import json_line
from penstock.batch.write.parts import PartWriter, Segment
from penstock.batch.write.state_files import to_disk
from penstock.batch.write.tables import Tables, storable

_TABLE_ROWS = 512
_GROUP_ROWS = 65536
_GROUP_BYTES = 32 << 20
_FILE_BYTES = 256 << 20
_READ_ROWS = 4096


class ParquetWriter(PartWriter):
    """A part in Parquet. Every 512 rows become Arrow data, which takes less memory than dicts."""

    def __init__(self, path: Path, tables: Tables) -> None:
        super().__init__(path)
        self._tables = tables
        self._done: list[pa.Table] = []
        self._rows: list[Row] = []
        self._outcomes: list[Outcome] = []

    def add(self, row: Row, outcome: Outcome) -> None:
        self._rows.append(row)
        self._outcomes.append(outcome)
        self.nbytes += row.nbytes  # with the answer: the flow has added it
        if len(self._rows) >= _TABLE_ROWS:
            self._convert()

    def complete(self) -> None:
        if self._rows:
            self._convert()
        schema = unify_tables(self._done)
        tables = (conform(table, schema) for table in self._done)
        try:
            _write(self._temporary, next(tables), tables)
        except pa.ArrowException:
            # A value that Parquet cannot hold, such as a second of a very far year.
            whole = pa.concat_tables([conform(table, schema) for table in self._done])
            _write(self._temporary, storable(whole), iter(()))

    def _convert(self) -> None:
        self._done.append(self._tables.make(self._rows, self._outcomes))
        self._rows, self._outcomes = [], []


def write_parquet(
    target: Path, folder: Path, rows: Callable[[], Iterable[Segment]], empty: pa.Table
) -> None:
    """Write one file, in row groups of up to 65,536 rows. `empty` is written if there are no
    rows.
    """
    tables = _conformed(folder, rows, empty)
    _write(target, next(tables), tables)


def write_dataset(
    target: Path, folder: Path, rows: Callable[[], Iterable[Segment]], empty: pa.Table
) -> None:
    """Write a directory of files `part-00000.parquet` and so on, each of about 256 MB before
    compression.
    """
    private_files.make_folder(target)
    tables = _conformed(folder, rows, empty)
    left: pa.Table | None = next(tables)
    number = 0
    while left is not None:
        left = _write(target / f"part-{number:05}.parquet", left, tables, _FILE_BYTES)
        number += 1


def _write(
    path: Path, first: pa.Table, others: Iterator[pa.Table], most: float = math.inf
) -> pa.Table | None:
    """Write tables of one schema, about `most` bytes. Returns the first table left over."""
    table: pa.Table | None = first
    written = 0
    with open(path, "wb", opener=private_files.opener) as file:
        coded = [path for field in first.schema for path in _coded(field, field.name)]
        with pq.ParquetWriter(file, first.schema, use_dictionary=coded) as writer:
            while table is not None and written < most:
                writer.write_table(table)
                written += table.nbytes
                table = next(others, None)
        to_disk(file)
    return table


def _coded(field: pa.Field, path: str) -> Iterator[str]:
    """The paths of the values that get a dictionary: all but the numbers of vectors (lists of a
    fixed size). These hardly ever repeat, and a search for repeats would take most of the time.
    """
    kind = field.type
    if pa.types.is_fixed_size_list(kind) and pa.types.is_primitive(kind.value_type):
        return
    if pa.types.is_struct(kind):
        for one in kind.fields:
            yield from _coded(one, f"{path}.{one.name}")
    elif pa.types.is_map(kind):
        yield from _coded(kind.key_field, f"{path}.key_value.key")
        yield from _coded(kind.item_field, f"{path}.key_value.value")
    elif hasattr(kind, "value_field"):
        yield from _coded(kind.value_field, f"{path}.list.element")
    else:
        yield path


def write_lines(target: Path, folder: Path, rows: Sequence[Segment]) -> None:
    """Write these rows as JSON lines."""
    with open(target, "wb", buffering=1 << 18, opener=private_files.opener) as file:
        for table in _conformed(folder, lambda: rows, pa.table({})):
            for values in python_rows(table):
                file.write(json_line(values))
        to_disk(file)


def _conformed(
    folder: Path, rows: Callable[[], Iterable[Segment]], empty: pa.Table
) -> Iterator[pa.Table]:
    """The output in tables of one schema, at least one of them."""
    files = dict.fromkeys(folder / segment.file for segment in rows())
    paths = [path for file in files for path in _files_of(file)]
    if not paths:
        yield empty
        return
    schema = unify(
        [_metadata(path).schema.to_arrow_schema() for path in paths],
        lambda name: _column(paths, name),
    )
    gathered: list[pa.Table] = []
    count = size = 0
    readers: dict[str, _Reader] = {}
    for segment in rows():
        reader = readers.pop(segment.file, None) or _Reader(folder / segment.file)
        for piece in reader.read(segment.at, segment.length):
            gathered.append(conform(piece, schema))
            count += piece.num_rows
            size += piece.nbytes
            if count >= _GROUP_ROWS or size >= _GROUP_BYTES:
                yield pa.concat_tables(gathered)
                gathered, count, size = [], 0, 0
        # A job may have more parts than a process may have open files.
        if reader.place < reader.rows:
            readers[segment.file] = reader
    if gathered:
        yield pa.concat_tables(gathered)


def _column(paths: Sequence[Path], name: str) -> Iterator[pa.Array]:
    """A column's values in all parts."""
    for batch in _batches(paths, [name]):
        if name in batch.schema.names:
            yield batch.column(name)


class _Reader:
    """Reads a part from its first row to its last. The next row is number `place` of `rows`."""

    def __init__(self, path: Path) -> None:
        files = _files_of(path)
        self.rows = sum(_metadata(file).num_rows for file in files)
        self.place = 0
        self._batches = _batches(files)
        self._held = pa.table({})

    def read(self, at: int, count: int) -> Iterator[pa.Table]:
        """`count` rows from row `at` on, which must not be a row that was read already."""
        while self.place < at + count:
            if not self._held.num_rows:
                self._held = pa.Table.from_batches([next(self._batches)])
            stop = at if self.place < at else at + count
            piece = self._held.slice(0, stop - self.place)
            self._held = self._held.slice(piece.num_rows)
            self.place += piece.num_rows
            if self.place > at:
                yield piece


def _files_of(path: Path) -> list[Path]:
    """A part's file, or the files of a part that is a directory, sorted."""
    return sorted(path.glob("*.parquet")) if path.is_dir() else [path]


def _metadata(path: Path) -> pq.FileMetaData:
    with for_arrow(path) as file:
        return pq.read_metadata(file)


def _batches(files: Iterable[Path], columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    for file in files:
        with for_arrow(file) as opened, pq.ParquetFile(opened) as parquet:
            yield from parquet.iter_batches(
                batch_size=_READ_ROWS, columns=columns, use_threads=False
            )
