"""What every source of rows offers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from penstock.batch.rows.row import Row
from penstock.errors import InputError, told

if TYPE_CHECKING:
    import pyarrow as pa


@runtime_checkable
class HasRows(Protocol):
    """Something that is no rows itself and leads to some: a job, or the result of one."""

    async def rows_to_read(self) -> Any:
        """A source in its place."""


BATCH_ROWS = 256
BATCH_BYTES = 1 << 20


class Source:
    """Rows to read, in a fixed order, numbered from 0.

    `columns` are the columns known beforehand, from a schema or the first rows; empty if none are.
    `schema` is the Arrow schema where the data has one. `rows` is their number where it is known
    without reading. `first` is the first good row. `json_values` says that rows hold only what JSON
    has. `fingerprint` tells one data set from another; None for streams, whose rows are compared as
    they come again.
    """

    name: str = "rows"
    columns: tuple[str, ...] = ()
    schema: pa.Schema | None = None
    rows: int | None = None
    first: dict[str, Any] | None = None
    fingerprint: dict[str, Any] | None = None
    json_values: bool = False

    def batches(self, start: int = 0, columns: Sequence[str] | None = None) -> Iterator[list[Row]]:
        """Rows from number `start` on, in lists of bounded size.

        A damaged row comes as a row with a `fault`. `columns` limits what sources with an Arrow
        form put into `Row.values`; None means everything. Raises `InputError` if the rest cannot be
        read.
        """
        raise NotImplementedError

    def every_column(self) -> tuple[str, ...] | None:
        """The columns that rows may have, those that only later rows have too; None where nobody
        can tell.
        """
        return self.columns

    def reads(self, path: str) -> bool:
        """Whether the file at `path` is part of this data."""
        return False

    async def close(self) -> None:
        """Let go of what looking at the first rows has begun, where nobody read on."""


def unreadable(error: BaseException) -> InputError:
    """The error that tells what ended the reading of rows, whatever that was."""
    made = InputError(f"reading the rows failed: {told(error)}")
    made.__cause__ = error
    return made


def columns_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """The columns of some rows, in order of first appearance."""
    return tuple(
        dict.fromkeys(name for row in rows if row.values is not None for name in row.values)
    )


def first_of(rows: Sequence[Row]) -> dict[str, Any] | None:
    """The values of the first row that could be read."""
    return next((row.values for row in rows if row.values is not None), None)


def twice_in(names: Sequence[str]) -> str | None:
    """The first name that stands among `names` a second time."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
