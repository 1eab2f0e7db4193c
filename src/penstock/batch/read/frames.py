"""Frames of pandas and Polars, and tables of odd layouts, as Arrow tables of plain layout."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from penstock.batch.values.arrow import array, build, python_values
from penstock.batch.values.plain import UnstorableError, key_text
from penstock.errors import InputError, printable


def from_pandas(frame: Any) -> pa.Table:
    """A pandas frame without its index. What pandas calls missing (NaN, NaT, NA, None) is null.

    Names that are no text become as those of a dict's keys. Raises `InputError` for a column that
    no table can hold, or whose name another one has.
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


def from_polars(frame: Any) -> pa.Table:
    """A Polars frame. Raises `InputError` for a column of Python objects."""
    columns = {}
    for series in frame.get_columns():
        if _holds_objects(series.dtype):
            raise InputError(
                f"column '{series.name}' holds Python objects ({series.dtype}), which Polars cannot"
                " hand over; convert it, or give an iterable of dicts"
            )
        try:
            columns[series.name] = pa.chunked_array(pa.table(frame.select(series.name)).column(0))
        except pa.ArrowInvalid:  # a type that Arrow does not have, such as integers of 128 bits
            columns[series.name] = _of(series.to_list(), series.name)
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
    return _of(values, name)


def _holds_objects(kind: Any) -> bool:
    if kind.base_type().__name__ == "Object":
        return True
    inner = [field.dtype for field in getattr(kind, "fields", ())]
    inner += [kind.inner] if kind.is_nested() and getattr(kind, "inner", None) is not None else []
    return any(map(_holds_objects, inner))


def _of(values: list[Any], name: str) -> pa.Array:
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


def plain_layout(table: pa.Table) -> pa.Table:
    """The table without views, nulls in dictionaries, and what else some Arrow functions refuse."""
    for position, field in enumerate(table.schema):
        column = table.column(position)
        kind = _plain_type(field.type, whole=True)
        if pa.types.is_dictionary(kind) and any(
            chunk.dictionary.null_count for chunk in column.chunks
        ):
            kind = kind.value_type
        if kind != field.type:
            column = pa.chunked_array([_relaid(chunk, kind) for chunk in column.chunks], kind)
            table = table.set_column(position, field.with_type(kind), column)
    return table


def _relaid(chunk: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_run_end_encoded(chunk.type):
        chunk = pc.run_end_decode(chunk)
    # Which cast does not take from one kind of text to another.
    if pa.types.is_dictionary(chunk.type):
        value_type = kind.value_type if pa.types.is_dictionary(kind) else kind
        values = (
            chunk.dictionary
            if chunk.dictionary.type == value_type
            else chunk.dictionary.cast(value_type)
        )
        return (
            pa.DictionaryArray.from_arrays(chunk.indices, values)
            if kind != value_type
            else values.take(chunk.indices)
        )
    if chunk.type == kind:
        return chunk
    # Casting views of lists gives lists without their last offset (seen with pyarrow 26), lists of
    # length 0 fails.
    odd = "list_view" in str(chunk.type) or "[0]" in str(chunk.type)
    return build(python_values(chunk), kind) if odd else chunk.cast(kind)


def _plain_type(kind: pa.DataType, *, whole: bool = False) -> pa.DataType:
    """The type in a plain layout. A column as a `whole` may be a dictionary, a part of one not."""
    if kind == pa.string_view():
        return pa.large_string()
    if kind == pa.binary_view():
        return pa.large_binary()
    if pa.types.is_run_end_encoded(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_dictionary(kind):
        # Unordered: that of a Polars Enum is, but from_arrays and Parquet do not keep it.
        plain = _plain_type(kind.value_type)
        if not whole:
            return plain
        return kind if plain == kind.value_type else pa.dictionary(kind.index_type, plain)
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain_type(field.type)) for field in kind])
    for is_list, make in _LISTS:
        if is_list(kind):
            return make(kind.value_field.with_type(_plain_type(kind.value_type)))
    if pa.types.is_fixed_size_list(kind):
        # Parquet takes those of length 0, and cannot be read then.
        return pa.list_(
            kind.value_field.with_type(_plain_type(kind.value_type)), kind.list_size or -1
        )
    return kind


_LISTS = (
    (pa.types.is_list, pa.list_),
    (pa.types.is_large_list, pa.large_list),
    (pa.types.is_list_view, pa.list_),
    (pa.types.is_large_list_view, pa.large_list),
)
