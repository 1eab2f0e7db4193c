"""One Arrow type for a column that has several types, and one schema for tables that have several.

No value may change. A column for which there is no such type becomes text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial, reduce
from itertools import product
from operator import attrgetter
from typing import Any, NamedTuple

import pyarrow as pa

from penstock.batch.values.arrow import FAILURES, MOST_FIELDS, build, holds, python_values
from penstock.batch.values.plain import text

_UNITS = ("s", "ms", "us", "ns")
_width = attrgetter("bit_width")
_DIGITS = 20
"""The most digits of a 64-bit integer."""


class _Choice(NamedTuple):
    """What only the values decide: whether 64-bit integers need a sign, and how fine times are."""

    whole: pa.DataType
    finer: bool


_CHOICES = [
    _Choice(whole, finer) for whole, finer in product((pa.int64(), pa.uint64()), (True, False))
]

Batches = Callable[[], Iterable[pa.Array | pa.ChunkedArray]]


def unify(
    schemas: Sequence[pa.Schema], values: Callable[[str], Iterable[Any]] = lambda name: ()
) -> pa.Schema:
    """One schema that tables of all these schemas can take, columns in order of first appearance.

    `values` returns the values of the column of a name, in all tables: a type is taken only if it
    holds them unchanged.
    """
    kinds: dict[str, list[pa.DataType]] = {}
    for schema in schemas:
        for field in schema:
            kinds.setdefault(field.name, []).append(field.type)
    return pa.schema(
        [(name, common_type(known, partial(values, name))) for name, known in kinds.items()]
    )


def unify_tables(tables: Sequence[pa.Table]) -> pa.Schema:
    """One schema that all these tables can take."""
    columns = [_columns(table) for table in tables]
    return unify(
        [table.schema for table in tables],
        lambda name: (known[name] for known in columns if name in known),
    )


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with exactly these columns: missing ones null, others converted."""
    known = _columns(table)
    columns = [
        convert(known[field.name], field.type)
        if field.name in known
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _columns(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    """A table's columns by name: `column_names` would make a list each time."""
    return dict(zip(table.column_names, table.columns, strict=True))


def common_type(kinds: Sequence[pa.DataType], values: Batches = lambda: ()) -> pa.DataType:
    """The first type that takes all of `kinds` and holds all of `values` unchanged; text if there
    is none. A type of which there are only nulls does not count. A column that is null everywhere
    is text.
    """
    kinds = list(dict.fromkeys(kinds))
    # Nulls fit any type, so the values may not be needed.
    kinds = [kind for kind in kinds if kind != pa.null()] or kinds
    for tried in _candidates(kinds):
        if len(kinds) == 1 or all(converted(batch, tried) is not None for batch in values()):
            return pa.string() if tried == pa.null() else tried
    used = {batch.type for batch in values() if batch.null_count < len(batch)}
    if 0 < len(used & set(kinds)) < len(kinds):
        return common_type([kind for kind in kinds if kind in used], values)
    return pa.large_string() if any(map(pa.types.is_large_string, kinds)) else pa.string()


def convert(column: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """The column as `kind`, which `common_type` gave for it."""
    made = converted(column, kind)
    return made if made is not None else as_text(column, kind)


def converted(
    column: pa.Array | pa.ChunkedArray, kind: pa.DataType
) -> pa.Array | pa.ChunkedArray | None:
    """The column as `kind`; None if a value would change."""
    if column.type == kind:
        return column
    if column.type == pa.null():
        return pa.nulls(len(column), kind)
    if _is_text(kind) and not _is_text(_meant(column.type)):
        return None
    try:
        return column.cast(kind)  # which fails if a value would change
    except FAILURES:
        pass
    try:
        values = python_values(column)
        made = build(values, kind)
    except FAILURES:
        return None
    return made if holds(values, made) else None


def as_text(column: pa.Array | pa.ChunkedArray, kind: pa.DataType | None = None) -> pa.Array:
    """The column's values as text."""
    return pa.array([text(value) for value in python_values(column)], kind or pa.string())


def _candidates(kinds: Sequence[pa.DataType]) -> Iterator[pa.DataType]:
    found = (
        reduce(lambda one, other: _common(one, other, choice), kinds[1:], kinds[0])
        for choice in _CHOICES
    )
    return (kind for kind in dict.fromkeys(found) if kind is not None)


def _common(
    one: pa.DataType | None, other: pa.DataType | None, choice: _Choice
) -> pa.DataType | None:
    if one is None or other is None or one == other:
        return one if one == other else None
    if one == pa.null() or other == pa.null():
        return other if one == pa.null() else one
    is_kind = pa.types
    if is_kind.is_dictionary(one) or is_kind.is_dictionary(other):
        return _common(_meant(one), _meant(other), choice)
    for same_kind, unite in _SCALARS:
        if same_kind(one) and same_kind(other):
            return unite(one, other, choice)
    if is_kind.is_struct(one) and is_kind.is_struct(other):
        return _struct(one, other, choice)
    if is_kind.is_map(one) and is_kind.is_map(other):
        key = _common(one.key_type, other.key_type, choice)
        item = _common(one.item_type, other.item_type, choice)
        return None if key is None or item is None else pa.map_(key, item)
    lists = is_kind.is_list, is_kind.is_large_list, is_kind.is_fixed_size_list
    if not all(any(is_list(kind) for is_list in lists) for kind in (one, other)):
        return None
    inner = _common(one.value_type, other.value_type, choice)
    if inner is None:
        return None
    if all(map(is_kind.is_fixed_size_list, (one, other))) and one.list_size == other.list_size:
        return pa.list_(inner, one.list_size)
    large = is_kind.is_large_list(one) or is_kind.is_large_list(other)
    return pa.large_list(inner) if large else pa.list_(inner)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _meant(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_binary(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _number(one: pa.DataType, other: pa.DataType, choice: _Choice) -> pa.DataType | None:
    if pa.types.is_floating(one) or pa.types.is_floating(other):
        floats = pa.types.is_floating(one) and pa.types.is_floating(other)
        return max(one, other, key=_width) if floats else pa.float64()
    if pa.types.is_signed_integer(one) == pa.types.is_signed_integer(other):
        return max(one, other, key=_width)
    signed, unsigned = (one, other) if pa.types.is_signed_integer(one) else (other, one)
    if signed.bit_width > unsigned.bit_width:
        return signed
    return {8: pa.int16(), 16: pa.int32(), 32: pa.int64()}.get(unsigned.bit_width, choice.whole)


def _decimal(one: pa.DataType, other: pa.DataType, choice: _Choice) -> pa.DataType | None:
    digits, scales = zip(*(_shape(kind) for kind in (one, other)), strict=True)
    scale, whole = max(scales), max(digits)
    if scale + whole <= 38:
        return pa.decimal128(scale + whole, scale)
    return pa.decimal256(scale + whole, scale) if scale + whole <= 76 else None


def _shape(kind: pa.DataType) -> tuple[int, int]:
    """The digits before the point, and those after it."""
    return (kind.precision - kind.scale, kind.scale) if pa.types.is_decimal(kind) else (_DIGITS, 0)


def _timestamp(one: pa.DataType, other: pa.DataType, choice: _Choice) -> pa.DataType | None:
    if (one.tz is None) != (other.tz is None):
        return None  # a time with a zone and one without have no common type
    return pa.timestamp(_unit(one, other, choice), one.tz if one.tz == other.tz else "UTC")


def _unit(one: pa.DataType, other: pa.DataType, choice: _Choice) -> str:
    return str((max if choice.finer else min)(one.unit, other.unit, key=_UNITS.index))


_SCALARS: list[
    tuple[
        Callable[[pa.DataType], bool],
        Callable[[pa.DataType, pa.DataType, _Choice], pa.DataType | None],
    ]
] = [
    (lambda kind: pa.types.is_integer(kind) or pa.types.is_floating(kind), _number),
    (lambda kind: pa.types.is_integer(kind) or pa.types.is_decimal(kind), _decimal),
    (pa.types.is_timestamp, _timestamp),
    (pa.types.is_duration, lambda one, other, choice: pa.duration(_unit(one, other, choice))),
    (
        pa.types.is_time,
        lambda one, other, _: pa.time64("ns" if "ns" in (one.unit, other.unit) else "us"),
    ),
    (pa.types.is_date, lambda one, other, _: pa.date32()),
    (_is_text, lambda one, other, _: pa.large_string()),
    (
        _is_binary,
        lambda one, other, _: (
            pa.large_binary() if pa.large_binary() in (one, other) else pa.binary()
        ),
    ),
]


def _struct(one: pa.DataType, other: pa.DataType, choice: _Choice) -> pa.DataType | None:
    fields = {field.name: field.type for field in one}
    for field in other:
        known = fields.get(field.name)
        found = field.type if known is None else _common(known, field.type, choice)
        if found is None:
            return None
        fields[field.name] = found
    if len(fields) > max(MOST_FIELDS, one.num_fields, other.num_fields):
        return None  # a table of rows × keys would be their product
    return pa.struct(list(fields.items()))
