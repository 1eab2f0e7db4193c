import asyncio
import threading
from itertools import count

import pytest

from penstock.batch.read import sources
from penstock.batch.read.sources import Source, read_ahead
from penstock.batch.rows.row import Row
from penstock.errors import InputError


class Lists(Source):
    """Rows in lists of given sizes; `read` counts those that were taken from it."""

    def __init__(self, sizes, nbytes=0, ending=None):
        self.sizes = sizes
        self.nbytes = nbytes
        self.ending = ending
        self.read = 0
        self.closed = threading.Event()

    def batches(self, start=0, columns=None):
        try:
            for size in self.sizes:
                rows = [Row(self.read + number, {}, None, self.nbytes) for number in range(size)]
                self.read += size
                yield rows
            if self.ending is not None:
                raise self.ending
        finally:
            self.closed.set()


async def until(condition):
    while not condition():  # noqa: ASYNC110 - it is another thread's
        await asyncio.sleep(0)


@pytest.mark.parametrize("sizes", [[1] * 10_000, [256] * 40, [1, 300, 2, 1000, 1]])
async def test_all_rows_come_once_and_in_order(sizes):
    seen = [row.index async for rows in read_ahead(Lists(sizes)) for row in rows]
    assert seen == list(range(sum(sizes)))


async def test_rows_come_while_the_next_is_waited_for():
    gate = threading.Event()

    class Slow(Lists):
        def batches(self, start=0, columns=None):
            yield [Row(0, {})]
            gate.wait(30)
            yield [Row(1, {})]

    rows = read_ahead(Slow([]))
    assert [row.index for row in await anext(rows)] == [0]
    gate.set()
    assert [row.index for row in await anext(rows)] == [1]
    assert [row async for row in rows] == []


@pytest.mark.parametrize(
    ("nbytes", "most"),
    [
        (0, sources.READ_AHEAD_ROWS),
        (sources.READ_AHEAD_BYTES // 4, 4),
        (2 * sources.READ_AHEAD_BYTES, 1),
    ],
)
async def test_no_more_is_read_ahead_than_the_bounds_allow(nbytes, most):
    source = Lists((1 for _ in count()), nbytes)
    rows = read_ahead(source)
    taken = 0
    for _ in range(20):
        taken += len(await anext(rows))
        await until(lambda taken=taken: source.read - taken > most // 2)  # by then it reads on
        assert source.read - taken <= most + 1  # one more is in the reader's hand
    await rows.aclose()


@pytest.mark.parametrize("kind", [OSError, SystemExit, KeyboardInterrupt, asyncio.CancelledError])
async def test_what_was_read_comes_before_what_reading_raised(kind):
    seen = []

    async def see():
        async for rows in read_ahead(Lists([1] * 300, ending=kind("gone"))):
            seen.extend(rows)

    with pytest.raises(InputError, match=f"reading the rows failed: {kind.__name__}: gone"):
        await see()
    assert len(seen) == 300


async def test_the_thread_ends_when_nobody_takes_any_more():
    source = Lists(1 for _ in count())
    rows = read_ahead(source)
    await anext(rows)
    await rows.aclose()
    await asyncio.to_thread(source.closed.wait, 30)
    assert source.closed.is_set()
