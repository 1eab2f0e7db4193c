"""Writers of part files: output rows in a job's own form, complete and on disk before they get their name."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from penstock import private
from penstock.batch.requests import RequestForm
from penstock.batch.rows import Outcome, Row
from penstock.errors import OutputError

if TYPE_CHECKING:
    import pyarrow as pa

    from penstock.batch.row_tables import RowTables
    from penstock.batch.tables import Tables

_TABLE_ROWS = 512

_encode = msgspec.json.Encoder(enc_hook=lambda value: _builtin(value)).encode


class PartWriter(Protocol):
    """Writes one part. `nbytes` is about what it holds so far. Raises `OutputError`."""

    nbytes: int

    def add(self, row: Row, outcome: Outcome) -> None:
        """Append an output row."""

    def finish(self) -> None:
        """Put the part in place under its name. May run in another thread."""

    def abandon(self) -> None:
        """Close and remove it."""


class JsonlWriter:
    """A part of JSON lines."""

    def __init__(self, path: Path, form: RequestForm) -> None:
        self.nbytes = 0
        self._path = path
        self._form = form
        try:
            # closed in finish
            self._file = open(_temporary(path), "wb", buffering=1 << 18, opener=private.opener)  # noqa: SIM115
        except OSError as error:
            raise _failure(error) from error

    def add(self, row: Row, outcome: Outcome) -> None:
        line = json_line(self._form.output(row, outcome))
        self.nbytes += len(line)
        try:
            self._file.write(line)
        except OSError as error:
            raise _failure(error) from error

    def finish(self) -> None:
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(_temporary(self._path), self._path)
        except OSError as error:
            self.abandon()
            raise _failure(error) from error

    def abandon(self) -> None:
        with contextlib.suppress(OSError):  # it cannot take its last bytes, and nobody will read them
            self._file.close()
        _temporary(self._path).unlink(missing_ok=True)


class ParquetWriter:
    """A part of Parquet, one row group. Rows become Arrow data every 512 rows, which takes less memory than dicts."""

    def __init__(self, path: Path, tables: Tables | RowTables) -> None:
        self.nbytes = 0
        self._path = path
        self._tables = tables
        self._done: list[pa.Table] = []
        self._rows: list[Row] = []
        self._outcomes: list[Outcome] = []

    def add(self, row: Row, outcome: Outcome) -> None:
        self._rows.append(row)
        self._outcomes.append(outcome)
        self.nbytes += row.nbytes + len(outcome.response or "")
        if len(self._rows) >= _TABLE_ROWS:
            self._convert()

    def finish(self) -> None:
        import pyarrow.parquet as pq

        from penstock.batch.tables import conform, unify

        if self._rows:
            self._convert()
        schema = unify([table.schema for table in self._done])
        try:
            with open(_temporary(self._path), "wb", opener=private.opener) as file:
                with pq.ParquetWriter(file, schema) as writer:
                    for table in self._done:
                        writer.write_table(conform(table, schema))
                file.flush()
                os.fsync(file.fileno())
            os.replace(_temporary(self._path), self._path)
        except OSError as error:
            raise _failure(error) from error

    def abandon(self) -> None:
        _temporary(self._path).unlink(missing_ok=True)

    def _convert(self) -> None:
        self._done.append(self._tables.make(self._rows, self._outcomes))
        self._rows, self._outcomes = [], []


MakeWriter = Callable[[Path], PartWriter]


def json_line(values: dict[str, Any]) -> bytes:
    """One output row as a line of JSON. Dates become ISO text, bytes base64, unknown objects their `str`."""
    try:
        return _encode(values) + b"\n"
    except (UnicodeEncodeError, TypeError):
        return _encode(_sound(values)) + b"\n"


def _builtin(value: Any) -> Any:
    """NumPy scalars and arrays as Python values, anything else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _sound(value: Any) -> Any:
    """The value with lone surrogates, which no encoding can hold, replaced, and keys as text."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {_sound(str(key)): _sound(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_sound(part) for part in value]
    return value


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def _failure(error: OSError) -> OutputError:
    return OutputError(f"the results cannot be written: {error.strerror or error}")
