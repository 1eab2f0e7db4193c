"""Arrow columns in the layouts that all of Arrow's functions and Parquet can handle.

Views, runs, dictionaries of anything but texts, and dictionaries inside other types hold the same
values as plain columns do, but some functions refuse them, and Parquet gives some back as another
type. Extension types, unions and maps stay as they are.
"""

from __future__ import annotations

import pyarrow as pa

from penstock.batch.values.arrow import run_numbers


def plain_layout(table: pa.Table) -> pa.Table:
    """The table in plain layouts. A dictionary with a null among its values is plain text, too."""
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


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """The schema that tables of `schema` have in plain layouts, but for nulls in dictionaries."""
    fields = [field.with_type(_plain_type(field.type, whole=True)) for field in schema]
    return pa.schema(fields, schema.metadata)


def _relaid(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """The column as `kind`, which is its own type in a plain layout. `cast` fails for some types
    inside others, and drops the last offset of a list view (pyarrow 26).
    """
    if column.type == kind:
        return column
    if pa.types.is_run_end_encoded(column.type):
        return _relaid(column.values, kind).take(run_numbers(column))
    if pa.types.is_dictionary(column.type):
        if pa.types.is_dictionary(kind):
            values = _relaid(column.dictionary, kind.value_type)
            return pa.DictionaryArray.from_arrays(column.indices, values)
        return _relaid(column.dictionary, kind).take(column.indices)
    if pa.types.is_struct(kind):
        parts = [
            _relaid(part, field.type) for part, field in zip(column.flatten(), kind, strict=True)
        ]
        return pa.StructArray.from_arrays(parts, fields=list(kind), mask=column.is_null())
    if pa.types.is_fixed_size_list(kind):
        size = kind.list_size
        parts = column.values.slice(column.offset * size, len(column) * size)
        return pa.FixedSizeListArray.from_arrays(
            _relaid(parts, kind.value_type), type=kind, mask=column.is_null()
        )
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        import pyarrow.compute as pc

        lengths = pc.fill_null(pc.list_value_length(column), 0)
        make, whole = (
            (pa.LargeListArray, pa.int64())
            if pa.types.is_large_list(kind)
            else (pa.ListArray, pa.int32())
        )
        ends = pc.cumulative_sum(lengths.cast(pa.int64())).cast(whole)
        offsets = pa.concat_arrays([pa.array([0], whole), ends])
        parts = _relaid(column.flatten(), kind.value_type)
        return make.from_arrays(offsets, parts, type=kind, mask=column.is_null())
    return column.cast(kind)


def _plain_type(kind: pa.DataType, *, whole: bool = False) -> pa.DataType:
    """The type in a plain layout. Only the type of a `whole` column may be a dictionary."""
    if kind == pa.string_view():
        return pa.large_string()
    if kind == pa.binary_view():
        return pa.large_binary()
    if pa.types.is_run_end_encoded(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_dictionary(kind):
        # Always unordered: a Polars Enum's dictionary is ordered, but `from_arrays` and Parquet
        # lose that.
        plain = _plain_type(kind.value_type)
        if not whole or plain not in _CODED:
            return plain
        return kind if plain == kind.value_type else pa.dictionary(kind.index_type, plain)
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain_type(field.type)) for field in kind])
    for is_list, make in _LISTS:
        if is_list(kind):
            return make(kind.value_field.with_type(_plain_type(kind.value_type)))
    if pa.types.is_fixed_size_list(kind):
        # Parquet writes length 0 but cannot read it back; -1 makes it a list of any length.
        return pa.list_(
            kind.value_field.with_type(_plain_type(kind.value_type)), kind.list_size or -1
        )
    return kind


_CODED = (pa.string(), pa.large_string())
"""The types whose dictionaries Parquet gives back. Other values come back without, and some as
another type: lengths of time as integers, times in UTC.
"""
_LISTS = (
    (pa.types.is_list, pa.list_),
    (pa.types.is_large_list, pa.large_list),
    (pa.types.is_list_view, pa.list_),
    (pa.types.is_large_list_view, pa.large_list),
)
