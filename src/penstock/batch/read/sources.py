"""Sources of rows: what every source offers, and the sources that are iterables of dicts.
`read_ahead` reads a source in a thread, ahead of need, never further than a bound. The threads are
daemons: data may never come, and a daemon does not keep the process from its end.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import weakref
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    Sized,
)
from itertools import chain, islice
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from penstock.batch.pipeline.offload import ends_task
from penstock.batch.rows.row import UNKNOWN_BYTES, FailedRow, Row, nbytes
from penstock.batch.values.plain import UnstorableError, key_text
from penstock.errors import ConfigError, InputError, PenstockError, class_and_text, nearest
from penstock.parsing import MAX_NESTING, TOO_DEEP, is_too_deep

if TYPE_CHECKING:
    import pyarrow as pa


@runtime_checkable
class HasRows(Protocol):
    """Something that has rows: a job, or the result of one."""

    async def rows_to_read(self) -> Any:
        """What to read instead of it: anything that `open_source` takes."""


SEPARATORS = (",", ";", "\t", "|")
"""What may part the columns of a CSV file; the first that parts its header does."""
BATCH_ROWS = 256
BATCH_BYTES = 1 << 20
_ONLY_STR = frozenset({str})


class Source:
    """Rows to read, in a fixed order, numbered from 0.

    `columns` are the columns known beforehand, from a schema or the first rows; empty if unknown.
    `schema` is the Arrow schema if the data has one. `rows` is the number of rows if it is known
    without reading. `first` is the first row that could be read. `json_values`: rows hold only
    types that JSON has. `fingerprint` tells one data set from another; None for streams, whose rows
    are compared as they come again. `thread` is the only thread that may read; None: any may.

    Rows come from `batches`; those of an `AsyncRows` come from its `arrive` instead.
    """

    name: str = "rows"
    columns: tuple[str, ...] = ()
    schema: pa.Schema | None = None
    rows: int | None = None
    first: dict[str, Any] | None = None
    fingerprint: dict[str, Any] | None = None
    json_values: bool = False
    thread: ReadingThread | None = None

    def batches(self, start: int = 0, columns: Sequence[str] | None = None) -> Iterator[list[Row]]:
        """Rows from number `start` on, in lists of bounded size.

        A damaged row comes as a row with a `fault`. `columns` limits what sources with an Arrow
        form put into `Row.values`; None means everything. Raises `InputError` if the rest cannot be
        read.
        """
        raise NotImplementedError

    def every_column(self, needed: Iterable[str]) -> tuple[str, ...] | None:
        """The columns that rows may have, later rows too. It reads as many rows as it takes to find
        the columns that are `needed`. None if they cannot be known.
        """
        return self.columns

    def begins_with(self, known: Mapping[str, Any], *, sound_end: bool) -> bool:
        """Whether this source starts with the data that had the fingerprint `known`; it may have
        grown since. `sound_end`: the last row of that data could be read.
        """
        return known == self.fingerprint

    def is_touched_by_writing(self, path: str) -> bool:
        """Whether writing to `path` changes a file that is read here, or adds one."""
        return False

    async def close(self) -> None:
        """End what opening the source has begun, in case nobody has read its rows."""
        if self.thread is not None:
            self.thread.end()
            self.thread = None


class Stream(Source):
    """Rows that come one by one and can be read once."""

    def __init__(
        self, rows: Iterator[Row], name: str = "rows", *, json_values: bool = False
    ) -> None:
        self.name = name
        self.json_values = json_values
        self._rows = rows
        # One row: the second may be long in coming.
        self._preview = list(islice(rows, 1))
        self.columns = columns_of(self._preview)
        self.first = first_of(self._preview)

    def every_column(self, needed: Iterable[str]) -> tuple[str, ...] | None:
        return None

    def batches(self, start: int = 0, columns: Sequence[str] | None = None) -> Iterator[list[Row]]:
        return ([row] for row in self._from(start))

    def _from(self, start: int) -> Iterator[Row]:
        return islice(chain(self._preview, self._rows), start, None)


class Rows(Stream):
    """An iterable of dicts. The rows of a list come in batches, those of a generator one by one."""

    def __init__(self, rows: Iterable[Any]) -> None:
        if isinstance(rows, Sized):
            with contextlib.suppress(Exception):  # `__len__` may be there and raise
                self.rows = len(rows)
        self._all = rows if isinstance(rows, list | tuple) else None
        super().__init__(_read(rows))

    @classmethod
    async def open(cls, rows: Iterable[Any]) -> Rows:
        """Take the first row. One thread takes all rows: a generator may hold an object, such as a
        connection to SQLite, that only the thread which made it can use.
        """
        thread = ReadingThread()
        try:
            made = await in_daemon_thread(lambda: cls(rows), thread)
        except BaseException:
            thread.end()
            raise
        made.thread = thread
        weakref.finalize(made, thread.end)
        return made

    def every_column(self, needed: Iterable[str]) -> tuple[str, ...] | None:
        if self._all is None:
            return None
        return tuple(
            dict.fromkeys(name for row in self._all if isinstance(row, Mapping) for name in row)
        )

    def batches(self, start: int = 0, columns: Sequence[str] | None = None) -> Iterator[list[Row]]:
        if self._all is None:
            return super().batches(start)
        rows = self._from(start)
        return iter(lambda: list(islice(rows, BATCH_ROWS)), [])


def _read(values: Iterable[Any]) -> Iterator[Row]:
    try:
        for index, value in enumerate(values):
            yield _row(index, value)
    except Exception as error:
        raise unreadable(error) from error


class AsyncRows(Source):
    """An asynchronous iterable of dicts. Made by `await AsyncRows.open(rows)`. It has no `batches`:
    its rows come from `arrive`, on the event loop.
    """

    def __init__(self, rows: AsyncIterator[Any], preview: list[Row]) -> None:
        self._iterator = rows
        self._preview = preview
        self.columns = columns_of(preview)
        self.first = first_of(preview)

    @classmethod
    async def open(cls, rows: AsyncIterable[Any]) -> AsyncRows:
        """Take the first row, to know the columns."""
        try:
            iterator = aiter(rows)
        except Exception as error:
            raise unreadable(error) from error
        preview = [row async for row in _arriving(iterator, 0, limit=1)]
        return cls(iterator, preview)

    def every_column(self, needed: Iterable[str]) -> None:
        return None

    async def arrive(self, start: int = 0) -> AsyncGenerator[list[Row], None]:
        """Like `batches`, for the event loop."""
        try:
            for row in self._preview:
                if row.index >= start:
                    yield [row]
            async for row in _arriving(self._iterator, len(self._preview)):
                if row.index >= start:
                    yield [row]
        finally:
            await self.close()

    async def close(self) -> None:
        if isinstance(self._iterator, AsyncGenerator):
            await self._iterator.aclose()  # it may hold an engine, or rows of another processor


async def _arriving(
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
    values = value if _ONLY_STR.issuperset(map(type, value)) else _named(value)
    if values is None:
        return Row(index, None, f"row {index}: two columns have the same name as text")
    values = dict(values)
    failed_before = value.why if isinstance(value, FailedRow) else None
    size = nbytes(values)
    # Each level takes a byte or more, so a small row cannot be too deep.
    if (size > MAX_NESTING or size == UNKNOWN_BYTES) and is_too_deep(values):
        return Row(index, None, f"row {index}: {TOO_DEEP}")
    return Row(index, values, None, 64 + size, failed_before=failed_before)


def _named(value: Mapping[Any, Any]) -> dict[str, Any] | None:
    """The row with its names as text, as outputs have them; None if two names are equal then."""
    try:
        named = {key_text(name): part for name, part in value.items()}
    except UnstorableError:
        return None
    return named if len(named) == len(value) else None


def unreadable(error: BaseException) -> InputError:
    """The error for whatever ended the reading of rows."""
    made = InputError(f"reading the rows failed: {class_and_text(error)}")
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


def check_column(column: str, known: Iterable[str] | None, field: str, *, hint: str = "") -> None:
    """Raise `ConfigError` for the option `field` if the data lacks the column that it names.
    `known` are the columns of the data; None: unknown. `hint` takes the place of the nearest name.
    """
    if known is not None and column not in (names := list(known)):
        raise ConfigError(
            f"the data has no column '{column}'",
            field=field,
            value=column,
            hint=hint or _other_separator(column, names) or nearest(column, names),
        )


def _other_separator(column: str, names: Sequence[str]) -> str:
    """A hint for a CSV file whose header has commas that part nothing; else empty."""
    for mark in SEPARATORS[1:]:
        if column in (part.strip() for part in ",".join(names).split(mark)):
            return f"If {mark!r} parts the columns, a first line 'sep={mark}' says so"
    return ""


def first_repeated(names: Sequence[str]) -> str | None:
    """The first name that is there a second time."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


READ_AHEAD_ROWS = 2048
READ_AHEAD_BYTES = 32 << 20
_LEAST_BYTES = READ_AHEAD_BYTES // READ_AHEAD_ROWS
"""What a row counts for at least, so that one number bounds both."""


T = TypeVar("T")


async def read_ahead(
    source: Source, start: int = 0, limit: int | None = None, columns: Sequence[str] | None = None
) -> AsyncGenerator[list[Row], None]:
    """The source's rows from number `start` to before `limit`, in lists as they become ready."""
    if limit is not None and limit <= start:
        return
    arriving = (
        source.arrive(start)
        if isinstance(source, AsyncRows)
        else _in_thread(source, start, columns)
    )
    async with contextlib.aclosing(arriving) as batches:
        async for batch in batches:
            if limit is not None and batch[-1].index >= limit - 1:
                yield [row for row in batch if row.index < limit]
                return
            yield batch


async def _in_thread(
    source: Source, start: int, columns: Sequence[str] | None
) -> AsyncGenerator[list[Row], None]:
    ahead = _ReadAhead(source.batches(start, columns), asyncio.get_running_loop(), source.thread)
    try:
        while (batch := await ahead.get()) is not None:
            yield batch
    finally:
        ahead.stop()


class _ReadAhead:
    """A bounded queue between a thread that reads and the event loop.

    Neither side takes a lock for a row: that would cost more than all else. Each side counts what
    it has put in or taken out. Before it waits it says so, then looks once more, so the other side
    sees either the row or the waiting.
    """

    def __init__(
        self,
        batches: Iterator[list[Row]],
        loop: asyncio.AbstractEventLoop,
        thread: ReadingThread | None,
    ) -> None:
        self._batches = batches
        self._loop = loop
        self._queue: deque[tuple[list[Row], int]] = deque()
        self._put = self._taken = 0  # bytes
        self._rows_wanted = False
        self._news = asyncio.Event()
        self._room_wanted = False
        self._room = threading.Condition()
        self._error: Exception | None = None
        self._finished = False
        self._stopped = False
        _run_in(thread, self._read)

    async def get(self) -> list[Row] | None:
        """The next rows, or None after the last. Raises what reading raised."""
        while True:
            finished = self._finished  # before the look into the queue: nothing comes after
            if rows := self._take():
                return rows
            if finished:
                if self._error is not None:
                    raise self._error
                return None
            self._news.clear()
            self._rows_wanted = True
            if not self._queue and not self._finished:
                await self._news.wait()

    def stop(self) -> None:
        """Let the thread end at its next row."""
        with self._room:
            self._stopped = True
            self._queue.clear()
            self._room.notify()

    def _take(self) -> list[Row]:
        rows: list[Row] = []
        while self._queue and len(rows) < BATCH_ROWS:  # rows that came one by one go on together
            batch, nbytes = self._queue.popleft()
            rows += batch
            self._taken += nbytes
        # The thread is not woken for each batch: changing threads has its price.
        if self._room_wanted and self._put - self._taken <= READ_AHEAD_BYTES // 2:
            with self._room:
                self._room.notify()
        return rows

    def _read(self) -> None:
        try:
            for batch in self._batches:
                nbytes = 0
                for row in batch:
                    nbytes += max(row.nbytes, _LEAST_BYTES)
                if self._is_full():
                    self._wait_for_room()
                if self._stopped:
                    return
                self._queue.append((batch, nbytes))
                self._put += nbytes
                if self._rows_wanted:
                    self._announce()
        except BaseException as error:  # rows that are missing in silence would be worse
            self._error = error if isinstance(error, PenstockError) else unreadable(error)
        finally:
            self._finished = True
            self._announce()

    def _is_full(self) -> bool:
        return self._put - self._taken >= READ_AHEAD_BYTES

    def _wait_for_room(self) -> None:
        with self._room:
            self._room_wanted = True
            self._room.wait_for(lambda: self._stopped or not self._is_full())
            self._room_wanted = False

    def _announce(self) -> None:
        self._rows_wanted = False
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._news.set)


class ReadingThread:
    """A daemon thread that makes calls one after the other, until `end`."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        threading.Thread(target=self._work, name="penstock-reader", daemon=True).start()

    def call(self, work: Callable[[], None]) -> None:
        self._calls.put(work)

    def end(self) -> None:
        self._calls.put(None)

    def _work(self) -> None:
        while (work := self._calls.get()) is not None:
            work()
            del work  # it holds rows


def _run_in(thread: ReadingThread | None, work: Callable[[], None]) -> None:
    """Begin `work` in `thread` if given, else in a new daemon thread."""
    if thread is not None:
        thread.call(work)
    else:
        # A daemon, as it may wait for ever on a pipe that nobody writes to.
        threading.Thread(target=work, name="penstock-reader", daemon=True).start()


async def in_daemon_thread(call: Callable[[], T], thread: ReadingThread | None = None) -> T:
    """What `call` returns or raises. It runs in `thread` if given, else in a new daemon thread. If
    this is cancelled, nobody waits for the thread. `asyncio.to_thread` will not do for a pipe: the
    event loop cannot end before its threads have.
    """
    future: concurrent.futures.Future[T] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()  # so that a waiter who leaves cannot cancel it

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # else the waiter would wait for ever
            # A future of asyncio cannot hold a StopIteration.
            fits = isinstance(error, Exception) and not isinstance(error, StopIteration)
            future.set_exception(error if fits else unreadable(error))

    _run_in(thread, work)
    return await asyncio.wrap_future(future)


async def every_column(source: Source, needed: Iterable[str]) -> tuple[str, ...] | None:
    """`Source.every_column` off the event loop: it may have to read all rows."""
    return await in_daemon_thread(lambda: source.every_column(needed))
