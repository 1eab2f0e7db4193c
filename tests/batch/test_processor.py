"""Processors over rows, with stages of the test's own."""

import asyncio
import os
import signal
import threading

import numpy
import pandas as pd
import pyarrow as pa
import pytest

import penstock
from adding import Add, AddStage, adding, all_of, numbers
from penstock.batch import (
    Processor,
    ProcessorConfig,
    StatefulStage,
)
from penstock.batch.stream import AHEAD_ROWS
from penstock.errors import ConfigError, EngineTimeoutError, InputError, JobError, UserCodeError


async def test_rows_come_one_to_one_and_in_order():
    found = await all_of(adding(1, 10)(numbers(500)))
    assert found == [{"id": n, "x": n + 11} for n in range(500)]


def test_equal_stages_are_all_there():
    processor = adding(1, 10, 100)
    assert processor.list_stage_names() == ["AddStage", "AddStage_2", "AddStage_3"]
    assert processor.get_stage_by_name("AddStage_3").fn_constructor_kwargs == {"number": 100}
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
    processor = adding(1, preprocess=lambda row: {"x": row["id"] * 2}, postprocess=lambda row: {"y": row["x"], **row})
    assert await all_of(processor([{"id": 4, "a": "b"}])) == [{"y": 9, "x": 9, "id": 4, "a": "b"}]


async def test_a_slow_preprocess_leaves_the_loop_free():
    gate = threading.Event()
    asyncio.get_running_loop().call_soon(asyncio.get_running_loop().call_soon, gate.set)

    def preprocess(row):
        assert gate.wait(30)
        return {}

    assert len(await all_of(adding(1, preprocess=preprocess)(numbers(3)))) == 3


async def test_preprocess_in_several_threads():
    barrier = threading.Barrier(4)
    options = {"preprocess": lambda row: {"at": barrier.wait(30)}, "preprocess_map_kwargs": {"concurrency": 4}}
    table = pa.Table.from_pylist(numbers(4))
    assert len(await all_of(adding(1, **options)(table))) == 4


@pytest.mark.parametrize(
    ("options", "stage", "kind", "message"),
    [
        ({"preprocess": lambda row: 1 // 0}, "preprocess", "user_code_error", "ZeroDivisionError"),
        ({"preprocess": lambda row: 3}, "preprocess", "user_code_error", "preprocess gave a int, no dict"),
        ({"postprocess": lambda row: row["y"]}, "postprocess", "user_code_error", "KeyError: 'y'"),
        ({"postprocess": lambda row: None}, "postprocess", "user_code_error", "postprocess gave a NoneType"),
    ],
)
async def test_errors_in_functions_name_their_stage(options, stage, kind, message):
    with pytest.raises(JobError, match=f"row 0 failed at stage {stage}: {message}"):
        await all_of(adding(1, **options)(numbers(3)))
    kept = adding(1, config=ProcessorConfig(should_continue_on_error=True), **options)
    (row,) = await all_of(kept([{"id": 7, "x": 1}]))
    assert row["status"] == "error"
    assert (row["id"], row["x"]) == (7, 1)
    assert row["error"].keys() == {"type", "stage", "retryable", "message", "status", "body"}
    assert (row["error"]["type"], row["error"]["stage"]) == (kind, stage)
    assert message in row["error"]["message"]


async def test_a_failing_row_spoils_no_other():
    rows = numbers(100)
    rows[40]["x"] = "poison"
    rows[60] = {"id": 60}
    config = ProcessorConfig(should_continue_on_error=True)
    found = await all_of(adding(1, 1, config=config)(rows))
    assert [row["id"] for row in found] == list(range(100))
    assert [row["status"] for row in found].count("ok") == 98
    assert found[0] == {"id": 0, "x": 2, "status": "ok", "error": None}
    assert found[40]["error"]["message"] == "that is no number"
    assert (found[60]["error"]["type"], found[60]["error"]["stage"]) == ("user_code_error", "AddStage")
    with pytest.raises(JobError, match="row 40 failed at stage AddStage: that is no number"):
        await all_of(adding(1, 1)(rows))


async def test_rows_that_fail_first_have_the_columns_of_those_that_come_after():
    made = adding(
        1,
        config=ProcessorConfig(should_continue_on_error=True),
        preprocess=lambda row: {"x": 1 // row["id"]},
        postprocess=lambda row: {"id": row["id"], "sum": row["x"]},
    )
    found = await all_of(made(numbers(3)))
    assert found[0].keys() == found[1].keys() == {"id", "x", "sum", "status", "error"}
    assert (found[0]["x"], found[0]["sum"], found[1]["x"], found[1]["sum"]) == (0, None, None, 2)
    (alone,) = await all_of(made(numbers(1)))
    assert alone.keys() == {"id", "x", "status", "error"}


async def test_a_row_that_fails_first_does_not_wait_for_what_depends_on_it():
    seen = asyncio.Event()

    async def rows():
        yield {"id": 0, "x": "poison"}
        await seen.wait()
        yield {"id": 1, "x": 1}

    found = []
    async for row in adding(1, config=ProcessorConfig(should_continue_on_error=True))(rows()):
        found.append(row["status"])
        seen.set()
    assert found == ["error", "ok"]


@pytest.mark.parametrize("after", [0, 1])
async def test_a_source_that_wants_to_end_the_program_ends_the_run(after):
    def rows():
        yield from numbers(after)
        raise SystemExit(3)

    with pytest.raises((InputError, RuntimeError), match="SystemExit: 3"):
        await all_of(adding(1)(rows()))


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


@pytest.mark.parametrize(("concurrency", "batch_size", "count"), [(1, 4, 1), (3, 2, 3), ([1, 2], 5, 2)])
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


class Wrong:
    async def process(self, row):
        return [row]


async def test_a_stage_that_gives_no_dict():
    with pytest.raises(JobError, match="Wrong gave a list, no dict"):
        await all_of(Processor(ProcessorConfig(), [StatefulStage(Wrong)])([{"x": 1}]))


async def test_a_stage_that_cannot_be_made_or_started():
    with pytest.raises(ConfigError, match=r"Add cannot be made: .* unexpected keyword argument 'nmber'"):
        await all_of(Processor(ProcessorConfig(), [AddStage(None, {"nmber": 1})])(numbers(1)))

    class Broken(Add):
        async def start(self):
            raise EngineTimeoutError("does not start")

    log: list[str] = []
    with pytest.raises(EngineTimeoutError, match="does not start"):
        await all_of(Processor(ProcessorConfig(), [AddStage(None, {"log": log}), StatefulStage(Broken)])(numbers(1)))
    assert log == ["start", "stop"]

    class Buggy(Add):
        async def start(self):
            raise KeyError("absent")

    with pytest.raises(UserCodeError, match=r"Buggy cannot be started: KeyError: 'absent'"):
        await all_of(Processor(ProcessorConfig(), [StatefulStage(Buggy)])(numbers(1)))


class Absent:
    async def start(self):
        raise KeyError("absent")

    async def process(self, row):
        return {}


@pytest.mark.parametrize(
    "use", [lambda last, rows: all_of(last(rows)), lambda last, rows: penstock.arun(rows, processor=last)]
)
async def test_what_gives_the_rows_ends_where_a_stage_does_not_start(use):
    """At once, and not when somebody forgets the error: it may hold an engine."""
    log: list[str] = []
    first = Processor(ProcessorConfig(), [AddStage(None, {"log": log})])
    last = Processor(ProcessorConfig(), [StatefulStage(Absent)])
    with pytest.raises(UserCodeError) as kept:
        await use(last, first(numbers(10)))
    assert log == ["start", "stop"]
    assert "absent" in str(kept.value)


class Leaving:
    """Wants to end the program, or says that it was cancelled, at a place of the test's choice."""

    def __init__(self, place=None, ending=SystemExit):
        self.place = place
        self.ending = ending
        self.leave("init")

    def leave(self, here):
        if here == self.place:
            raise self.ending("enough")

    async def start(self):
        self.leave("start")

    async def process(self, row):
        if row["id"] == 1:
            self.leave("process")
        return {}

    async def stop(self):
        self.leave("stop")


class LeavingInAThread(Leaving):
    def process(self, row):
        if row["id"] == 1:
            self.leave("process")
        return {}


@pytest.mark.parametrize("ending", [SystemExit, asyncio.CancelledError, ValueError])
@pytest.mark.parametrize("worker", [Leaving, LeavingInAThread])
async def test_a_row_that_wants_to_end_everything_ends_alone(worker, ending):
    config = ProcessorConfig(should_continue_on_error=True)
    stages = [StatefulStage(worker, {"place": "process", "ending": ending})]
    found = await all_of(Processor(config, stages)(numbers(4)))
    assert [row["status"] for row in found] == ["ok", "error", "ok", "ok"]
    assert ending.__name__ in found[1]["error"]["message"]


@pytest.mark.parametrize("ending", [SystemExit, ValueError])
@pytest.mark.parametrize("place", ["init", "start"])
async def test_a_worker_that_wants_to_end_everything_ends_the_run(place, ending):
    processor = Processor(ProcessorConfig(), [StatefulStage(Leaving, {"place": place, "ending": ending})])
    with pytest.raises(UserCodeError, match=f"Leaving cannot be (made|started): {ending.__name__}: enough"):
        await all_of(processor(numbers(1)))


async def test_a_worker_that_cannot_be_stopped_costs_no_row(caplog):
    processor = Processor(ProcessorConfig(), [StatefulStage(Leaving, {"place": "stop"})])
    assert len(await all_of(processor(numbers(2)))) == 2
    assert "Leaving could not be stopped" in caplog.text


@pytest.mark.parametrize("where", ["preprocess", "postprocess"])
async def test_so_does_a_function(where):
    def leave(row):
        if row["id"] == 1:
            raise SystemExit(3)
        return row

    config = ProcessorConfig(should_continue_on_error=True)
    found = await all_of(adding(1, config=config, **{where: leave})(numbers(3)))
    assert [row["status"] for row in found] == ["ok", "error", "ok"]
    assert (found[1]["error"]["stage"], found[1]["error"]["message"]) == (where, "SystemExit: 3")


async def test_nothing_is_still_starting_when_another_stage_has_failed():
    log = []

    class Slow(Add):
        async def start(self):
            try:
                await asyncio.Event().wait()
            finally:
                log.append("ended")

        async def stop(self):
            log.append("stopped")

    class Broken(Add):
        async def start(self):
            raise EngineTimeoutError("does not start")

    with pytest.raises(EngineTimeoutError):
        await all_of(Processor(ProcessorConfig(), [StatefulStage(Slow), StatefulStage(Broken)])(numbers(1)))
    assert log == ["ended", "stopped"]


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
    stages = [AddStage(None, {"log": log}), StatefulStage(Held, {"free": {0: asyncio.Event()}, "entered": entered})]
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
    stream = Processor(ProcessorConfig(), [StatefulStage(Spending), StatefulStage(Spending)])(numbers(10))
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
    found = await all_of(Processor(ProcessorConfig(), [VectorStage()], postprocess=spoil)(rows, order=order))
    assert sorted(found, key=lambda row: row["id"]) == [{"id": n, "vector": [n % 3 + 10]} for n in range(200)]
