"""Arrow data some values of which cannot be read: the rows without these are good."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from penstock.batch.values.arrow import of_arrow, python_values


class Unreadable(str):
    """Stands for what cannot be read, and says why."""


def rows_of(batch: pa.RecordBatch) -> list[dict[str, Any] | Unreadable]:
    """The rows as dicts, one with a value that cannot be read as `Unreadable`."""
    names = batch.schema.names
    columns = zip(*map(_values, batch.columns), strict=True)
    return [_row(names, values) for values in columns]


def _row(names: list[str], values: tuple[Any, ...]) -> dict[str, Any] | Unreadable:
    for name, value in zip(names, values, strict=True):
        if isinstance(value, Unreadable):
            return Unreadable(f"column '{name}': {value}")
    return dict(zip(names, values, strict=True))


def _values(column: pa.Array) -> list[Any]:
    try:
        return python_values(column)
    except Exception:  # each kind of value has its own
        return [_value(scalar) for scalar in column]


def _value(scalar: pa.Scalar) -> Any:
    try:
        return of_arrow(scalar)
    except UnicodeDecodeError:
        return Unreadable("invalid UTF-8")
    except Exception:
        return Unreadable(f"a damaged value of type {scalar.type}")
