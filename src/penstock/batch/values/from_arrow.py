"""The Python values of Arrow data, none of them cut or rounded.

Times finer than a microsecond are of the classes in `nanoseconds`, and times that Python's calendar
has no place for are text.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from penstock.batch.values.nanoseconds import (
    NanoDatetime,
    NanoTime,
    NanoTimedelta,
    date_text,
    datetime_text,
    duration_text,
)

PER_SECOND = {"s": 1, "ms": 1000, "us": 1_000_000, "ns": 1_000_000_000}
_EPOCH = datetime.datetime(1970, 1, 1)
_DAY = 86_400_000


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
        return python_values(pc.run_end_decode(array))
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
    parts = iter(python_values(array.flatten()))
    lengths = pc.list_value_length(array).to_pylist()
    return [None if length is None else [next(parts) for _ in range(length)] for length in lengths]


def of_arrow(value: Any) -> Any:
    """The Python value of a scalar, array or table of Arrow's."""
    if isinstance(value, pa.Scalar):
        return python_values(pa.array([value], value.type))[0]
    if isinstance(value, pa.Array | pa.ChunkedArray):
        return python_values(value)
    if isinstance(value, pa.RecordBatch | pa.Table):
        columns = [python_values(column) for column in value.columns]
        return [
            dict(zip(value.column_names, row, strict=True)) for row in zip(*columns, strict=True)
        ]
    return str(value)


def python_rows(batch: pa.RecordBatch | pa.Table) -> list[dict[str, Any]]:
    """The rows of a table or batch as dicts of Python values."""
    if not batch.num_columns:
        return [{} for _ in range(batch.num_rows)]
    rows: list[dict[str, Any]] = of_arrow(batch)
    return rows


def _unless_null(array: pa.Array, values: Any) -> list[Any]:
    if not array.null_count:
        return list(values)
    return [
        value if there else None
        for value, there in zip(values, array.is_valid().to_pylist(), strict=True)
    ]


def _holds_times(kind: pa.DataType) -> bool:
    """Whether there are times in it that Arrow might not turn into a Python value as they are."""
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
    """What makes a Python value of the number that stands for a time."""
    if pa.types.is_date(kind):
        return _date if pa.types.is_date32(kind) else lambda ticks: _date(ticks // _DAY)
    per_second = PER_SECOND[kind.unit]
    if pa.types.is_timestamp(kind):
        zone = _zone(kind.tz)
        return lambda ticks: _datetime(ticks, per_second, zone)
    if pa.types.is_duration(kind):
        return lambda ticks: _duration(ticks, per_second)
    return lambda ticks: _time(ticks, per_second)


def _date(days: int) -> Any:
    try:
        return _EPOCH.date() + datetime.timedelta(days)
    except OverflowError:
        return date_text(days)


def _datetime(ticks: int, per_second: int, zone: datetime.tzinfo | None) -> Any:
    micro, beyond = _micro(ticks, per_second)
    try:
        whole = _EPOCH + datetime.timedelta(microseconds=micro)
        if zone is not None:
            whole = whole.replace(tzinfo=datetime.UTC).astimezone(zone)
        return NanoDatetime.of(whole, beyond)
    except OverflowError:
        return datetime_text(ticks, per_second) + ("Z" if zone is not None else "")


def _duration(ticks: int, per_second: int) -> Any:
    micro, beyond = _micro(ticks, per_second)
    try:
        return NanoTimedelta.of(datetime.timedelta(microseconds=micro), beyond)
    except OverflowError:
        return duration_text(ticks, per_second)


def _time(ticks: int, per_second: int) -> Any:
    micro, beyond = _micro(ticks, per_second)
    try:
        return NanoTime.of((_EPOCH + datetime.timedelta(microseconds=micro)).time(), beyond)
    except OverflowError:
        return duration_text(ticks, per_second)


def _micro(ticks: int, per_second: int) -> tuple[int, int]:
    """Microseconds, and the nanoseconds beyond."""
    return divmod(ticks * (PER_SECOND["ns"] // per_second), 1000)


def _zone(name: str | None) -> datetime.tzinfo | None:
    if name is None:
        return None
    try:
        zone: datetime.tzinfo = pa.lib.string_to_tzinfo(name)
    except Exception:
        return datetime.UTC  # the instant is known, if not what clocks there show
    return zone
