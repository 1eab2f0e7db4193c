"""What fails in a processor, and what becomes of it: functions, stages, workers and sources that
raise anything.
"""

import asyncio
import pickle

import pytest

import penstock
from adding import Add, AddStage, adding, all_of, numbers
from penstock.batch import (
    Job,
    Processor,
    ProcessorConfig,
    StatefulStage,
)
from penstock.batch.rows.row import Row
from penstock.errors import ConfigError, EngineTimeoutError, InputError, JobError, UserCodeError


@pytest.mark.parametrize(
    ("options", "stage", "kind", "message"),
    [
        ({"preprocess": lambda row: 1 // 0}, "preprocess", "user_code_error", "ZeroDivisionError"),
        (
            {"preprocess": lambda row: 3},
            "preprocess",
            "user_code_error",
            "preprocess gave a int, no dict",
        ),
        ({"postprocess": lambda row: row["y"]}, "postprocess", "user_code_error", "KeyError: 'y'"),
        (
            {"postprocess": lambda row: None},
            "postprocess",
            "user_code_error",
            "postprocess gave a NoneType",
        ),
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
    rows[60]["x"] = None
    config = ProcessorConfig(should_continue_on_error=True)
    found = await all_of(adding(1, 1, config=config)(rows))
    assert [row["id"] for row in found] == list(range(100))
    assert [row["status"] for row in found].count("ok") == 98
    assert found[0] == {"id": 0, "x": 2, "status": "ok", "error": None}
    assert found[40]["error"]["message"] == "that is no number"
    assert (found[60]["error"]["type"], found[60]["error"]["stage"]) == (
        "user_code_error",
        "AddStage",
    )
    with pytest.raises(JobError, match="row 40 failed at stage AddStage: that is no number"):
        await all_of(adding(1, 1)(rows))


@pytest.mark.parametrize("taken", [False, True])
async def test_a_row_that_failed_in_one_processor_does_not_succeed_in_the_next(taken):
    config = ProcessorConfig(should_continue_on_error=True)
    seen: list[int] = []

    def preprocess(row):
        seen.append(row["id"])
        return {"x": -row["id"]}

    given = adding(1, config=config)(
        [{"id": 0, "x": 1}, {"id": 1, "x": "poison"}, {"id": 2, "x": 3}]
    )
    first = await all_of(given)
    second = adding(1, config=config, preprocess=preprocess)
    found = await all_of(second(pickle.loads(pickle.dumps(first)) if taken else given))
    assert found[1] == first[1]
    assert (found[1]["error"]["message"], found[1]["error"]["stage"]) == (
        "that is no number",
        "AddStage",
    )
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


ENDINGS = [
    ValueError,
    Silent,
    Ending,
    SystemExit,
    KeyboardInterrupt,
    GeneratorExit,
    asyncio.CancelledError,
]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("arriving", [False, True])
def test_a_source_that_wants_to_end_everything_ends_the_run(after, ending, arriving):
    """In the thread that a plain `for` works in: in the main thread a `KeyboardInterrupt` is the
    user's.
    """

    def rows():
        yield from numbers(after)
        raise ending("enough")

    async def rows_that_arrive():
        for row in numbers(after):
            yield row
        raise ending("enough")

    with pytest.raises(InputError, match=f"reading the rows failed: {ending.__name__}: "):
        adding(1)(rows_that_arrive() if arriving else rows()).take_all()


async def test_a_row_without_a_column_that_a_stage_needs_reaches_no_worker():
    kept = adding(1, 2, config=ProcessorConfig(should_continue_on_error=True))
    short, whole = await all_of(kept([{"id": 0}, {"id": 1, "x": 1}]))
    assert whole["x"] == 4
    assert short["error"]["type"] == "invalid_request_error"
    stage = short["error"]["stage"]
    assert short["error"]["message"] == f"the row has no column 'x', which {stage} needs"


class Wrong:
    async def process(self, row):
        return [row]


async def test_a_stage_that_gives_no_dict():
    with pytest.raises(JobError, match="Wrong gave a list, no dict"):
        await all_of(Processor(ProcessorConfig(), [StatefulStage(Wrong)])([{"x": 1}]))


async def test_a_stage_that_cannot_be_made_or_started():
    with pytest.raises(
        ConfigError, match=r"Add cannot be made: .* unexpected keyword argument 'nmber'"
    ):
        await all_of(Processor(ProcessorConfig(), [AddStage(None, {"nmber": 1})])(numbers(1)))

    class Broken(Add):
        async def start(self):
            raise EngineTimeoutError("does not start")

    log: list[str] = []
    with pytest.raises(EngineTimeoutError, match="does not start"):
        await all_of(
            Processor(ProcessorConfig(), [AddStage(None, {"log": log}), StatefulStage(Broken)])(
                numbers(1)
            )
        )
    assert log == ["start", "stop"]

    class Buggy(Add):
        async def start(self):
            raise KeyError("absent")

    with pytest.raises(UserCodeError, match=r"Buggy cannot be started: KeyError: 'absent'"):
        await all_of(Processor(ProcessorConfig(), [StatefulStage(Buggy)])(numbers(1)))


class Batches:
    async def udf(self, batch):
        yield batch


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            StatefulStage(Batches),
            (
                r"StatefulStage.fn: Batches has no method process\(row\). It takes one row, where a"
                r" `udf`"
            ),
        ),
        (StatefulStage(dict), r"StatefulStage.fn: dict has no method process\(row\)$"),
        (Add(1), "stages: a Add is no penstock.batch.StatefulStage"),
    ],
)
def test_what_is_no_stage(stage, message):
    with pytest.raises(ConfigError, match=message):
        Processor(ProcessorConfig(), [stage])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batchsize": 3}, r"AddStage: unknown key 'batchsize'. Did you mean 'batch_size'"),
        ({"concurrency": 0}, r"AddStage.concurrency: must be a positive number, not 0"),
        ({"concurrency": "four"}, r"AddStage.concurrency: must be a positive number, not 'four'"),
        ({"batch_size": -1}, r"AddStage.batch_size: must be a positive number, not -1"),
    ],
)
async def test_mistakes_in_what_a_stage_asks_for(given, message):
    processor = adding(1)
    processor.get_stage_by_name("AddStage").map_batches_kwargs.update(given)
    with pytest.raises(ConfigError, match=message):
        processor(numbers(1))
    with pytest.raises(ConfigError, match=message):
        await Job(numbers(1), processor=processor, progress=False).arun()


class Absent:
    async def start(self):
        raise KeyError("absent")

    async def process(self, row):
        return {}


@pytest.mark.parametrize(
    "use",
    [lambda last, rows: all_of(last(rows)), lambda last, rows: penstock.arun(rows, processor=last)],
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
    processor = Processor(
        ProcessorConfig(), [StatefulStage(Leaving, {"place": place, "ending": ending})]
    )
    with pytest.raises(
        UserCodeError, match=f"Leaving cannot be (made|started): {ending.__name__}: "
    ):
        processor(numbers(1)).take_all()


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_worker_that_cannot_be_stopped_costs_no_row(caplog, ending):
    processor = Processor(
        ProcessorConfig(), [StatefulStage(Leaving, {"place": "stop", "ending": ending})]
    )
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
        await all_of(
            Processor(ProcessorConfig(), [StatefulStage(Slow), StatefulStage(Broken)])(numbers(1))
        )
    assert log == ["ended", "stopped"]
