"""The loop that moves rows, by way of jobs on an engine whose answers the test decides."""

import asyncio
import itertools

import pytest

import penstock
from penstock.batch import flow
from penstock.batch.read.sources import read_ahead
from penstock.batch.rows.row import RowForm
from penstock.errors import (
    ConfigError,
    ContextLengthError,
    EngineDeadError,
    EngineError,
    EngineTimeoutError,
    JobError,
    ModelNotFoundError,
)
from penstock.types import Delta, Usage


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr("penstock.batch.pipeline.pipeline.LONGEST_PAUSE", 0.0)


def rows(*texts):
    return [{"id": number, "text": text} for number, text in enumerate(texts)]


def numbered(count):
    return rows(*(f"text {number}" for number in range(count)))


async def ask(source, engine, **options):
    return await penstock.arun(source, engine=engine, prompt="{text}", progress=False, **options)


async def test_each_row_is_answered_once_and_in_order(make_engine):
    engine = make_engine()
    result = await ask(numbered(500), engine)
    assert [row["response"] for row in result.rows()] == [f"TEXT {number}" for number in range(500)]
    assert [row["id"] for row in result.rows()] == list(range(500))
    assert (result.counts.rows, result.counts.ok, result.counts.engine_calls) == (500, 500, 500)
    assert result.counts.prompt_tokens == sum(len(text) for text in engine.asked)


async def test_an_output_row(make_engine):
    result = await ask(rows("a"), make_engine())
    (row,) = result.rows()
    assert row.pop("latency_ms") >= 0
    assert row == {
        "id": 0,
        "text": "a",
        "response": "A",
        "status": "ok",
        "error": None,
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "cached_tokens": 1},
        "attempts": 1,
    }


async def test_the_engine_is_kept_a_little_more_than_full(make_engine):
    for concurrency, most in ((1, 3), (16, 20), (64, 80)):
        engine = make_engine(concurrency=concurrency)
        await ask(numbered(300), engine)
        assert engine.most == most


async def test_a_straggler_holds_up_no_other_row(make_engine):
    engine = make_engine(concurrency=2)
    engine.gate, engine.held = asyncio.Event(), {"text 0"}
    job = asyncio.create_task(ask(numbered(300), engine))
    await engine.was_asked(300)
    assert not job.done()
    engine.gate.set()
    assert [row["id"] for row in (await job).rows()] == list(range(300))


async def test_order_done_gives_rows_as_they_finish(make_engine):
    engine = make_engine(concurrency=2)
    engine.gate, engine.held = asyncio.Event(), {"text 0"}
    job = asyncio.create_task(ask(numbered(50), engine, order="done"))
    await engine.was_asked(50)
    engine.gate.set()
    ids = [row["id"] for row in (await job).rows()]
    assert ids[-1] == 0
    assert sorted(ids) == list(range(50))


async def test_reading_waits_for_a_straggler_when_too_much_is_held(make_engine, monkeypatch):
    monkeypatch.setattr(flow, "MAX_ROWS", 200)
    monkeypatch.setattr(flow, "LARGEST_WINDOW", 64)
    engine = make_engine(concurrency=2)
    engine.gate, engine.held = asyncio.Event(), {"text 0"}
    job = asyncio.create_task(ask(numbered(5000), engine))
    await engine.was_asked(200)
    for _ in range(1000):  # as many occasions to go too far
        await asyncio.sleep(0)
        assert len(engine.asked) <= 200 + 2 * 64 + 4
    engine.gate.set()
    assert [row["id"] for row in (await job).rows()] == list(range(5000))


@pytest.mark.parametrize("bad", [set(range(1, 1000)), set(range(0, 1000, 2)), set(range(1000))])
async def test_many_error_rows_cannot_block_the_window(make_engine, monkeypatch, bad):
    monkeypatch.setattr(flow, "MAX_ROWS", 50)
    source = [{"id": n} if n in bad else {"id": n, "text": f"text {n}"} for n in range(1000)]
    source.insert(0, {"id": -1, "text": "first"})
    result = await ask(source, make_engine(concurrency=2))
    assert [row["id"] for row in result.rows()] == list(range(-1, 1000))
    assert result.counts.errors == {"invalid_request_error": len(bad)}


async def test_rows_that_fail_leave_others_their_turn(make_engine, monkeypatch):
    received, most = 0, 0
    receive = flow.Flow._receive

    async def all_at_once(*given):
        for batch in [batch async for batch in read_ahead(*given)]:
            yield batch

    def counted(self, row):
        nonlocal received, most
        received += 1
        most = max(most, received)
        receive(self, row)

    async def others():
        nonlocal received
        while True:
            received = 0
            await asyncio.sleep(0)

    monkeypatch.setattr(flow, "read_ahead", all_at_once)
    monkeypatch.setattr(flow.Flow, "_receive", counted)
    beside = asyncio.create_task(others())
    source = [*numbered(1), *({"id": number} for number in range(1, 2001))]
    result = await ask(source, make_engine())
    beside.cancel()
    assert result.counts.failed == 2000
    assert most <= 256


# Equal requests
async def test_equal_requests_are_computed_once(make_engine):
    engine = make_engine()
    result = await ask(rows(*(f"text {number % 7}" for number in range(700))), engine)
    assert [row["response"] for row in result.rows()] == [
        f"TEXT {number % 7}" for number in range(700)
    ]
    assert len(engine.asked) == 7
    assert (result.counts.engine_calls, result.counts.deduplicated) == (7, 693)


async def test_a_failure_in_flight_is_shared_but_not_remembered(make_engine):
    engine = make_engine(lambda text: EngineError("no") if text == "same" else text, concurrency=2)
    engine.gate, engine.held = asyncio.Event(), {"same"}
    job = asyncio.create_task(ask(rows("same", "same", "same", "last"), engine))
    await engine.was_asked(2)
    engine.gate.set()
    result = await job
    assert engine.asked == ["same", "last"]
    assert result.counts.errors == {"engine_error": 3}


async def test_a_passing_failure_is_tried_again_once_for_all(make_engine):
    failures = [EngineTimeoutError("late")]
    engine = make_engine(lambda text: failures.pop() if failures else "fine")
    result = await ask(rows("same", "same", "same"), engine)
    assert len(engine.asked) == 2
    assert [(row["response"], row["attempts"]) for row in result.rows()] == [("fine", 2)] * 3


@pytest.mark.parametrize(
    ("options", "calls"), [({"temperature": 1.0}, 3), ({"temperature": 1.0, "seed": 1}, 1)]
)
async def test_requests_left_to_chance_are_computed_each(make_engine, options, calls):
    engine = make_engine()
    await ask(rows("same", "same", "same"), engine, **options)
    assert len(engine.asked) == calls


async def test_equal_text_for_different_adapters_is_not_equal(make_engine):
    engine = make_engine()
    engine.adapters = {"one": "", "two": ""}
    source = [{"text": "same", "a": name} for name in ("one", "two", None, "", "one")]
    await ask(source, engine, adapter="a")
    assert sorted(request.adapter or "" for request in engine.requests) == ["", "one", "two"]


# Failures
async def test_a_failing_row_becomes_an_error_row(make_engine):
    engine = make_engine(lambda text: ContextLengthError("too long") if text == "b" else text)
    good, bad, _ = (await ask(rows("a", "b", "c"), engine)).rows()
    assert list(bad) == list(good)
    assert bad["status"] == "error"
    assert bad["error"] == {
        "type": "context_length_exceeded",
        "stage": "engine",
        "retryable": False,
        "message": "too long",
    }
    assert (bad["response"], bad["usage"], bad["finish_reason"], bad["attempts"]) == (
        None,
        None,
        None,
        1,
    )


async def test_passing_failures_are_tried_as_often_as_allowed(make_engine):
    engine = make_engine(lambda text: EngineTimeoutError("late"))
    (row,) = (await ask(rows("a"), engine, max_attempts=5)).rows()
    assert (len(engine.asked), row["attempts"], row["error"]["retryable"]) == (5, 5, True)


async def test_an_unforeseen_exception_fails_its_row_alone(make_engine):
    engine = make_engine(lambda text: ZeroDivisionError("oops") if text == "a" else text)
    bad, good = (await ask(rows("a", "b"), engine)).rows()
    assert bad["error"]["message"] == "ZeroDivisionError: oops"
    assert good["status"] == "ok"


@pytest.mark.parametrize("reason", ["abort", "error"])
async def test_an_answer_that_was_broken_off_is_an_error(make_engine, reason):
    engine = make_engine(lambda text: Delta(text="half", finish_reason=reason, usage=Usage()))
    (row,) = (await ask(rows("a"), engine)).rows()
    assert row["error"]["type"] == "engine_error"


async def test_on_error_fail_names_row_and_stage(make_engine):
    engine = make_engine(lambda text: EngineError("no luck") if text == "text 3" else text)
    with pytest.raises(JobError, match="row 3 failed at stage engine: no luck"):
        await ask(numbered(10), engine, on_error="fail")
    with pytest.raises(
        JobError, match="row 1 failed at stage prompt: the row has no column 'text'"
    ):
        await ask([{"text": "a"}, {}], make_engine(), on_error="fail")


async def test_a_dead_engine_is_started_again(make_engine):
    deaths = [EngineDeadError("died"), EngineDeadError("died")]
    engine = make_engine(lambda text: deaths.pop() if deaths and text == "text 60" else text)
    result = await ask(numbered(200), engine)
    assert result.counts.ok == 200
    assert engine.starts == 3


@pytest.mark.parametrize("attempts", [1, 3])
async def test_a_row_that_kills_the_engine_spends_no_attempts_of_others(make_engine, attempts):
    engine = make_engine(
        lambda text: EngineDeadError("killed") if text == "text 7" else text, concurrency=8
    )
    result = await ask(numbered(100), engine, max_attempts=attempts)
    bad = {row["id"]: row["error"] for row in result.rows() if row["error"]}
    assert {row: (error["type"], error["retryable"]) for row, error in bad.items()} == {
        7: ("quarantined", False)
    }
    assert "change its prompt or its parameters" in bad[7]["message"]
    assert engine.starts <= 7


@pytest.mark.parametrize("concurrency", [1, 2, 8, 64, 256])
async def test_rows_that_kill_cost_themselves_alone(make_engine, concurrency):
    fatal = {3, 4, 5, 6, 70, 151, 152, 200, 298, 299}
    killing = {f"text {number}" for number in fatal}
    engine = make_engine(
        lambda text: EngineDeadError("killed") if text in killing else text, concurrency=concurrency
    )
    result = await ask(numbered(300), engine)
    assert {row["id"] for row in result.rows() if row["error"]} == fatal
    assert {row["error"]["type"] for row in result.rows() if row["error"]} == {"quarantined"}
    assert engine.starts <= 1 + len(fatal) * (concurrency.bit_length() + 3)


async def test_rows_that_were_there_wait_until_the_engine_is_back(make_engine):
    """None of them spends an attempt, or an engine, on finding it dead."""
    engine = make_engine(
        lambda text: EngineDeadError("killed") if text == "text 7" else text, concurrency=32
    )
    start_now = engine.start

    async def start():
        for _ in range(50):
            await asyncio.sleep(0)
        await start_now()

    engine.start = start
    result = await ask(numbered(60), engine, max_attempts=1)
    assert [row["id"] for row in result.rows() if row["error"]] == [7]
    assert engine.most <= 60


async def test_an_engine_that_only_dies_ends_the_job(make_engine):
    engine = make_engine(lambda text: EngineDeadError("died"))
    with pytest.raises(
        JobError,
        match="died 5 times without finishing a row, at last of the least that can be asked",
    ):
        await ask(numbered(50), engine, max_attempts=100)
    assert engine.starts == 5


async def test_an_engine_that_does_not_come_back_ends_the_job(make_engine):
    engine = make_engine(lambda text: EngineDeadError("died"))
    first_start = engine.start

    async def start():
        if engine.starts:
            raise EngineError("out of memory")
        await first_start()

    engine.start = start
    with pytest.raises(JobError, match="does not start again: out of memory"):
        await ask(numbered(50), engine)


# Whose engine it is
async def test_an_engine_is_left_as_it_was_found(make_engine):
    engine = make_engine()
    await ask(rows("a"), engine)
    assert (engine.starts, engine.stops, engine.alive) == (1, 1, False)
    await engine.start()
    await ask(rows("a"), engine)
    assert (engine.starts, engine.stops, engine.alive) == (2, 1, True)


async def test_a_cancelled_job_leaves_nothing_running(make_engine):
    engine = make_engine()
    engine.gate, engine.held = asyncio.Event(), {f"text {n}" for n in range(100)}
    job = asyncio.create_task(ask(numbered(100), engine))
    await engine.was_asked(6)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert (engine.in_flight, engine.alive) == (0, False)


# Adapters
async def test_adapters_are_made_ready_once(make_engine, tmp_path):
    engine = make_engine()
    source = [{"text": f"text {n}", "a": str(tmp_path)} for n in range(40)]
    result = await ask(source, engine, adapter="a")
    assert engine.resolved == [(str(tmp_path), str(tmp_path))]
    assert {request.adapter for request in engine.requests} == {str(tmp_path)}
    assert result.counts.ok == 40


async def test_an_unknown_adapter_is_an_error_row(make_engine):
    result = await ask(
        [{"text": "x", "a": "nosuch"}, {"text": "x", "a": None}], make_engine(), adapter="a"
    )
    bad, good = result.rows()
    assert bad["error"]["type"] == "model_not_found"
    assert good["status"] == "ok"


async def test_an_unknown_adapter_for_all_rows_is_an_error_before_the_start(make_engine):
    engine = make_engine()
    with pytest.raises(ModelNotFoundError, match="nosuch"):
        await ask(rows("a"), engine, adapter="nosuch")
    assert engine.starts == 0


async def test_adapters_are_made_ready_again_after_a_death(make_engine, tmp_path):
    deaths = [EngineDeadError("died")]
    engine = make_engine(lambda text: deaths.pop() if deaths and text == "text 9" else text)

    async def stop():
        engine.alive = False
        engine.adapters.clear()

    engine.stop = stop
    result = await ask(numbered(20), engine, adapter=str(tmp_path))
    assert result.counts.ok == 20
    assert len(engine.resolved) == 2


# What rows are asked
async def test_conversations_from_a_column(make_engine):
    engine = make_engine()
    source = [
        {"m": [{"role": "user", "content": "a", "name": None}]},
        {"m": '[{"role": "system", "content": "own"}, {"role": "user", "content": "b"}]'},
        {"m": "no json"},
        {"m": []},
        {"m": [{"content": "c"}]},
        {},
    ]
    result = await penstock.arun(
        source, engine=engine, messages="m", system="be brief", progress=False
    )
    assert [request.messages for request in engine.requests] == [
        [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a"}],
        [{"role": "system", "content": "own"}, {"role": "user", "content": "b"}],
    ]
    assert [row["status"] for row in result.rows()] == [
        "ok",
        "ok",
        "error",
        "error",
        "error",
        "error",
    ]


async def test_sampling_reaches_the_engine(make_engine):
    engine = make_engine()
    await ask(
        rows("a"),
        engine,
        max_tokens=5,
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        seed=1,
        stop="\n",
        min_p=0.1,
    )
    sampling = engine.requests[0].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (
        5,
        0.5,
        0.9,
        3,
    )
    assert (sampling.seed, sampling.stop, sampling.min_p) == (1, ("\n",), 0.1)
    assert engine.requests[0].stream is False


async def test_shared_beginnings_are_admitted_together(make_engine):
    engine = make_engine()
    documents = [str(number) * 200 for number in range(4)]
    # The first rows go as they come; what gathers meanwhile is sorted.
    await ask(rows(*(documents[n % 4] + f" {n}" for n in range(512))), engine)
    later = engine.asked[128:]
    changes = sum(a[:200] != b[:200] for a, b in itertools.pairwise(later))
    assert changes < 20


SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["x", "y"]}, "score": {"type": "number"}},
    "required": ["label"],
}


async def test_fields_of_structured_answers_become_columns(make_engine):
    answers = {"a": {"label": "x", "score": 1}, "b": {"label": "z"}, "c": "no json"}
    answers["d"] = Delta(text='{"la', finish_reason="length", usage=Usage(1, 3, 0))
    result = await ask(rows(*"abcd"), make_engine(answers.get), schema=SCHEMA)
    found = list(result.rows())
    assert [(row["label"], row["score"], row["status"]) for row in found] == [
        ("x", 1, "ok"),
        (None, None, "error"),
        (None, None, "error"),
        (None, None, "error"),
    ]
    assert {row["error"]["type"] for row in found[1:]} == {"invalid_json"}
    assert {row["error"]["stage"] for row in found[1:]} == {"parse"}
    assert found[2]["response"] == "no json"
    assert "cut off after 3 tokens" in found[3]["error"]["message"]
    assert list(found[0]) == list(found[3])
    assert result.counts.completion_tokens > 3


# What is wrong before anything starts
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "{txt}"}, "Did you mean 'text'"),
        ({"prompt": "{text}", "messages": "text"}, "not both"),
        ({}, "say what to ask"),
        ({"messages": "txt"}, "Did you mean 'text'"),
        ({"prompt": "{text}", "order": "random"}, "must be input or done"),
        ({"prompt": "{text}", "limit": -1}, "at least 0"),
        ({"prompt": "{text}", "max_tokens": 0}, "at least 1"),
        ({"prompt": "{text}", "temperature": -1.0}, "between 0 and 2"),
        ({"prompt": "{text}", "retry_failed": True}, "needs an output"),
        ({"prompt": "{text}", "schema": {"properties": {"status": {}}}}, "name of a result column"),
    ],
)
async def test_mistakes_are_found_before_the_engine_starts(make_engine, options, message):
    engine = make_engine()
    with pytest.raises(ConfigError, match=message):
        await penstock.arun(rows("a"), engine=engine, **options)
    assert engine.starts == 0


async def test_columns_with_the_names_of_results_need_a_prefix(make_engine):
    source = [{"text": "a", "status": "open", "usage": 1}]
    with pytest.raises(ConfigError, match=r"status, usage.*--result-prefix"):
        await ask(source, make_engine())
    (row,) = (await ask(source, make_engine(), result_prefix="out_")).rows()
    assert (row["status"], row["usage"], row["out_status"], row["out_response"]) == (
        "open",
        1,
        "ok",
        "A",
    )
    first, late = (await ask([{"text": "a"}, {"text": "b", "error": 7}], make_engine())).rows()
    assert (first["status"], late["status"], late["error"]["stage"]) == ("ok", "error", "prompt")


async def test_limit(make_engine):
    for limit in (0, 1, 70, 1000):
        result = await ask(numbered(100), make_engine(), limit=limit)
        assert result.counts.rows == len(list(result.rows())) == min(limit, 100)


async def test_results_as_a_table(make_engine):
    engine = make_engine(lambda text: EngineError("no") if text == "text 1" else text)
    table = (await ask(numbered(3), engine)).table()
    assert table["id"].to_pylist() == [0, 1, 2]
    assert table["status"].to_pylist() == ["ok", "error", "ok"]
    assert table["usage"].to_pylist()[1] is None
    assert (await ask([], make_engine())).table().num_rows == 0


async def test_run_inside_a_running_loop(make_engine):
    result = penstock.run(numbered(3), model="simulated", prompt="{text}", progress=False)
    assert result.counts.ok == 3
    with pytest.raises(ConfigError, match="await penstock"):
        penstock.run(numbered(3), engine=make_engine(), prompt="{text}")


async def test_asynchronous_rows(make_engine):
    async def generate():
        for row in numbered(100):
            await asyncio.sleep(0)
            yield row

    result = await ask(generate(), make_engine())
    assert [row["id"] for row in result.rows()] == list(range(100))


async def test_a_rows_time_stands_still_while_others_are_suspected(make_engine):
    engine = make_engine(
        lambda text: EngineDeadError("killed") if text == "text 2" else text, concurrency=8
    )
    start_now = engine.start

    async def start():
        if engine.starts:
            await asyncio.sleep(0.3)  # longer than a row may take
        await start_now()

    engine.start = start
    result = await ask(numbered(20), engine, row_timeout=0.25)
    assert {row["id"]: row["error"]["type"] for row in result.rows() if row["error"]} == {
        2: "quarantined"
    }
    assert engine.starts >= 3


@pytest.fixture
def concluded_later(monkeypatch):
    """Rows that are answered from memory take some turns of the event loop, as with user code."""

    async def later(outcome):
        for _ in range(20):
            await asyncio.sleep(0)
        return outcome

    monkeypatch.setattr(RowForm, "conclude", lambda self, row, outcome: later(outcome))


@pytest.mark.usefixtures("concluded_later")
async def test_equal_rows_of_one_that_ends_while_draining_are_kept(make_engine, monkeypatch):
    drained, drain = asyncio.Event(), flow.Flow.drain
    read, take_in = asyncio.Event(), flow.Flow._take_in

    def noted(self):
        drain(self)
        drained.set()

    async def whole(self):
        await take_in(self)
        read.set()

    monkeypatch.setattr(flow.Flow, "drain", noted)
    monkeypatch.setattr(flow.Flow, "_take_in", whole)
    engine = make_engine()
    engine.gate, engine.held = asyncio.Event(), {"same"}
    source = rows("same", "other", *["same"] * 5)
    job = asyncio.create_task(ask(source, engine, max_tokens_total=1))
    await drained.wait()
    await read.wait()
    engine.gate.set()
    assert (await job).counts.ok == 7
    assert engine.asked == ["same", "other"]


@pytest.mark.usefixtures("concluded_later")
async def test_the_last_row_concluded_opens_the_next_window(make_engine, monkeypatch):
    """While rows are concluded no window opens beyond the bound; their end must open it."""
    monkeypatch.setattr(flow, "MAX_ROWS", 4)
    waits_for = {"id": 64, "text": "other"}  # those behind it are done, and wait for it
    source = [*rows(*["same"] * 64), waits_for, *({"id": 65 + n} for n in range(40))]
    async with asyncio.timeout(60):
        result = await ask(source, make_engine(concurrency=1))
    assert (result.counts.ok, result.counts.rows) == (65, 105)
