"""Reads in threads of its own: rows ahead of need, never further than a bound.

The threads are daemons: data may never come, and do not keep the process from its end.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import TypeVar

from penstock.batch.read.sources import BATCH_ROWS, AsyncRows, Source, unreadable
from penstock.batch.rows.row import Row
from penstock.errors import PenstockError

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
    reader = _Reader(source.batches(start, columns), asyncio.get_running_loop())
    try:
        while (batch := await reader.get()) is not None:
            yield batch
    finally:
        reader.stop()


class _Reader:
    """A bounded queue between a thread that reads and the event loop.

    Neither side takes a lock for a row: that would cost more than all else. Each counts for itself
    what it has put in or taken out, and says that it waits before it looks a last time, so that the
    other will see the one or the other.
    """

    def __init__(self, batches: Iterator[list[Row]], loop: asyncio.AbstractEventLoop) -> None:
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
        # A daemon, as it may wait for ever on a pipe that nobody writes to.
        threading.Thread(target=self._read, name="penstock-reader", daemon=True).start()

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
        # Not for each: changing threads has its price.
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
                    self._tell()
        except BaseException as error:  # rows that are missing in silence would be worse
            self._error = error if isinstance(error, PenstockError) else unreadable(error)
        finally:
            self._finished = True
            self._tell()

    def _is_full(self) -> bool:
        return self._put - self._taken >= READ_AHEAD_BYTES

    def _wait_for_room(self) -> None:
        with self._room:
            self._room_wanted = True
            self._room.wait_for(lambda: self._stopped or not self._is_full())
            self._room_wanted = False

    def _tell(self) -> None:
        self._rows_wanted = False
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._news.set)


async def in_daemon_thread(call: Callable[[], T]) -> T:
    """What `call` returns or raises, from a thread of its own that nobody waits for once this is
    cancelled.

    `asyncio.to_thread` will not do for a pipe: the end of the event loop waits for its threads.
    """
    future: concurrent.futures.Future[T] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()  # whoever leaves does not cancel it

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # without it whoever waits would wait for ever
            # A future of asyncio cannot hold a StopIteration.
            fits = isinstance(error, Exception) and not isinstance(error, StopIteration)
            future.set_exception(error if fits else unreadable(error))

    threading.Thread(target=work, name="penstock-opener", daemon=True).start()
    return await asyncio.wrap_future(future)
