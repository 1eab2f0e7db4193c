"""Arrow values for which Python has none, such as dates beyond the year 9999: they become text that loses nothing."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

_TICKS = {"s": 0, "ms": 3, "us": 6, "ns": 9}


class Unreadable(str):
    """Stands for a value that is damaged, and says how."""


def values_of(column: pa.Array) -> list[Any]:
    """A column's values as Python values or text, those that are damaged as `Unreadable`."""
    try:
        values: list[Any] = column.to_pylist()
        return values
    except Exception:  # OverflowError, ValueError, an error of Arrow's: each kind of value has its own
        return [_value_or_fault(scalar) for scalar in column]


def _value_or_fault(scalar: pa.Scalar) -> Any:
    try:
        return _value(scalar)
    except UnicodeDecodeError:
        return Unreadable("invalid UTF-8")
    except Exception:
        return Unreadable(f"a damaged value of type {scalar.type}")


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except Exception:
        kind = scalar.type
        if pa.types.is_timestamp(kind):
            return _timestamp(scalar)
        if pa.types.is_date(kind):
            return _instant(scalar.value, "D" if pa.types.is_date32(kind) else "ms", days=True)
        if pa.types.is_duration(kind):
            return _duration(scalar.value, kind.unit)
        if pa.types.is_struct(kind):
            return {field.name: _value(part) for field, part in zip(kind, scalar.values(), strict=True)}
        if pa.types.is_map(kind):
            return [(_value(pair["key"]), _value(pair["value"])) for pair in scalar]
        if isinstance(scalar, pa.ListScalar):
            return [_value(part) for part in scalar.values]
        if isinstance(scalar, pa.ExtensionScalar | pa.DictionaryScalar):
            return _value(scalar.value)
        raise


def _timestamp(scalar: pa.TimestampScalar) -> Any:
    unit, zone = scalar.type.unit, scalar.type.tz
    if zone is not None:
        try:  # where only the name of its time zone is unknown here, the instant is not
            return pa.scalar(scalar.value, pa.timestamp(unit, "UTC")).as_py()
        except Exception:
            return f"{_instant(scalar.value, unit)}Z"
    return _instant(scalar.value, unit)


def _instant(value: int, unit: str, *, days: bool = False) -> str:
    import numpy as np

    instant = np.datetime64(value, unit)  # type: ignore[call-overload]
    return str(instant.astype("datetime64[D]") if days else instant)


def _duration(value: int, unit: str) -> str:
    """As an ISO 8601 duration in seconds."""
    digits = _TICKS[unit]
    seconds, rest = divmod(abs(value), 10**digits)
    fraction = f".{rest:0{digits}}" if rest else ""
    return f"{'-' if value < 0 else ''}PT{seconds}{fraction}S"
