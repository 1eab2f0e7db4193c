"""Rows from Python: any iterable of dicts, plain or asynchronous."""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    Sized,
)
from itertools import chain, islice
from typing import Any

from penstock.batch.pipeline.offload import ends_task
from penstock.batch.read.base import BATCH_ROWS, Source, columns_of, unreadable
from penstock.batch.rows.row import UNKNOWN_BYTES, FailedRow, Row, nbytes
from penstock.batch.values.plain import UnstorableError, key_text
from penstock.parsing.text import MAX_NESTING, TOO_DEEP, is_too_deep

_TEXT = frozenset({str})


class Rows(Source):
    """An iterable of dicts. Those of a generator come one by one, as the next may be long in
    coming.
    """

    def __init__(self, rows: Iterable[Any]) -> None:
        if isinstance(rows, Sized):
            self.rows = len(rows)
        self._iterator = iter(rows)
        self._preview = list(islice(self._read(), 1))
        self.columns = columns_of(self._preview)
        self._all = rows if isinstance(rows, list | tuple) else None
        self.first = self._preview[0].values if self._preview else None

    def every_column(self) -> tuple[str, ...] | None:
        if self._all is None:
            return None
        return tuple(
            dict.fromkeys(name for row in self._all if isinstance(row, Mapping) for name in row)
        )

    def batches(self, start: int = 0, columns: Sequence[str] | None = None) -> Iterator[list[Row]]:
        rows = islice(chain(self._preview, self._read(len(self._preview))), start, None)
        if self._all is None:
            return ([row] for row in rows)
        return iter(lambda: list(islice(rows, BATCH_ROWS)), [])

    def _read(self, index: int = 0) -> Iterator[Row]:
        while True:
            try:
                value = next(self._iterator)
            except StopIteration:
                return
            except Exception as error:
                raise unreadable(error) from error
            yield _row(index, value)
            index += 1


class AsyncRows(Source):
    """An asynchronous iterable of dicts. Made by `await AsyncRows.open(rows)`."""

    def __init__(self, rows: AsyncIterator[Any], preview: list[Row]) -> None:
        self._iterator = rows
        self._preview = preview
        self.columns = columns_of(preview)
        self.first = preview[0].values if preview else None

    @classmethod
    async def open(cls, rows: AsyncIterable[Any]) -> AsyncRows:
        """Take the first row, to know the columns."""
        iterator = aiter(rows)
        preview = [row async for row in _read(iterator, 0, limit=1)]
        return cls(iterator, preview)

    def every_column(self) -> None:
        return None

    async def arrive(self, start: int = 0) -> AsyncGenerator[list[Row], None]:
        """Like `batches`, for the event loop."""
        try:
            for row in self._preview:
                if row.index >= start:
                    yield [row]
            async for row in _read(self._iterator, len(self._preview)):
                if row.index >= start:
                    yield [row]
        finally:
            await self.close()

    async def close(self) -> None:
        if isinstance(self._iterator, AsyncGenerator):
            await self._iterator.aclose()  # it may hold an engine, or rows of another processor


async def _read(
    iterator: AsyncIterator[Any], index: int, limit: int | None = None
) -> AsyncIterator[Row]:
    while limit is None or index < limit:
        try:
            value = await anext(iterator)
        except StopAsyncIteration:
            return
        except BaseException as error:
            if ends_task(error):
                raise
            raise unreadable(error) from error
        yield _row(index, value)
        index += 1


def _row(index: int, value: Any) -> Row:
    if not isinstance(value, Mapping):
        return Row(index, None, f"row {index}: a {type(value).__name__}, not a dict")
    values = value if _TEXT.issuperset(map(type, value)) else _named(value)
    if values is None:
        return Row(index, None, f"row {index}: two columns have the same name as text")
    values = dict(values)
    earlier = value.why if isinstance(value, FailedRow) else None
    size = nbytes(values)
    if (size > MAX_NESTING or size == UNKNOWN_BYTES) and is_too_deep(values):
        return Row(index, None, f"row {index}: {TOO_DEEP}")
    return Row(index, values, None, 64 + size, earlier=earlier)


def _named(value: Mapping[Any, Any]) -> dict[str, Any] | None:
    """The row with the text of names that are none, as outputs have it; None if two of them are
    equal then.
    """
    try:
        named = {key_text(name): part for name, part in value.items()}
    except UnstorableError:
        return None
    return named if len(named) == len(value) else None
