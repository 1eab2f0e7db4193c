"""One Arrow type for a column that has several: none of its values may change. If there is none,
text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from itertools import product
from typing import Literal, NamedTuple

import pyarrow as pa

from penstock.batch.values.from_arrow import python_values
from penstock.batch.values.plain import text
from penstock.batch.values.to_arrow import FAILURES, MOST_FIELDS, build, holds

_UNITS = ("s", "ms", "us", "ns")
_DIGITS = 20
"""Of a 64-bit integer."""


class _Choice(NamedTuple):
    """What values alone decide: whether integers of 64 bits have a sign, and whether times are
    finer than they need.
    """

    whole: pa.DataType
    finer: bool


_CHOICES = [
    _Choice(whole, finer) for whole, finer in product((pa.int64(), pa.uint64()), (True, False))
]

Batches = Callable[[], Iterable[pa.Array | pa.ChunkedArray]]


def common_type(kinds: Sequence[pa.DataType], values: Batches = lambda: ()) -> pa.DataType:
    """The type that holds whatever the types hold: of those that could, the first that holds all of
    `values`.

    A column that is null everywhere is text.
    """
    kinds = list(dict.fromkeys(kinds))
    for tried in _candidates(kinds):
        if len(kinds) == 1 or all(converted(batch, tried) is not None for batch in values()):
            return pa.string() if tried == pa.null() else tried
    return pa.large_string() if any(map(pa.types.is_large_string, kinds)) else pa.string()


def convert(column: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """The column as `kind`, which `common_type` gave for it."""
    made = converted(column, kind)
    return made if made is not None else as_text(column, kind)


def converted(
    column: pa.Array | pa.ChunkedArray, kind: pa.DataType
) -> pa.Array | pa.ChunkedArray | None:
    """The column as `kind`, None if that is not the same values."""
    if column.type == kind:
        return column
    if _is_text(kind) and not _is_text(_meant(column.type)) and column.type != pa.null():
        return None
    try:
        return column.cast(kind)  # which fails where a value would change
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
    seen: list[pa.DataType] = []
    for choice in _CHOICES:
        found = reduce(lambda one, other: _common(one, other, choice), kinds[1:], kinds[0])
        if found is not None and found not in seen:
            seen.append(found)
            yield found


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
        key, item = (
            _common(one.key_type, other.key_type, choice),
            _common(one.item_type, other.item_type, choice),
        )
        return None if key is None or item is None else pa.map_(key, item)
    if _is_list(one) and _is_list(other):
        inner = _common(one.value_type, other.value_type, choice)
        if inner is None:
            return None
        large = is_kind.is_large_list(one) or is_kind.is_large_list(other)
        if (
            is_kind.is_fixed_size_list(one)
            and is_kind.is_fixed_size_list(other)
            and one.list_size == other.list_size
        ):
            return pa.list_(inner, one.list_size)
        return pa.large_list(inner) if large else pa.list_(inner)
    return None


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


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


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_exact(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_decimal(kind))


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


def _width(kind: pa.DataType) -> int:
    return int(kind.bit_width)


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
        return None  # an instant is no time of a calendar
    return pa.timestamp(_unit(one, other, choice), one.tz if one.tz == other.tz else "UTC")


def _duration(one: pa.DataType, other: pa.DataType, choice: _Choice) -> pa.DataType | None:
    return pa.duration(_unit(one, other, choice))


def _time(one: pa.DataType, other: pa.DataType, choice: _Choice) -> pa.DataType | None:
    unit: Literal["us", "ns"] = "ns" if "ns" in (one.unit, other.unit) else "us"
    return pa.time64(unit)


def _date(one: pa.DataType, other: pa.DataType, choice: _Choice) -> pa.DataType | None:
    return pa.date32()


def _unit(one: pa.DataType, other: pa.DataType, choice: _Choice) -> str:
    return str((max if choice.finer else min)(one.unit, other.unit, key=_UNITS.index))


def _string(one: pa.DataType, other: pa.DataType, choice: _Choice) -> pa.DataType | None:
    return pa.large_string()


def _binary(one: pa.DataType, other: pa.DataType, choice: _Choice) -> pa.DataType | None:
    return (
        pa.large_binary()
        if pa.types.is_large_binary(one) or pa.types.is_large_binary(other)
        else pa.binary()
    )


_SCALARS: list[
    tuple[
        Callable[[pa.DataType], bool],
        Callable[[pa.DataType, pa.DataType, _Choice], pa.DataType | None],
    ]
] = [
    (_is_number, _number),
    (_is_exact, _decimal),
    (pa.types.is_timestamp, _timestamp),
    (pa.types.is_duration, _duration),
    (pa.types.is_time, _time),
    (pa.types.is_date, _date),
    (_is_text, _string),
    (_is_binary, _binary),
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
