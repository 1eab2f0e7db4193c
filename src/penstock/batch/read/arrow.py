"""Rows from Arrow data: Parquet files, tables, record batches, and frames that speak Arrow."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from penstock.batch.read.file_source import FileSource
from penstock.batch.read.files import DataFile, for_arrow, is_url
from penstock.batch.read.layout import plain_layout, plain_schema
from penstock.batch.read.sources import BATCH_BYTES, BATCH_ROWS, Source, first_of, first_repeated
from penstock.batch.rows.row import Row
from penstock.batch.values.arrow import array, of_arrow, python_rows, python_values
from penstock.batch.values.common_type import unify
from penstock.batch.values.plain import UnstorableError, key_text
from penstock.errors import InputError, PenstockError, printable

_HASHED_ROWS = 65536


class Parquet(FileSource):
    """Parquet files, read a row group at a time."""

    def __init__(self, name: str, files: list[DataFile]) -> None:
        super().__init__(name, files)
        self.rows = 0
        self._int96_units: dict[str, str | None] = {}
        schemas: list[pa.Schema] = []
        for file in files:
            with _parquet(file) as parquet:
                self.rows += parquet.metadata.num_rows
                _names(parquet.schema_arrow, file.path)
                schema, self._int96_units[file.path] = _schema_and_int96_unit(file, parquet)
            schema = plain_schema(schema)
            if not any(schema.equals(known) for known in schemas):
                schemas.append(schema)
        self.schema = schemas[0] if len(schemas) == 1 else unify(schemas)
        self.columns = _names(self.schema, name)
        self.first = first_of(next(self.batches(), []))

    def batches(self, start: int = 0, columns: Sequence[str] | None = None) -> Iterator[list[Row]]:
        index = 0
        for file in self._files:
            with _parquet(file, self._int96_units[file.path]) as parquet:
                metadata = parquet.metadata
                groups = list(range(metadata.num_row_groups))
                while groups and index + metadata.row_group(groups[0]).num_rows <= start:
                    index += metadata.row_group(groups.pop(0)).num_rows
                if groups:
                    stored = sum(metadata.row_group(group).total_byte_size for group in groups)
                    rows = sum(metadata.row_group(group).num_rows for group in groups)
                    size = max(1, min(BATCH_ROWS, BATCH_BYTES * max(rows, 1) // max(stored, 1)))
                    batches = _record_batches(parquet, size, groups, file.path)
                    yield from _split(batches, index, start, columns, file.path)
                    index += rows
            file.check_unchanged()


class Table(Source):
    """A table or frame in memory."""

    def __init__(self, table: pa.Table) -> None:
        self.name = "table"
        self._table = plain_layout(table)
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
        batches = self._table.slice(start).to_batches(max_chunksize=BATCH_ROWS)
        return _split(batches, start, start, columns)


class RecordBatches(Source):
    """A record batch reader, which can be read once."""

    def __init__(self, reader: pa.RecordBatchReader) -> None:
        self.name = "record batches"
        self.schema = plain_schema(reader.schema)
        self.columns = _names(self.schema, "the record batches")
        self._reader = reader

    def batches(self, start: int = 0, columns: Sequence[str] | None = None) -> Iterator[list[Row]]:
        return _split(iter(self._next, None), 0, start, columns)

    def _next(self) -> pa.RecordBatch | None:
        try:
            return self._reader.read_next_batch()
        except StopIteration:
            return None
        except Exception as error:  # the reader may be anybody's
            raise InputError(f"reading the record batches failed: {_first_line(error)}") from error


def from_object(source: Any) -> Source:
    """The source for a pyarrow table or reader, a frame, or anything else that speaks Arrow."""
    try:
        if isinstance(source, pa.RecordBatchReader):
            return RecordBatches(source)
        if isinstance(source, pa.RecordBatch):
            return Table(pa.Table.from_batches([source]))
        if isinstance(source, pa.Table):
            return Table(source)
        library = type(source).__module__.partition(".")[0]
        convert = {"pandas": _from_pandas, "polars": _from_polars}.get(library, pa.table)
        return Table(convert(source))
    except PenstockError:
        raise
    except Exception as error:
        raise InputError(
            f"this {type(source).__name__} has no Arrow form: {_first_line(error)}"
        ) from error


@contextlib.contextmanager
def _parquet(file: DataFile, unit: str | None = None) -> Iterator[pq.ParquetFile]:
    """The opened file. `unit` is the unit of its INT96 times; None: nanoseconds."""
    with contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(
                file.open_stored() if is_url(file.path) else for_arrow(file.path)
            )
            options = {"page_checksum_verification": True, "coerce_int96_timestamp_unit": unit}
            parquet = stack.enter_context(pq.ParquetFile(opened, **options))
        except PenstockError:
            raise
        except Exception as error:
            raise InputError(
                f"{file.path}: not a readable Parquet file: {_first_line(error)}"
            ) from error
        yield parquet


def _schema_and_int96_unit(file: DataFile, parquet: pq.ParquetFile) -> tuple[pa.Schema, str | None]:
    """The schema of the file that is open as `parquet`, and the unit of its INT96 times. These are
    nanoseconds (None), which would wrap around outside the years 1677 to 2262; then microseconds.
    """
    leaves = map(parquet.schema.column, range(len(parquet.schema)))
    names = [leaf.path for leaf in leaves if leaf.physical_type == "INT96"]
    if names:
        fine = parquet.read_row_groups([], columns=names).schema
        with _parquet(file, "us") as coarse:
            try:
                for batch in coarse.iter_batches(columns=names, use_threads=False):
                    pa.Table.from_batches([batch]).cast(fine)
            except pa.ArrowInvalid:
                return coarse.schema_arrow, "us"
    return parquet.schema_arrow, None


def _record_batches(
    parquet: pq.ParquetFile, size: int, groups: list[int], path: str
) -> Iterator[pa.RecordBatch]:
    # Only reading is inside the `try`: an error over an odd value in a batch does not mean that
    # the file is damaged.
    try:
        yield from parquet.iter_batches(batch_size=size, row_groups=groups, use_threads=False)
    except Exception as error:
        raise InputError(f"{path}: damaged Parquet file: {_first_line(error)}") from error


def _split(
    batches: Iterable[pa.RecordBatch],
    index: int,
    start: int,
    columns: Sequence[str] | None,
    name: str = "table",
) -> Iterator[list[Row]]:
    """The rows from number `start` on. The first row of `batches` has the number `index`."""
    for batch in batches:
        skip = min(max(start - index, 0), batch.num_rows)
        table = plain_layout(pa.Table.from_batches([batch.slice(skip)]))
        index += skip
        for part in table.to_batches(max_chunksize=BATCH_ROWS):
            size = max(1, BATCH_BYTES * part.num_rows // max(part.nbytes, 1))
            for first in range(0, part.num_rows, size):
                yield _rows(part.slice(first, size), index + first, columns, name)
            index += part.num_rows


def _rows(batch: pa.RecordBatch, index: int, columns: Sequence[str] | None, name: str) -> list[Row]:
    nbytes = batch.nbytes // max(batch.num_rows, 1)
    wanted = [column for column in batch.schema.names if columns is None or column in columns]
    faults: dict[int, str] = {}
    try:
        if len(wanted) < batch.num_columns:
            batch.validate(full=True)  # a damaged value that nobody reads here gets into the output
        found = python_rows(batch.select(wanted))
    except Exception:  # of many kinds, for text that is no UTF-8 and the like
        batch, found, faults = _readable_rows(batch, wanted)
    rows = []
    for offset, values in enumerate(found):
        number = index + offset
        why = faults.get(offset)
        fault = None if why is None else f"{name}: row {number}: {why}"
        rows.append(Row(number, values, fault, nbytes, batch, offset))
    return rows


def _readable_rows(
    batch: pa.RecordBatch, names: list[str]
) -> tuple[pa.RecordBatch, list[dict[str, Any]], dict[int, str]]:
    """The batch as far as it can be read, its rows with the columns `names`, and by a row's place
    why it cannot be read whole. Text that is not UTF-8 gets U+FFFD in it; another value that cannot
    be read becomes null.
    """
    columns: dict[str, list[Any]] = {}
    faults: dict[int, str] = {}
    for place, field in enumerate(batch.schema):
        column = batch[place]
        try:
            columns[field.name] = python_values(column)
        except Exception:  # each kind of value has its own
            columns[field.name], wrong, column = _readable_values(column)
            for offset, why in wrong.items():
                faults.setdefault(offset, f"column '{field.name}': {why}")
            batch = batch.set_column(place, field, column)
    wanted = [columns[name] for name in names]
    rows = zip(*wanted, strict=True) if wanted else [()] * batch.num_rows
    return batch, [dict(zip(names, values, strict=True)) for values in rows], faults


def _readable_values(column: pa.Array) -> tuple[list[Any], dict[int, str], pa.Array]:
    """The values of a column that cannot be read whole, what is wrong by a value's place, and the
    mended column.
    """
    text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    values: list[Any] = []
    wrong: dict[int, str] = {}
    for offset, scalar in enumerate(column):
        try:
            values.append(of_arrow(scalar))
        except UnicodeDecodeError:
            wrong[offset] = "invalid UTF-8"
            values.append(str(scalar.as_buffer(), errors="replace") if text else None)
        except Exception:
            wrong[offset] = f"a damaged value of type {column.type}"
            values.append(None)
    if text:
        return values, wrong, pa.array(values, column.type)
    places = [None if offset in wrong else offset for offset in range(len(column))]
    return values, wrong, column.take(pa.array(places, pa.int64()))


def _names(schema: pa.Schema, name: str) -> tuple[str, ...]:
    twice = first_repeated(schema.names)
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
    twice = first_repeated([field.name for field in fields]) if pa.types.is_struct(kind) else None
    return twice or next(filter(None, (_twice_inside(field.type) for field in fields)), None)


def _table_digest(table: pa.Table) -> str:
    digest = blake2b(digest_size=16)
    # Slices of one size: the digest must not depend on how the rows are split into chunks.
    for start in range(0, max(table.num_rows, 1), _HASHED_ROWS):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.slice(start, _HASHED_ROWS).combine_chunks())
        digest.update(sink.getvalue())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def read_parquet(paths: Sequence[str]) -> pa.Table:
    """Parquet files as one table."""
    tables = []
    for path in paths:
        with _parquet(DataFile(path)) as parquet:
            tables.append(parquet.read())
    return pa.concat_tables(tables)


def _from_pandas(frame: Any) -> pa.Table:
    """A pandas frame without its index. What pandas calls missing (NaN, NaT, NA, None) is null.

    Names that are not text become text as the keys of a dict do. Raises `InputError` for a column
    that no table can hold, and for a name that two columns have.
    """
    columns: dict[str, pa.Array | pa.ChunkedArray] = {}
    for position, label in enumerate(frame.columns):
        try:
            name = printable(key_text(label))
        except UnstorableError as error:
            raise InputError(
                f"the frame: the name of column {position} cannot be stored: {error}"
            ) from error
        if name in columns:
            raise InputError(f"the frame: two columns have the same name, '{name}'")
        columns[name] = _from_series(frame.iloc[:, position], name)
    if not columns:  # a table cannot count rows without columns
        return pa.table({"": pa.nulls(len(frame))}).select([])
    return pa.table(columns)


def _from_polars(frame: Any) -> pa.Table:
    """A Polars frame. Raises `InputError` for a column of Python objects."""
    columns = {}
    for series in frame.get_columns():
        if _holds_objects(series.dtype):
            raise InputError(
                f"column '{series.name}' holds Python objects ({series.dtype}), which Polars cannot"
                " hand over; convert it, or give an iterable of dicts"
            )
        try:
            columns[series.name] = pa.chunked_array(pa.table(series.to_frame()).column(0))
        except pa.ArrowInvalid:  # a type that Arrow does not have, such as integers of 128 bits
            columns[series.name] = _stored(series.to_list(), series.name)
    return pa.table(columns) if columns else pa.table(frame)


def _from_series(series: Any, name: str) -> pa.Array | pa.ChunkedArray:
    kind = series.dtype
    if str(kind) != "object" and not _is_opaque(kind):
        try:
            return pa.Array.from_pandas(series)
        except (pa.ArrowException, TypeError, ValueError):
            pass
    values = [
        None if gone else value
        for value, gone in zip(series.tolist(), series.isna().tolist(), strict=True)
    ]
    return _stored(values, name)


def _holds_objects(kind: Any) -> bool:
    if kind.base_type().__name__ == "Object":
        return True
    inner = [field.dtype for field in getattr(kind, "fields", ())]
    inner += [kind.inner] if kind.is_nested() and getattr(kind, "inner", None) is not None else []
    return any(map(_holds_objects, inner))


def _stored(values: list[Any], name: str) -> pa.Array:
    try:
        return array(values)
    except UnstorableError as error:
        raise InputError(f"column '{name}' cannot be stored: {error}") from error


def _is_opaque(kind: Any) -> bool:
    """Whether Arrow holds what pandas stores and not the value, as for intervals and periods."""
    categories = getattr(kind, "categories", None)
    return kind.kind == "O" and (
        type(kind).__name__ in ("IntervalDtype", "PeriodDtype")
        or (
            categories is not None
            and (str(categories.dtype) == "object" or _is_opaque(categories.dtype))
        )
    )
