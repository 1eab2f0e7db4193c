"""The key column of a job that takes a changed input again: what tells one row from another."""

from __future__ import annotations

import contextlib
import math
from hashlib import blake2b
from typing import Any

import msgspec

from penstock.batch.read.sources import Source, check_column, read_ahead
from penstock.batch.rows.row import Row
from penstock.batch.values.plain import json_line
from penstock.errors import InputError

_encode = msgspec.msgpack.Encoder(order="deterministic", enc_hook=str).encode


class RowKeys:
    """The keys of rows: the values of `column`. `whole`: a row with any other value changed is
    another row; otherwise only what is asked counts.
    """

    def __init__(self, column: str, *, whole: bool) -> None:
        self.column = column
        self._whole = whole

    async def check(self, source: Source, limit: int | None) -> None:
        """Read all keys. Raises `ConfigError` if there is no such column, `InputError` for a key
        that is null or stands in two rows, by its row. Holds about 100 bytes a row meanwhile.
        """
        check_column(self.column, source.every_column(), "key")
        seen: dict[int, int] = {}
        async with contextlib.aclosing(read_ahead(source, 0, limit, (self.column,))) as batches:
            async for batch in batches:
                for row in batch:
                    if row.values is None:
                        continue  # it cannot be read, and becomes an error row without any answer
                    value = row.values.get(self.column)
                    if _is_null(value):
                        raise InputError(
                            f"row {row.index} has no key: its column '{self.column}' is"
                            f" {'empty' if value == '' else 'null'}"
                        )
                    first = seen.setdefault(_number(value), row.index)
                    if first != row.index:
                        raise InputError(
                            f"rows {first} and {row.index} have the same key: column"
                            f" '{self.column}' is {_shown(value)} in both"
                        )

    def mark(self, row: Row) -> None:
        """Set the row's `key`; a row that cannot be read has none."""
        values = row.values
        if values is not None:
            value = values.get(self.column)
            row.key = _number((value, json_line(values)) if self._whole else value)


def _is_null(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _number(value: Any) -> int:
    """56 bits that stand for a value. Those of a number are not those of its text."""
    try:
        data = _encode(value)
    except (TypeError, ValueError, OverflowError):  # it holds half a character, or is very large
        data = repr(value).encode(errors="backslashreplace")
    return int.from_bytes(blake2b(data, digest_size=7).digest(), "little")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
