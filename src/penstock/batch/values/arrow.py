"""Arrow data from Python values, and back. No value is cut or rounded.

A column that no Arrow type can hold becomes text. Times finer than a microsecond are of the classes
in `nanoseconds`; times outside of Python's calendar become text.
"""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable, Sequence
from itertools import chain, pairwise
from typing import Any

import pyarrow as pa

from penstock.batch.values.nanoseconds import (
    NanoDatetime,
    NanoTime,
    NanoTimedelta,
    date_text,
    length_of,
    point_of,
    time_of,
    total_nanoseconds,
)
from penstock.batch.values.plain import LEAVES, NANOSECONDS, encodable, plain, text

_NONE = type(None)
_EXACT = 1 << 53
"""Integers up to this size can be in a float column."""
_TIMES = {
    _NONE,
    datetime.datetime,
    datetime.time,
    datetime.timedelta,
    NanoDatetime,
    NanoTime,
    NanoTimedelta,
}
MOST_FIELDS = 1000
"""The most fields of an object that does not become text: keys that differ in each row are data."""
_DEEPEST = 30
"""Arrow reads Parquet only up to 100 levels, of which a list takes three."""
_TEXT, _WHOLE, _FLOAT = {str}, {int}, {float}
_SIMPLE: dict[frozenset[type], pa.DataType] = {
    frozenset({str}): pa.string(),
    frozenset({bool}): pa.bool_(),
    frozenset({float}): pa.float64(),
    frozenset({bytes}): pa.binary(),
    frozenset({datetime.date}): pa.date32(),
}
FAILURES = (pa.ArrowException, TypeError, ValueError, OverflowError)
_EPOCH = datetime.datetime(1970, 1, 1)
_DAY = 86_400_000


def array(values: Sequence[Any], kind: pa.DataType | None = None) -> pa.Array:
    """An array of type `kind` (None: that of the values), or of text if that type does not hold
    each value unchanged.

    Raises `UnstorableError` for a value that no output can hold.
    """
    try:  # without a walk: most values are plain already
        found = kind_of(values)
    except RecursionError:
        found = None
    if found is None and not LEAVES.issuperset(map(type, values)):
        values = [plain(value) for value in values]
        found = kind_of(values)
    for tried in (kind, found):
        if tried is not None:
            made = _exactly(values, tried, check=tried is kind)
            if made is not None:
                return made
    return texts(values)


def texts(values: Sequence[Any]) -> pa.Array:
    """An array of the values' text. Raises `UnstorableError`."""
    return pa.array([text(value) for value in values], pa.string())


def kind_of(values: Sequence[Any]) -> pa.DataType | None:
    """The Arrow type that holds all of some plain values unchanged; None if only text does."""
    kinds = frozenset(map(type, values)) - {_NONE}
    if not kinds:
        return pa.null()
    if kinds in _SIMPLE:
        return _SIMPLE[kinds]
    if kinds == {list}:
        inside = frozenset(map(type, chain.from_iterable(filter(None, values)))) - {_NONE}
        inner = _SIMPLE.get(inside) or kind_of(list(chain.from_iterable(filter(None, values))))
        return None if inner is None else pa.list_(inner)
    if kinds == {dict}:
        return _struct_of([value for value in values if value is not None])
    present = [value for value in values if value is not None]
    if kinds == {int}:
        least, most = min(present), max(present)
        if least >= -(1 << 63) and most < 1 << 63:
            return pa.int64()
        return pa.uint64() if least >= 0 and most < 1 << 64 else None
    if kinds == {int, float}:
        whole = [value for value in present if type(value) is int]
        return pa.float64() if min(whole) >= -_EXACT and max(whole) <= _EXACT else None
    if kinds == {decimal.Decimal}:
        return _inferred(present)
    if kinds <= {datetime.datetime, NanoDatetime}:
        zones = {None if value.utcoffset() is None else str(value.tzinfo) for value in present}
        if None in zones and (len(zones) > 1 or any(value.tzinfo is not None for value in present)):
            return None  # some have a zone, and some do not
        zone = None if None in zones else _zone_of(present) if len(zones) == 1 else "UTC"
        return pa.timestamp("ns" if NanoDatetime in kinds else "us", zone)
    if kinds <= {datetime.timedelta, NanoTimedelta}:
        return pa.duration("ns" if NanoTimedelta in kinds else "us")
    if kinds <= {datetime.time, NanoTime} and all(value.tzinfo is None for value in present):
        return pa.time64("ns" if NanoTime in kinds else "us")
    return None


def holds(values: Sequence[Any], column: pa.Array) -> bool:
    """Whether the column has these plain values. A missing key counts as null."""
    return all(map(same, python_values(column), values))


def same(one: Any, other: Any) -> bool:
    """Whether two plain values are equal, and of like kinds."""
    kind = type(other)
    if one is None or other is None:
        return one is other
    if kind is dict:
        if type(one) is not dict or not one.keys() >= other.keys():
            return False
        return all(same(part, other.get(name)) for name, part in one.items())
    if kind is list:
        if not isinstance(one, list | tuple) or len(one) != len(other):
            return False
        return one == other or all(map(same, one, other))
    if kind is float and other != other:
        return bool(one != one)
    if (
        type(one) is not kind
        and not (_number(one) and _number(other))
        and not _both_times(one, other)
    ):
        return False
    return bool(one == other)


def _exactly(values: Sequence[Any], kind: pa.DataType, *, check: bool) -> pa.Array | None:
    try:
        made = build(values, kind)
    except UnicodeEncodeError:
        return _exactly(encodable(list(values)), kind, check=check)
    except FAILURES:
        return None
    if check and not _obviously(values, kind) and not holds(values, made):
        return None
    return made if _storable(kind) else None


def build(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """As `pa.array`, which would cut nanoseconds off."""
    if not _finer(kind):
        return pa.array(values, kind)
    if pa.types.is_struct(kind):
        fields = [
            build([None if value is None else value.get(f.name) for value in values], f.type)
            for f in kind
        ]
        absent = pa.array([value is None for value in values], pa.bool_())
        return pa.StructArray.from_arrays(fields, fields=list(kind), mask=absent)
    if pa.types.is_list(kind):
        parts = build(list(chain.from_iterable(filter(None, values))), kind.value_type)
        ends = [0]
        for value in values:
            ends.append(ends[-1] + len(value or ()))
        starts = [None if value is None else end for value, end in zip(values, ends, strict=False)]
        return pa.ListArray.from_arrays(pa.array([*starts, ends[-1]], pa.int32()), parts, type=kind)
    if pa.types.is_temporal(kind):
        if not set(map(type, values)) <= _TIMES:  # a far year is text
            raise TypeError("a value that is no time")
        ticks = [None if value is None else total_nanoseconds(value) for value in values]
        return pa.array(ticks, pa.int64()).cast(kind)
    return pa.array(values, kind)


def _finer(kind: pa.DataType) -> bool:
    if pa.types.is_temporal(kind):
        return getattr(kind, "unit", None) == "ns"
    return any(_finer(kind.field(place).type) for place in range(kind.num_fields))


def _obviously(values: Sequence[Any], kind: pa.DataType) -> bool:
    """Whether the type holds the values, if that is clear without a comparison."""
    kinds = frozenset(map(type, values)) - {_NONE}
    if kinds <= _TEXT:
        return kind in (pa.string(), pa.large_string())
    return bool((kinds == _WHOLE and kind == pa.int64()) or _SIMPLE.get(kinds) == kind)


def _struct_of(values: list[dict[str, Any]]) -> pa.DataType | None:
    names = dict.fromkeys(chain.from_iterable(values))
    # Parquet cannot hold an object without fields; very many fields are data.
    if not 0 < len(names) <= MOST_FIELDS or not _TEXT.issuperset(map(type, names)):
        return None
    fields = []
    for name in names:
        inner = kind_of([value.get(name) for value in values])
        if inner is None:
            return None
        fields.append((name, inner))
    return pa.struct(fields)


def _inferred(values: list[Any]) -> pa.DataType | None:
    try:
        return pa.array(values).type
    except FAILURES:
        return None


def _zone_of(values: list[Any]) -> str:
    inferred = _inferred(values[:1])
    return inferred.tz if inferred is not None and inferred.tz else "UTC"


def _storable(kind: pa.DataType, depth: int = 0) -> bool:
    """Whether Parquet can hold the type: no objects without fields, and not too deep."""
    if depth > _DEEPEST or (pa.types.is_struct(kind) and not kind.num_fields):
        return False
    return all(_storable(kind.field(place).type, depth + 1) for place in range(kind.num_fields))


def _number(value: Any) -> bool:
    return isinstance(value, int | float | decimal.Decimal) and not isinstance(value, bool)


def _both_times(one: Any, other: Any) -> bool:
    kinds = (datetime.datetime, datetime.time, datetime.timedelta)
    return any(isinstance(one, kind) and isinstance(other, kind) for kind in kinds)


def python_values(array: pa.Array | pa.ChunkedArray) -> list[Any]:
    """The values of a column."""
    if isinstance(array, pa.ChunkedArray):
        return [value for chunk in array.chunks for value in python_values(chunk)]
    kind = array.type
    if not _holds_times(kind):
        values: list[Any] = array.to_pylist()
        return values
    if pa.types.is_temporal(kind):
        return _times(array)
    if isinstance(kind, pa.BaseExtensionType):
        return python_values(array.storage)
    if pa.types.is_dictionary(kind):
        meanings = python_values(array.dictionary)
        return [None if index is None else meanings[index] for index in array.indices.to_pylist()]
    if pa.types.is_run_end_encoded(kind):
        meanings = python_values(array.values)
        return [meanings[number] for number in run_numbers(array).to_pylist()]
    if pa.types.is_struct(kind):
        columns = [python_values(column) for column in array.flatten()]
        names = [field.name for field in kind]
        rows = zip(*columns, strict=True)
        return _unless_null(array, (dict(zip(names, row, strict=True)) for row in rows))
    if pa.types.is_union(kind):
        return [None if not part.is_valid else of_arrow(part.value) for part in array]
    if pa.types.is_map(kind):
        pairs = list(zip(python_values(array.keys), python_values(array.items), strict=True))
        starts = array.offsets.to_pylist()
        return _unless_null(array, (pairs[start:stop] for start, stop in pairwise(starts)))
    import pyarrow.compute as pc  # a fifth of PyArrow's own time: only where it is needed

    parts = iter(python_values(array.flatten()))
    lengths = pc.list_value_length(array).to_pylist()
    return [None if length is None else [next(parts) for _ in range(length)] for length in lengths]


def run_numbers(array: pa.Array) -> pa.Array:
    """For each row of a run-end encoded array, which of its `values` it has. `pc.run_end_decode`
    knows few types of values.
    """
    import pyarrow.compute as pc

    numbers = pa.array(range(len(array.values)), pa.int64())
    runs = pa.RunEndEncodedArray.from_arrays(array.run_ends, numbers)
    return pc.run_end_decode(runs.slice(array.offset, len(array)))


def of_arrow(value: Any) -> Any:
    """The Python value of a scalar, array or table of Arrow's."""
    match value:
        case pa.Scalar():
            return python_values(pa.array([value], value.type))[0]
        case pa.Array() | pa.ChunkedArray():
            return python_values(value)
        case pa.RecordBatch() | pa.Table():
            return python_rows(value)
        case _:
            return str(value)


def python_rows(batch: pa.RecordBatch | pa.Table) -> list[dict[str, Any]]:
    """The rows of a table or batch as dicts of Python values."""
    if not batch.num_columns:
        return [{} for _ in range(batch.num_rows)]
    columns = [python_values(column) for column in batch.columns]
    names = batch.schema.names
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _unless_null(array: pa.Array, values: Any) -> list[Any]:
    if not array.null_count:
        return list(values)
    return [
        value if there else None
        for value, there in zip(values, array.is_valid().to_pylist(), strict=True)
    ]


def _holds_times(kind: pa.DataType) -> bool:
    """Whether the type has times that Arrow might change when it makes Python values."""
    if pa.types.is_temporal(kind):
        return not pa.types.is_interval(kind)
    if isinstance(kind, pa.BaseExtensionType):
        return _holds_times(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _holds_times(kind.value_type)
    return any(_holds_times(kind.field(place).type) for place in range(kind.num_fields))


def _times(array: pa.Array) -> list[Any]:
    kind = array.type
    if getattr(kind, "unit", None) == "ns":
        coarse = pa.timestamp("us", kind.tz) if pa.types.is_timestamp(kind) else None
        coarse = coarse or (pa.duration("us") if pa.types.is_duration(kind) else pa.time64("us"))
        try:
            array = array.cast(coarse)  # fails where it would lose something
        except pa.ArrowInvalid:
            return _one_by_one(array)
    try:
        values: list[Any] = array.to_pylist()
        return values
    except Exception:  # beyond the year 9999, or in a zone that this machine does not know
        return _one_by_one(array)


def _one_by_one(array: pa.Array) -> list[Any]:
    kind = array.type
    whole = pa.int32() if pa.types.is_date32(kind) or pa.types.is_time32(kind) else pa.int64()
    make = _maker(kind)
    return [None if ticks is None else make(ticks) for ticks in array.cast(whole).to_pylist()]


def _maker(kind: pa.DataType) -> Callable[[int], Any]:
    """A function that makes a Python value of a time's number; text if Python has no such time."""
    if pa.types.is_date(kind):
        return _date if pa.types.is_date32(kind) else lambda ticks: _date(ticks // _DAY)
    scale = NANOSECONDS[kind.unit]
    if pa.types.is_timestamp(kind):
        zone = _zone(kind.tz)
        return lambda ticks: point_of(ticks * scale, zone)
    make = length_of if pa.types.is_duration(kind) else time_of
    return lambda ticks: make(ticks * scale)


def _date(days: int) -> Any:
    try:
        return _EPOCH.date() + datetime.timedelta(days)
    except OverflowError:
        return date_text(days)


def _zone(name: str | None) -> datetime.tzinfo | None:
    if name is None:
        return None
    try:
        zone: datetime.tzinfo = pa.lib.string_to_tzinfo(name)
    except Exception:
        return datetime.UTC  # an unknown zone: the instant is right, but not the local time
    return zone
