"""Processors over rows, with stages of the test's own."""

import asyncio
import os
import signal
import threading

import numpy
import pandas as pd
import pyarrow as pa
import pytest

from adding import AddStage, adding, all_of, numbers
from penstock.batch import (
    Processor,
    ProcessorConfig,
    StatefulStage,
)
from penstock.batch.pipeline.processor import AHEAD_ROWS
from penstock.batch.pipeline.processor_rows import Beginning, unpack_row
from penstock.errors import ConfigError


async def test_rows_come_one_to_one_and_in_order():
    found = await all_of(adding(1, 10)(numbers(500)))
    assert found == [{"id": n, "x": n + 11} for n in range(500)]


def test_equal_stages_are_all_there():
    processor = adding(1, 10, 100)
    assert processor.list_stage_names() == ["AddStage", "AddStage_1", "AddStage_2"]
    assert processor.get_stage_by_name("AddStage_2").fn_constructor_kwargs == {"number": 100}
    with pytest.raises(ValueError, match=r"Did you mean 'AddStage'"):
        processor.get_stage_by_name("AddStag")
    assert processor([{"x": 0}]).take_all() == [{"x": 111}]


def test_a_plain_loop_needs_no_event_loop(tmp_path):
    processor = adding(1)
    assert [row["x"] for row in processor(numbers(3))] == [1, 2, 3]
    assert processor(numbers(3)).take(2) == [{"id": 0, "x": 1}, {"id": 1, "x": 2}]
    table = pa.table({"x": [1, 2]})
    assert processor(table).take_all() == [{"x": 2}, {"x": 3}]
    assert processor(pd.DataFrame({"x": [1, 2]})).take_all() == [{"x": 2}, {"x": 3}]
    path = tmp_path / "in.jsonl"
    path.write_text('{"x": 5}\n')
    assert processor(str(path)).take_all() == [{"x": 6}]
    assert processor([]).take_all() == []
    with pytest.raises(ConfigError, match="limit: must be at least 0, not -1"):
        processor([]).take(-1)


def test_a_plain_loop_inside_an_event_loop():
    async def main():
        return adding(1)(numbers(2)).take_all()

    assert asyncio.run(main()) == [{"id": 0, "x": 1}, {"id": 1, "x": 2}]


async def test_preprocess_adds_columns_and_postprocess_makes_the_row():
    processor = adding(
        1,
        preprocess=lambda row: {"x": row["id"] * 2},
        postprocess=lambda row: {"y": row["x"], **row},
    )
    assert await all_of(processor([{"id": 4, "a": "b"}])) == [{"y": 9, "x": 9, "id": 4, "a": "b"}]


async def test_what_preprocess_does_to_the_row_itself_counts_too():
    def preprocess(row):
        row["seen"] = row.pop("a")
        return {"x": row["id"]}

    given = [{"id": 4, "a": "b"}]
    changed = {"id": 4, "seen": "b", "x": 4}
    assert await all_of(adding(1, preprocess=preprocess)(given)) == [{**changed, "x": 5}]
    (carried,) = Beginning(preprocess, keep=False)(given)  # on Ray
    assert unpack_row(carried).columns == changed
    assert given == [{"id": 4, "a": "b"}]


async def test_a_slow_preprocess_leaves_the_loop_free():
    gate = threading.Event()
    asyncio.get_running_loop().call_soon(asyncio.get_running_loop().call_soon, gate.set)

    def preprocess(row):
        assert gate.wait(30)
        return {}

    assert len(await all_of(adding(1, preprocess=preprocess)(numbers(3)))) == 3


async def test_preprocess_in_several_threads():
    barrier = threading.Barrier(4)
    options = {
        "preprocess": lambda row: {"at": barrier.wait(30)},
        "preprocess_map_kwargs": {"concurrency": 4},
    }
    table = pa.Table.from_pylist(numbers(4))
    assert len(await all_of(adding(1, **options)(table))) == 4


class Counting:
    """Notes how many rows it has at a time, and waits until all that it may have are there."""

    def __init__(self, seen, full):
        self.seen = seen
        self.full = full
        self.here = 0

    async def process(self, row):
        self.here += 1
        self.seen.append((id(self), self.here))
        if self.here == self.full["each"]:
            self.full["workers"].add(id(self))
        if len(self.full["workers"]) == self.full["count"]:
            self.full["event"].set()
        await self.full["event"].wait()
        self.here -= 1
        return {}


@pytest.mark.parametrize(
    ("concurrency", "batch_size", "count"), [(1, 4, 1), (3, 2, 3), ([1, 2], 5, 2)]
)
async def test_concurrency_and_batch_size_are_honoured(concurrency, batch_size, count):
    seen: list[tuple[int, int]] = []
    full = {"each": batch_size, "count": count, "workers": set(), "event": asyncio.Event()}
    kwargs = {"concurrency": concurrency, "batch_size": batch_size}
    stage = StatefulStage(Counting, {"seen": seen, "full": full}, kwargs)
    assert len(await all_of(Processor(ProcessorConfig(), [stage])(numbers(100)))) == 100
    assert len({worker for worker, _ in seen}) == count
    assert max(here for _, here in seen) == batch_size


async def test_those_of_the_processor_are_those_of_a_stage_that_says_nothing():
    seen: list[tuple[int, int]] = []
    full = {"each": 3, "count": 2, "workers": set(), "event": asyncio.Event()}
    stage = StatefulStage(Counting, {"seen": seen, "full": full})
    await all_of(Processor(ProcessorConfig(concurrency=2, batch_size=3), [stage])(numbers(50)))
    assert len({worker for worker, _ in seen}) == 2
    assert max(here for _, here in seen) == 3


class Slow:
    """A plain method, which runs in a thread."""

    def process(self, row):
        return {"thread": threading.get_ident()}


async def test_a_plain_method_runs_off_the_loop():
    (row,) = await all_of(Processor(ProcessorConfig(), [StatefulStage(Slow)])([{"x": 1}]))
    assert row["thread"] != threading.get_ident()


class Held:
    """Lets through only rows whose number is free."""

    def __init__(self, free, entered):
        self.free = free
        self.entered = entered

    async def process(self, row):
        self.entered.append(row["id"])
        if row["id"] in self.free:
            await self.free[row["id"]].wait()
        return {}


class Bound:
    """All of it belongs to one thread, as a connection to SQLite."""

    def __init__(self, threads):
        self.threads = threads
        self.note()

    def note(self):
        self.threads.append(threading.current_thread())

    def start(self):
        self.note()

    def process(self, row):
        self.note()
        return {}

    def stop(self):
        self.note()


async def test_a_plain_worker_lives_in_one_thread():
    threads: list[threading.Thread] = []
    stage = StatefulStage(Bound, {"threads": threads})
    await all_of(Processor(ProcessorConfig(), [stage])(numbers(100)))
    assert len(threads) == 103
    assert set(threads) != {threading.current_thread()}
    assert len(set(threads)) == 1


async def test_a_worker_stops_though_its_thread_is_stuck():
    stopped, stuck, entered = threading.Event(), threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    class Stuck:
        def process(self, row):
            loop.call_soon_threadsafe(entered.set)
            stuck.wait()
            return {}

        def stop(self):
            stopped.set()

    stream = aiter(Processor(ProcessorConfig(), [StatefulStage(Stuck)])(numbers(1)))
    taking = asyncio.ensure_future(anext(stream))
    await entered.wait()
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    await stream.aclose()
    assert stopped.is_set()
    stuck.set()


async def test_two_processors_stream_into_each_other():
    """Row 0 is in the second while row 1,000 is in the first."""
    first_seen: list[int] = []
    second_seen: list[int] = []
    gate = asyncio.Event()
    config = ProcessorConfig(batch_size=2000)
    first = Processor(config, [StatefulStage(Held, {"free": {1000: gate}, "entered": first_seen})])
    second = Processor(config, [StatefulStage(Held, {"free": {0: gate}, "entered": second_seen})])
    stream = second(first(numbers(1500)))
    task = asyncio.create_task(all_of(stream))
    while 1000 not in first_seen or 0 not in second_seen:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert not task.done()
    gate.set()
    assert [row["id"] for row in await task] == list(range(1500))


async def test_order_done_lets_rows_overtake():
    gate = asyncio.Event()
    stage = StatefulStage(Held, {"free": {0: gate}, "entered": []})
    found = []
    async for row in Processor(ProcessorConfig(), [stage])(numbers(10), order="done"):
        found.append(row["id"])
        if len(found) == 9:
            gate.set()
    assert found[-1] == 0
    assert sorted(found) == list(range(10))
    with pytest.raises(ConfigError, match="order"):
        adding(1)(numbers(1), order="any")


async def test_leaving_early_stops_everything():
    log: list[str] = []
    read: list[int] = []

    def endless():
        for number in range(10**9):
            read.append(number)
            yield {"x": number}

    processor = Processor(ProcessorConfig(), [AddStage(None, {"log": log})])
    rows = aiter(processor(processor(endless())))
    assert (await anext(rows))["x"] == 2
    await rows.aclose()
    assert log == ["start", "start", "stop", "stop"]
    assert len(read) < 20000


async def test_a_consumer_that_does_not_take_holds_up_the_rest():
    read = []

    async def source():
        for number in range(100_000):
            read.append(number)
            yield {"x": number}

    rows = aiter(adding(1)(source()))
    await anext(rows)
    before = -1
    while before != len(read):  # until nothing moves any more
        before = len(read)
        for _ in range(1000):
            await asyncio.sleep(0)
    assert len(read) < 12 * AHEAD_ROWS  # those in the outbox, and two windows
    assert (await anext(rows))["x"] == 2
    await rows.aclose()


async def test_cancelling_the_consumer_stops_the_stages():
    log: list[str] = []
    entered: list[int] = []
    stages = [
        AddStage(None, {"log": log}),
        StatefulStage(Held, {"free": {0: asyncio.Event()}, "entered": entered}),
    ]
    task = asyncio.create_task(all_of(Processor(ProcessorConfig(), stages)(numbers(10))))
    while not entered:  # noqa: ASYNC110
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == ["start", "stop"]


class Interrupting:
    def __init__(self, log):
        self.log = log

    async def process(self, row):
        if row["id"] == 5:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()
        return {}

    async def stop(self):
        await asyncio.sleep(0)
        self.log.append("stop")


def test_an_interrupted_loop_has_ended_its_stages(ctrl_c):
    log: list[str] = []
    processor = Processor(ProcessorConfig(), [StatefulStage(Interrupting, {"log": log})])
    with pytest.raises(KeyboardInterrupt):
        list(processor(numbers(5000)))
    assert log == ["stop"]


class Spending:
    async def process(self, row):
        return {"num_input_tokens": row["id"], "num_generated_tokens": 1}


async def test_the_tokens_of_all_stages_are_counted():
    stream = Processor(ProcessorConfig(), [StatefulStage(Spending), StatefulStage(Spending)])(
        numbers(10)
    )
    assert stream.counts.cached_share == 0.0
    assert len(await all_of(stream)) == 10
    assert (stream.counts.prompt_tokens, stream.counts.completion_tokens) == (90, 20)


@pytest.mark.parametrize("order", ["input", "done"])
async def test_what_cannot_be_remembered_is_made_for_each_of_equal_rows(order):
    class Vector:
        async def process(self, row):
            await asyncio.sleep(0)
            return {"vector": numpy.array([row["kind"]])}

    class VectorStage(StatefulStage):
        fn = Vector

        def get_required_input_keys(self):
            return {"kind": "What it is made of."}

        def shareable(self, row):
            return True

    def spoil(row):
        row["vector"] += 10
        return {"id": row["id"], "vector": row["vector"].tolist()}

    rows = [{"id": n, "kind": n % 3} for n in range(200)]
    found = await all_of(
        Processor(ProcessorConfig(), [VectorStage()], postprocess=spoil)(rows, order=order)
    )
    assert sorted(found, key=lambda row: row["id"]) == [
        {"id": n, "vector": [n % 3 + 10]} for n in range(200)
    ]
