"""Writers of part files: output rows in a job's own form, complete and on disk before they get
their name.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from penstock import private_files
from penstock.batch.rows.row import Outcome, Row, RowForm
from penstock.batch.state.durable_files import to_disk
from penstock.errors import OutputError

if TYPE_CHECKING:
    import pyarrow as pa

    from penstock.batch.write.tables import Tables

_TABLE_ROWS = 512


class PartWriter(Protocol):
    """Writes one part. `nbytes` is about what it holds so far. Raises `OutputError`."""

    nbytes: int

    def add(self, row: Row, outcome: Outcome) -> None: ...

    def finish(self) -> None:
        """Put the part in place under its name. May run in another thread."""

    def abandon(self) -> None: ...


class JsonlWriter:
    """A part of JSON lines."""

    def __init__(self, path: Path, form: RowForm) -> None:
        self.nbytes = 0
        self._path = path
        self._form = form
        try:
            # closed in finish
            self._file = open(  # noqa: SIM115
                _temporary(path), "wb", buffering=1 << 18, opener=private_files.opener
            )
        except OSError as error:
            raise _failure(error) from error

    def add(self, row: Row, outcome: Outcome) -> None:
        line = self._form.line(row, outcome)
        self.nbytes += len(line)
        try:
            self._file.write(line)
        except OSError as error:
            raise _failure(error) from error

    def finish(self) -> None:
        try:
            to_disk(self._file)
            self._file.close()
            os.replace(_temporary(self._path), self._path)
        except OSError as error:
            self.abandon()
            raise _failure(error) from error

    def abandon(self) -> None:
        # It cannot take its last bytes, and nobody will read them.
        with contextlib.suppress(OSError):
            self._file.close()
        _discard(self._path)


class ParquetWriter:
    """A part of Parquet, one row group. Rows become Arrow data every 512 rows, which takes less
    memory than dicts.
    """

    def __init__(self, path: Path, tables: Tables) -> None:
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
        import pyarrow as pa

        from penstock.batch.write.tables import conform, storable, unify_tables

        if self._rows:
            self._convert()
        schema = unify_tables(self._done)
        tables = (conform(table, schema) for table in self._done)
        try:
            try:
                self._write(schema, tables)
            except (
                pa.ArrowException
            ):  # a value without a place in Parquet, such as a second of a very far year
                whole = storable(pa.concat_tables([conform(table, schema) for table in self._done]))
                self._write(whole.schema, [whole])
            os.replace(_temporary(self._path), self._path)
        except OSError as error:
            raise _failure(error) from error

    def _write(self, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
        import pyarrow.parquet as pq

        with open(_temporary(self._path), "wb", opener=private_files.opener) as file:
            with pq.ParquetWriter(file, schema) as writer:
                for table in tables:
                    writer.write_table(table)
            to_disk(file)

    def abandon(self) -> None:
        _discard(self._path)

    def _convert(self) -> None:
        self._done.append(self._tables.make(self._rows, self._outcomes))
        self._rows, self._outcomes = [], []


MakeWriter = Callable[[Path], PartWriter]


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def _discard(path: Path) -> None:
    with contextlib.suppress(OSError):  # the next run removes it
        _temporary(path).unlink(missing_ok=True)


def _failure(error: OSError) -> OutputError:
    return OutputError(f"the results cannot be written: {error.strerror or error}")
