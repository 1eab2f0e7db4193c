"""Reads rows ahead of need, in a thread of its own, never further than a bound."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence

from penstock.batch.rows import Row
from penstock.batch.sources.base import BATCH_ROWS, Source
from penstock.batch.sources.iterables import AsyncRows
from penstock.errors import InputError, PenstockError

READ_AHEAD_ROWS = 2048
READ_AHEAD_BYTES = 32 << 20


async def read_ahead(
    source: Source, start: int = 0, limit: int | None = None, columns: Sequence[str] | None = None
) -> AsyncGenerator[list[Row], None]:
    """The source's rows from number `start` on, and before number `limit`, in lists as they become ready."""
    if limit is not None and limit <= start:
        return
    arriving = source.arrive(start) if isinstance(source, AsyncRows) else _in_thread(source, start, columns)
    async with contextlib.aclosing(arriving) as batches:
        async for batch in batches:
            if limit is not None and batch[-1].index >= limit - 1:
                yield [row for row in batch if row.index < limit]
                return
            yield batch


async def _in_thread(source: Source, start: int, columns: Sequence[str] | None) -> AsyncGenerator[list[Row], None]:
    reader = _Reader(source.batches(start, columns), asyncio.get_running_loop())
    try:
        while (batch := await reader.get()) is not None:
            yield batch
    finally:
        reader.stop()


class _Reader:
    """A bounded queue between a thread that reads and the event loop."""

    def __init__(self, batches: Iterator[list[Row]], loop: asyncio.AbstractEventLoop) -> None:
        self._batches = batches
        self._loop = loop
        self._queue: deque[tuple[list[Row], int]] = deque()
        self._rows = 0
        self._bytes = 0
        self._room = threading.Condition()
        self._news = asyncio.Event()
        self._error: Exception | None = None
        self._finished = False
        self._stopped = False
        # A daemon, as it may wait for ever on a pipe that nobody writes to.
        threading.Thread(target=self._read, name="penstock-reader", daemon=True).start()

    async def get(self) -> list[Row] | None:
        """The next rows, or None after the last. Raises what reading raised."""
        while True:
            with self._room:
                if self._queue:
                    rows: list[Row] = []
                    while self._queue and len(rows) < BATCH_ROWS:  # rows that came one by one go on together
                        batch, nbytes = self._queue.popleft()
                        rows += batch
                        self._bytes -= nbytes
                    self._rows -= len(rows)
                    self._room.notify()
                    return rows
                if self._finished:
                    if self._error is not None:
                        raise self._error
                    return None
                self._news.clear()
            await self._news.wait()

    def stop(self) -> None:
        """Let the thread end at its next row."""
        with self._room:
            self._stopped = True
            self._queue.clear()
            self._room.notify()

    def _read(self) -> None:
        try:
            for batch in self._batches:
                nbytes = batch[0].nbytes if len(batch) == 1 else sum(row.nbytes for row in batch)
                with self._room:
                    if not self._may_queue():
                        self._room.wait_for(self._may_queue)
                    if self._stopped:
                        return
                    self._queue.append((batch, nbytes))
                    self._rows += len(batch)
                    self._bytes += nbytes
                    first = len(self._queue) == 1
                if first:
                    self._tell()
        except PenstockError as error:
            self._error = error
        except (Exception, SystemExit) as error:
            self._error = InputError(f"reading the rows failed: {type(error).__name__}: {error}")
            self._error.__cause__ = error
        finally:
            with self._room:
                self._finished = True
            self._tell()

    def _may_queue(self) -> bool:
        return self._stopped or not self._queue or (self._rows < READ_AHEAD_ROWS and self._bytes < READ_AHEAD_BYTES)

    def _tell(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._news.set)
