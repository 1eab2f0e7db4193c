"""What a job returns."""

from __future__ import annotations

import csv
import glob
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from penstock.batch.job.counts import Counts
from penstock.batch.read.delimited import allow_long_fields
from penstock.batch.read.files import filesystem, is_url
from penstock.batch.rows.row import Outcome, Row, RowForm
from penstock.errors import InputError, OutputError

if TYPE_CHECKING:
    import pyarrow as pa

    from penstock.batch.write.tables import Tables


@dataclass
class RunResult:
    """The end of a job: its `counts`, and where its rows are.

    `output` is the path or URL of the output, None for results in memory. `already_complete` says
    that an earlier run had done everything; then only `counts.rows` and `counts.errors` are set.
    `stopped_by` is the number of the signal that drained the job before its end.
    """

    counts: Counts
    output: str | None = None
    already_complete: bool = False
    stopped_by: int | None = None
    _items: list[tuple[Row, Outcome]] = field(default_factory=list, repr=False)
    _form: RowForm | None = field(default=None, repr=False)
    _tables: Callable[[], Tables | None] | None = field(default=None, repr=False)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The output rows. Those of a CSV are all text."""
        path = self.output
        if path is None:
            if self._form is not None:
                for row, outcome in self._items:
                    yield self._form.output(row, outcome)
        elif path == "-":
            raise OutputError("the results went to standard output and cannot be read again")
        elif path.lower().endswith((".jsonl", ".ndjson")):
            with _open(path, "rb") as file:
                decode = msgspec.json.Decoder().decode
                for line in file:
                    yield decode(line)
        elif path.lower().endswith(".csv"):
            allow_long_fields()
            with _open(path, "r") as file:
                yield from csv.DictReader(file)
        else:
            from penstock.batch.values.from_arrow import python_rows

            for batch in self.table().to_batches(max_chunksize=1024):
                yield from python_rows(batch)

    async def rows_to_read(self) -> Any:
        """What a job that has this result as its source reads. Raises `InputError` for what went to
        standard output.
        """
        if self.output == "-":
            raise InputError("rows that went to standard output cannot be read again")
        return self.output if self.output is not None else list(self.rows())

    def table(self) -> pa.Table:
        """The output rows as an Arrow table."""
        from penstock.batch.read.arrow import read_parquet

        if (
            self.output is None
            and self._tables is not None
            and (tables := self._tables()) is not None
        ):
            if not self._items:
                return tables.empty()
            return tables.make(
                [row for row, _ in self._items], [outcome for _, outcome in self._items]
            )
        if self.output not in (None, "-") and not self.output.lower().endswith(
            (".jsonl", ".ndjson", ".csv")
        ):
            return read_parquet(_parquet_files(self.output))
        from penstock.batch.write.tables import from_rows

        return from_rows(list(self.rows()))


def _open(path: str, mode: str) -> Any:
    options: dict[str, Any] = {"encoding": "utf-8", "newline": ""} if mode == "r" else {}
    if is_url(path):
        import fsspec

        return fsspec.open(path, mode, **options).open()
    return open(path, mode, **options)


def _parquet_files(path: str) -> list[str]:
    if is_url(path):
        fs, inner = filesystem(path)
        found = (
            sorted(fs.glob(f"{inner.rstrip('/')}/part-*.parquet")) if fs.isdir(inner) else [inner]
        )
        return [fs.unstrip_protocol(name) for name in found]
    return (
        sorted(glob.glob(os.path.join(glob.escape(path), "part-*.parquet")))
        if os.path.isdir(path)
        else [path]
    )
