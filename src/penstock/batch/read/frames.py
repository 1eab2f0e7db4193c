"""Frames of pandas and Polars as Arrow tables, whatever their columns hold."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from penstock.batch.values.arrow import array
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
    """A Polars frame. Raises `InputError` for a column of Python objects, which has no Arrow
    form.
    """
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
    """Whether Arrow would hold what pandas stores for a value, and not the value: intervals and
    periods.
    """
    categories = getattr(kind, "categories", None)
    return kind.kind == "O" and (
        type(kind).__name__ in ("IntervalDtype", "PeriodDtype")
        or (
            categories is not None
            and (str(categories.dtype) == "object" or _is_opaque(categories.dtype))
        )
    )
