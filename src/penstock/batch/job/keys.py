"""The keys of an incremental job's rows, and the keys that its earlier input had."""

from __future__ import annotations

import contextlib
import math
from array import array
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from penstock.batch.read.sources import (
    Source,
    check_column,
    every_column,
    in_daemon_thread,
    read_ahead,
)
from penstock.batch.rows.row import Row
from penstock.batch.values.plain import json_line
from penstock.batch.write.manifest import normal
from penstock.batch.write.state_files import checksum, replace_file
from penstock.errors import InputError

FILE = "keys.bin"


class _Head(Struct, frozen=True):
    """What the key file describes: the key `column` of an `input` with these `columns` and
    `schema`. `on_error` decides too which rows the output has, and is not in the job's manifest.
    """

    column: str
    input: dict[str, Any]
    columns: tuple[str, ...]
    schema: str | None
    on_error: Any


_encode = msgspec.msgpack.Encoder(order="deterministic", enc_hook=str).encode
_encode_head = msgspec.json.Encoder().encode
_decode_head = msgspec.json.Decoder(_Head).decode


class RowKeys:
    """The keys of rows: the values of `column`. Call `check` first. Eight bytes are held for each
    row.

    `whole_rows`: a row counts as changed if any of its values changed; otherwise only if its
    request changed. `earlier_input` is the fingerprint of an earlier run's input, if this input
    begins with all rows of that one and `on_error` is the same; else None.
    """

    def __init__(
        self, column: str, *, whole_rows: bool, on_error: str | Mapping[str, str] | None = None
    ) -> None:
        self.column = column
        self.earlier_input: Mapping[str, Any] | None = None
        self._whole_rows = whole_rows
        self._on_error = dict(on_error) if isinstance(on_error, Mapping) else on_error
        self._numbers = array("Q")
        self._head: _Head | None = None
        self._stored: tuple[_Head, int] | None = None

    async def check(self, source: Source, limit: int | None, folder: Path | None = None) -> None:
        """Read all keys, except those that an earlier run has stored in the state directory
        `folder`. Raises `ConfigError` if there is no such column, and `InputError`, which names the
        row, for a key that is null or that two rows have. Holds about 100 bytes a row meanwhile.
        """
        check_column(self.column, await every_column(source, (self.column,)), "key")
        schema = source.schema
        head = self._head = _Head(
            self.column,
            normal(source.fingerprint or {}),
            tuple(source.columns),
            None if schema is None else schema.remove_metadata().to_string(),
            self._on_error,
        )
        if folder is not None:
            await in_daemon_thread(lambda: self._take_up(source, head, folder))
        numbers = self._numbers
        seen = set(numbers)
        start = len(numbers)
        async with contextlib.aclosing(read_ahead(source, start, limit, (self.column,))) as batches:
            async for batch in batches:
                for row in batch:
                    if (values := row.sound) is None:
                        numbers.append(0)  # it becomes an error row without any answer
                        continue
                    value = values.get(self.column)
                    if _is_null(value):
                        raise InputError(
                            f"row {row.index} has no key: its column '{self.column}' is"
                            f" {'empty' if value == '' else 'null'}"
                        )
                    number = _number(value)
                    if number in seen:
                        raise InputError(
                            f"rows {numbers.index(number)} and {row.index} have the same key:"
                            f" column '{self.column}' is {_shown(value)} in both"
                        )
                    seen.add(number)
                    numbers.append(number)

    def save(self, folder: Path) -> None:
        """Store the keys for a later run. Raises `OutputError`."""
        if (self._head, len(self._numbers)) != self._stored:
            data = b"%b\n%b" % (_encode_head(self._head), self._numbers.tobytes())
            replace_file(folder / FILE, b"%016x%b" % (checksum(data), data))

    def mark(self, row: Row) -> None:
        """Set the row's `key`. Two rows get none: one that cannot be read, and one that was added
        to its file after `check`, as that file is refused when it has been read.
        """
        if (values := row.sound) is None:
            return
        if self._whole_rows:
            row.key = _number((values.get(self.column), json_line(values)))
        elif row.index < len(self._numbers):
            row.key = self._numbers[row.index]

    def _take_up(self, source: Source, head: _Head, folder: Path) -> None:
        """Take the keys that an earlier run has stored, if `source` begins with its input."""
        try:
            data = (folder / FILE).read_bytes()
            line, _, body = data[16:].partition(b"\n")
            known = _decode_head(line)
            numbers = array("Q", body)
        except (OSError, ValueError):
            return  # there is none, or it is damaged
        if data[:16] != b"%016x" % checksum(data[16:]) or known.column != self.column:
            return
        # A last row that could not be read may have been cut short, and be whole now.
        if source.begins_with(known.input, sound_end=not numbers or numbers[-1] != 0):
            self._numbers = numbers
            self._stored = known, len(numbers)
            if known == replace(head, input=known.input):
                self.earlier_input = known.input


def _is_null(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _number(value: Any) -> int:
    """A hash of a value, of 56 bits. The number 1 and the text "1" have different ones."""
    try:
        data = _encode(value)
    except (TypeError, ValueError, OverflowError):  # a lone surrogate, or a very large integer
        data = repr(value).encode(errors="backslashreplace")
    return int.from_bytes(blake2b(data, digest_size=7).digest(), "little")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
