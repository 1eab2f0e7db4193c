"""Rows from Arrow data: Parquet files, tables, record batches, and frames that speak Arrow."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from penstock.batch.read import frames
from penstock.batch.read.files import DataFile, FileSource, for_arrow, is_url
from penstock.batch.read.sources import BATCH_BYTES, BATCH_ROWS, Source, first_of, twice_in
from penstock.batch.rows.row import Row
from penstock.batch.values.arrow import of_arrow, python_rows, python_values
from penstock.batch.values.common_type import unify
from penstock.errors import InputError, PenstockError

_HASHED_ROWS = 65536


class Parquet(FileSource):
    """Parquet files, read a row group at a time."""

    def __init__(self, name: str, files: list[DataFile]) -> None:
        super().__init__(name, files)
        self.rows = 0
        schemas: list[pa.Schema] = []
        for file in files:
            with _parquet(file) as parquet:
                self.rows += parquet.metadata.num_rows
                _names(parquet.schema_arrow, file.path)
                if not any(parquet.schema_arrow.equals(known) for known in schemas):
                    schemas.append(parquet.schema_arrow)
        self.schema = schemas[0] if len(schemas) == 1 else unify(schemas)
        self.columns = _names(self.schema, name)
        self.first = first_of(next(self.batches(), []))

    def batches(self, start: int = 0, columns: Sequence[str] | None = None) -> Iterator[list[Row]]:
        index = 0
        for file in self._files:
            with _parquet(file) as parquet:
                metadata = parquet.metadata
                groups = list(range(metadata.num_row_groups))
                while groups and index + metadata.row_group(groups[0]).num_rows <= start:
                    index += metadata.row_group(groups.pop(0)).num_rows
                if not groups:
                    file.check_unchanged()
                    continue
                stored = sum(metadata.row_group(group).total_byte_size for group in groups)
                rows = sum(metadata.row_group(group).num_rows for group in groups)
                size = max(1, min(BATCH_ROWS, BATCH_BYTES * max(rows, 1) // max(stored, 1)))
                for batch in _batches(parquet, size, groups, file.path):
                    skip = min(max(start - index, 0), batch.num_rows)
                    index += skip
                    if skip < batch.num_rows:
                        yield _rows(batch.slice(skip), index, columns, file.path)
                        index += batch.num_rows - skip
            file.check_unchanged()


class Table(Source):
    """A table or frame in memory."""

    def __init__(self, table: pa.Table) -> None:
        self.name = "table"
        self._table = frames.plain_layout(table)
        self.schema = self._table.schema
        self.rows = self._table.num_rows
        self.columns = _names(self.schema, "the table")
        self.fingerprint = {
            "input": "table",
            "input schema": self.schema.remove_metadata().to_string(),
            "input rows": self.rows,
            "input digest": _table_digest(self._table),
        }
        self.first = first_of(next(self.batches(), []))

    def batches(self, start: int = 0, columns: Sequence[str] | None = None) -> Iterator[list[Row]]:
        return _split(self._table.slice(start).to_batches(max_chunksize=BATCH_ROWS), start, columns)


class Batches(Source):
    """A record batch reader, which can be read once."""

    def __init__(self, reader: pa.RecordBatchReader) -> None:
        self.name = "record batches"
        self.schema = reader.schema
        self.columns = _names(reader.schema, "the record batches")
        self._reader = reader

    def batches(self, start: int = 0, columns: Sequence[str] | None = None) -> Iterator[list[Row]]:
        index = 0
        while (batch := self._next()) is not None:
            skip = min(max(start - index, 0), batch.num_rows)
            if skip < batch.num_rows:
                table = frames.plain_layout(pa.Table.from_batches([batch.slice(skip)]))
                yield from _split(table.to_batches(max_chunksize=BATCH_ROWS), index + skip, columns)
            index += batch.num_rows

    def _next(self) -> pa.RecordBatch | None:
        try:
            return self._reader.read_next_batch()
        except StopIteration:
            return None
        except Exception as error:  # the reader may be anybody's
            raise InputError(f"reading the record batches failed: {_line(error)}") from error


def from_object(source: Any) -> Source:
    """The source for a pyarrow table or reader, a frame, or anything else that speaks Arrow."""
    try:
        if isinstance(source, pa.RecordBatchReader):
            return Batches(source)
        if isinstance(source, pa.RecordBatch):
            return Table(pa.Table.from_batches([source]))
        if isinstance(source, pa.Table):
            return Table(source)
        library = type(source).__module__.partition(".")[0]
        convert = {"pandas": frames.from_pandas, "polars": frames.from_polars}.get(
            library, pa.table
        )
        return Table(convert(source))
    except PenstockError:
        raise
    except Exception as error:
        raise InputError(
            f"this {type(source).__name__} has no Arrow form: {_line(error)}"
        ) from error


@contextlib.contextmanager
def _parquet(file: DataFile) -> Iterator[pq.ParquetFile]:
    with contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(
                file.open_stored() if is_url(file.path) else for_arrow(file.path)
            )
            parquet = stack.enter_context(pq.ParquetFile(opened, page_checksum_verification=True))
        except PenstockError:
            raise
        except Exception as error:
            raise InputError(f"{file.path}: not a readable Parquet file: {_line(error)}") from error
        yield parquet


def _batches(
    parquet: pq.ParquetFile, size: int, groups: list[int], path: str
) -> Iterator[pa.RecordBatch]:
    # Only the reading, not what becomes of the batches: that a value is odd does not damage the
    # file.
    try:
        yield from parquet.iter_batches(batch_size=size, row_groups=groups, use_threads=False)
    except Exception as error:
        raise InputError(f"{path}: damaged Parquet file: {_line(error)}") from error


def _split(
    batches: list[pa.RecordBatch], index: int, columns: Sequence[str] | None
) -> Iterator[list[Row]]:
    for batch in batches:
        size = max(1, BATCH_BYTES * batch.num_rows // max(batch.nbytes, 1))
        for start in range(0, batch.num_rows, size):
            yield _rows(batch.slice(start, size), index + start, columns)
        index += batch.num_rows


def _rows(
    batch: pa.RecordBatch, index: int, columns: Sequence[str] | None, name: str = "table"
) -> list[Row]:
    nbytes = batch.nbytes // max(batch.num_rows, 1)
    wanted = batch
    if columns is not None:
        wanted = batch.select([column for column in batch.schema.names if column in columns])
    found: list[dict[str, Any] | _Unreadable]
    try:
        found = [*python_rows(wanted)]
    except Exception:  # of many kinds, for text that is no UTF-8 and the like
        found = _readable_rows(wanted)
    rows = []
    for number, values in enumerate(found, index):
        if isinstance(values, _Unreadable):
            rows.append(Row(number, None, f"{name}: row {number}: {values}", nbytes))
        else:
            rows.append(Row(number, values, None, nbytes, batch, number - index))
    return rows


class _Unreadable(str):
    """Stands for what cannot be read, and says why."""


def _readable_rows(batch: pa.RecordBatch) -> list[dict[str, Any] | _Unreadable]:
    """The rows as dicts, one with a value that cannot be read as `_Unreadable`."""
    names = batch.schema.names
    rows: list[dict[str, Any] | _Unreadable] = []
    for values in zip(*map(_readable_values, batch.columns), strict=True):
        row = dict(zip(names, values, strict=True))
        wrong = ((name, value) for name, value in row.items() if isinstance(value, _Unreadable))
        rows.append(next((_Unreadable(f"column '{name}': {why}") for name, why in wrong), row))
    return rows


def _readable_values(column: pa.Array) -> list[Any]:
    try:
        return python_values(column)
    except Exception:  # each kind of value has its own
        return [_readable_value(scalar) for scalar in column]


def _readable_value(scalar: pa.Scalar) -> Any:
    try:
        return of_arrow(scalar)
    except UnicodeDecodeError:
        return _Unreadable("invalid UTF-8")
    except Exception:
        return _Unreadable(f"a damaged value of type {scalar.type}")


def _names(schema: pa.Schema, name: str) -> tuple[str, ...]:
    twice = twice_in(schema.names)
    if twice is not None:
        raise InputError(f"{name}: two columns have the same name, '{twice}'")
    for field in schema:
        if (twice := _twice_inside(field.type)) is not None:
            raise InputError(
                f"{name}: two fields of column '{field.name}' have the same name, '{twice}'"
            )
    return tuple(schema.names)


def _twice_inside(kind: pa.DataType) -> str | None:
    fields = [kind.field(place) for place in range(kind.num_fields)]
    twice = twice_in([field.name for field in fields]) if pa.types.is_struct(kind) else None
    return twice or next(filter(None, (_twice_inside(field.type) for field in fields)), None)


def _table_digest(table: pa.Table) -> str:
    digest = blake2b(digest_size=16)
    # Slices of one size, so that the same rows in other chunks have the same digest.
    for start in range(0, max(table.num_rows, 1), _HASHED_ROWS):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.slice(start, _HASHED_ROWS).combine_chunks())
        digest.update(sink.getvalue())
    return digest.hexdigest()


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def read_parquet(paths: Sequence[str]) -> pa.Table:
    """Parquet files as one table."""
    tables = []
    for path in paths:
        with _parquet(DataFile(path)) as parquet:
            tables.append(parquet.read())
    return pa.concat_tables(tables)
