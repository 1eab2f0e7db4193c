"""Processors over rows, with stages of the test's own."""

import asyncio
import pickle
import threading

import numpy
import pandas as pd
import pyarrow as pa
import pytest

from adding import Add, AddStage, adding, all_of, numbers
from penstock.batch import (
    Processor,
    ProcessorConfig,
    StatefulStage,
)
from penstock.batch.rows import Row
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


@pytest.mark.parametrize("taken", [False, True])
async def test_a_row_that_failed_in_one_processor_does_not_succeed_in_the_next(taken):
    config = ProcessorConfig(should_continue_on_error=True)
    seen: list[int] = []

    def preprocess(row):
        seen.append(row["id"])
        return {"x": -row["id"]}

    given = adding(1, config=config)([{"id": 0, "x": 1}, {"id": 1, "x": "poison"}, {"id": 2, "x": 3}])
    first = await all_of(given)
    second = adding(1, config=config, preprocess=preprocess)
    found = await all_of(second(pickle.loads(pickle.dumps(first)) if taken else given))
    assert found[1] == first[1]
    assert (found[1]["error"]["message"], found[1]["error"]["stage"]) == ("that is no number", "AddStage")
    assert [row["status"] for row in found] == ["ok", "error", "ok"]
    assert seen == [0, 2]
    seen.clear()
    plain = adding(1, preprocess=preprocess)
    assert [row["status"] for row in await all_of(plain(given))] == ["ok", "error", "ok"]
    assert seen == [0, 1, 2]


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


class Ending(BaseException):
    """A caller's own."""


class Silent(Exception):
    def __str__(self):
        raise ValueError("there is no text")


ENDINGS = [ValueError, Silent, Ending, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("arriving", [False, True])
def test_a_source_that_wants_to_end_everything_ends_the_run(after, ending, arriving):
    """In the thread that a plain `for` works in: in the main thread a `KeyboardInterrupt` is the user's."""

    def rows():
        yield from numbers(after)
        raise ending("enough")

    async def rows_that_arrive():
        for row in numbers(after):
            yield row
        raise ending("enough")

    with pytest.raises(InputError, match=f"reading the rows failed: {ending.__name__}: "):
        adding(1)(rows_that_arrive() if arriving else rows()).take_all()


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


class Leaving:
    """Wants to end the program, or says that it was cancelled, at a place of the test's choice."""

    def __init__(self, place=None, ending=SystemExit):
        self.place = place
        self.error = ending  # `ending` would be set when the run ends
        self.leave("init")

    def leave(self, here):
        if here == self.place:
            raise self.error("enough")

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


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("worker", [Leaving, LeavingInAThread])
def test_a_row_that_wants_to_end_everything_ends_alone(worker, ending):
    config = ProcessorConfig(should_continue_on_error=True)
    stages = [StatefulStage(worker, {"place": "process", "ending": ending})]
    found = Processor(config, stages)(numbers(4)).take_all()
    assert [row["status"] for row in found] == ["ok", "error", "ok", "ok"]
    assert found[1]["error"]["message"].startswith(f"{ending.__name__}: ")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("place", ["init", "start"])
def test_a_worker_that_wants_to_end_everything_ends_the_run(place, ending):
    processor = Processor(ProcessorConfig(), [StatefulStage(Leaving, {"place": place, "ending": ending})])
    with pytest.raises(UserCodeError, match=f"Leaving cannot be (made|started): {ending.__name__}: "):
        processor(numbers(1)).take_all()


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_worker_that_cannot_be_stopped_costs_no_row(caplog, ending):
    processor = Processor(ProcessorConfig(), [StatefulStage(Leaving, {"place": "stop", "ending": ending})])
    assert len(processor(numbers(2)).take_all()) == 2
    assert f"Leaving could not be stopped: {ending.__name__}: " in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("where", ["preprocess", "postprocess"])
def test_so_does_a_function(where, ending):
    def leave(row):
        if row["id"] == 1:
            raise ending("enough")
        return row

    config = ProcessorConfig(should_continue_on_error=True)
    found = adding(1, config=config, **{where: leave})(numbers(3)).take_all()
    assert [row["status"] for row in found] == ["ok", "error", "ok"]
    assert found[1]["error"]["stage"] == where
    assert found[1]["error"]["message"].startswith(f"{ending.__name__}: ")


async def test_a_ctrl_c_is_no_row_error():
    """In the main thread, where signals raise it, during a call that is made in place."""

    def interrupted(row):
        raise KeyboardInterrupt

    form = adding(1, preprocess=interrupted).rows()
    with pytest.raises(KeyboardInterrupt):
        form._begin(Row(0, {"x": 1}))


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


class Spending:
    async def process(self, row):
        return {"num_input_tokens": row["id"], "num_generated_tokens": 1}


async def test_the_tokens_of_all_stages_are_counted():
    stream = Processor(ProcessorConfig(), [StatefulStage(Spending), StatefulStage(Spending)])(numbers(10))
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
