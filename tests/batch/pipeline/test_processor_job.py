"""Processors in journaled jobs: what is written, what goes on after an end that was not chosen,
what is refused.
"""

import asyncio
import csv
import json
import os
import signal
from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import penstock
from penstock.batch import (
    JobInterrupted,
    OpenVINOEngineProcessorConfig,
    Processor,
    ProcessorConfig,
    StatefulStage,
    build_processor,
)
from penstock.batch.pipeline.processor_rows import ProcessorRows
from penstock.batch.values.packed import pack
from penstock.batch.write import sinks
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import ConfigError, JobError, JobMismatchError


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(sinks, "PART_ROWS", 40)
    monkeypatch.setattr("penstock.batch.pipeline.pipeline.LONGEST_PAUSE", 0.0)


class World:
    """What a stage meets outside: it differs from run to run, and the job is the same."""

    def __init__(self, seen=None, failing=(), gate=None):
        self.seen = seen if seen is not None else []
        self.failing = failing
        self.gate = gate


class Double:
    def __init__(self, world):
        self.seen = world.seen
        self.failing = world.failing
        self.gate = world.gate

    async def process(self, row):
        self.seen.append(row["id"])
        if self.gate is not None and len(self.seen) > 100:
            await self.gate.wait()
        if row["id"] in self.failing:
            raise ValueError("not this one")
        return {"double": 2 * row["id"], "raw": bytes([row["id"] % 256])}


def doubling(seen=None, keep=True, postprocess=None, preprocess=None, **kwargs):
    stage = StatefulStage(Double, {"world": World(seen, **kwargs)})
    return Processor(
        ProcessorConfig(should_continue_on_error=keep), [stage], preprocess, postprocess
    )


def numbered(count=300):
    return [{"id": n, "text": f"text {n}"} for n in range(count)]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


async def run(source, output, processor, **options):
    return await penstock.arun(source, output, processor=processor, progress=False, **options)


async def test_in_memory():
    result = await run(numbered(3), None, doubling(postprocess=lambda row: {"d": row["double"]}))
    left = {"text": None, "status": "ok", "error": None}
    assert list(result.rows()) == [{"id": None, "d": 2 * n, **left} for n in range(3)]
    assert result.counts.rows == 3


async def test_good_and_bad_rows_have_the_same_columns(tmp_path):
    def make(failing):
        return doubling(
            failing=failing, postprocess=lambda row: {"id": row["id"], "d": row["double"]}
        )

    columns = ["id", "text", "d", "status", "error"]
    result = await run(numbered(3), None, make((0,)))
    assert [sorted(row) for row in result.rows()] == [sorted(columns)] * 3
    whole = result.table()
    for name, failing in (("good", ()), ("mixed", (0,)), ("bad", (0, 1, 2))):
        await run(numbered(3), tmp_path / f"{name}.parquet", make(failing))
        table = pq.read_table(tmp_path / f"{name}.parquet")
        if name != "bad":  # then there is no knowing what was to be made
            assert sorted(table.column_names) == sorted(columns)
        assert all(whole.schema.field(field.name).type == field.type for field in table.schema), (
            table.schema
        )


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet", "out/"])
async def test_every_form_of_output(tmp_path, name):
    if name.endswith("/"):
        (tmp_path / name).mkdir()
    processor = doubling(
        failing=(7,),
        postprocess=lambda row: {"id": row["id"], "d": row["double"], "raw": row["raw"]},
    )
    result = await run(numbered(), tmp_path / name, processor)
    assert result.counts.errors == {"user_code_error": 1}
    if name == "out.jsonl":
        found = lines(tmp_path / name)
        assert found[8] == {
            "id": 8,
            "text": None,
            "d": 16,
            "raw": "CA==",
            "status": "ok",
            "error": None,
        }
        assert found[7]["text"] == "text 7"
    elif name == "out.csv":
        rows = list(csv.DictReader((tmp_path / name).read_text().splitlines()))
        assert rows[7]["error.message"] == "ValueError: not this one"
        assert (rows[8]["d"], rows[8]["status"]) == ("16", "ok")
    else:
        table = result.table()
        assert table["d"].to_pylist() == [2 * n if n != 7 else None for n in range(300)]
        assert table.schema.field("error").type.get_field_index("body") == 5
        assert table["raw"].to_pylist()[8] == b"\x08"
        assert table["error"].to_pylist()[7]["stage"] == "StatefulStage"


async def test_input_types_pass_through(tmp_path):
    table = pa.table(
        {"id": pa.array(range(50), pa.int16()), "at": pa.array([datetime(2026, 1, 2)] * 50)}
    )
    await run(table, tmp_path / "out.parquet", doubling(keep=False))
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.schema.field("id").type == pa.int16()
    assert found.column_names == ["id", "at", "double", "raw"]


@pytest.mark.parametrize("earlier", [False, True], ids=["as now", "as before"])
async def test_an_interrupted_job_goes_on(tmp_path, monkeypatch, earlier):
    seen: list[int] = []
    gate = asyncio.Event()
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in numbered()))
    clean = tmp_path / "clean.jsonl"
    await run(source, clean, doubling(failing=(3,)))
    output = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        if earlier:  # results of JSON lines were once held with the types of their values
            patch.setattr(ProcessorRows, "_stored", lambda self, row, columns: pack(columns)[0])
        job = asyncio.create_task(run(source, output, doubling(seen, failing=(3,), gate=gate)))
        while len(seen) < 110:  # noqa: ASYNC110
            await asyncio.sleep(0)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
    before = len(seen)
    again: list[int] = []
    result = await run(source, output, doubling(again, failing=(3,)))
    assert output.read_bytes() == clean.read_bytes()
    assert result.counts.resumed >= 100
    assert 300 <= before + len(again) < 350
    assert (await run(source, output, doubling())).already_complete


class Interrupting:
    def __init__(self, at):
        self.at = at
        self.ending = False

    async def process(self, row):
        if row["id"] in self.at.numbers:
            os.kill(os.getpid(), self.at.numbers.pop(row["id"]))
            while not self.ending:  # noqa: ASYNC110
                await asyncio.sleep(0)
        return {}


class Signals:
    def __init__(self, numbers):
        self.numbers = numbers


def in_a_notebook(call):
    async def cell():
        return call()

    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(cell())
    finally:
        loop.close()


@pytest.mark.parametrize(
    ("number", "where"),
    [
        (signal.SIGINT, lambda call: call()),
        (signal.SIGTERM, lambda call: call()),
        (signal.SIGHUP, lambda call: call()),
        (signal.SIGINT, in_a_notebook),
    ],
)
def test_a_signal_ends_a_job_that_goes_on_later(tmp_path, ctrl_c, number, where, capsys):
    """The job's event loop runs in another thread than that of the signals."""
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    output = tmp_path / "out.jsonl"

    def run_with(signals):
        stage = StatefulStage(Interrupting, {"at": Signals(signals)})
        return penstock.run(
            numbered(5000), output, processor=Processor(ProcessorConfig(), [stage]), progress=False
        )

    with pytest.raises(JobInterrupted, match="stopped after") as stopped:
        where(lambda: run_with({100: number}))
    assert stopped.value.signal == number
    assert "Finishing the rows in flight" in capsys.readouterr().err
    assert run_with({}).counts.resumed >= 100
    assert [row["id"] for row in lines(output)] == list(range(5000))
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


async def test_a_failure_ends_the_job_and_what_is_done_is_kept(tmp_path):
    output = tmp_path / "out.jsonl"
    with pytest.raises(
        JobError, match="row 200 failed at stage StatefulStage: ValueError: not this one"
    ):
        await run(numbered(), output, doubling(keep=False, failing=(200,)))
    seen: list[int] = []
    await run(numbered(), output, doubling(seen, keep=False))
    assert [row["double"] for row in lines(output)] == [2 * n for n in range(300)]
    assert len(seen) < 250


async def test_failed_rows_are_run_again(tmp_path):
    output = tmp_path / "out.parquet"
    await run(numbered(), output, doubling(failing=(5, 6)))
    seen: list[int] = []
    result = await run(numbered(), output, doubling(seen), retry_failed=True)
    assert sorted(seen) == [5, 6]
    assert result.counts.errors == {}
    assert pq.read_table(output)["double"].to_pylist() == [2 * n for n in range(300)]


@pytest.mark.parametrize(
    "options", [{"on_error": "keep"}, {"dead_letter": "failed.jsonl"}, {"max_error_rate": 0.2}]
)
async def test_what_is_said_of_the_job_goes_before_what_the_processor_says(tmp_path, options):
    if "dead_letter" in options:
        options = {"dead_letter": tmp_path / "failed.jsonl"}
    result = await run(
        numbered(10), tmp_path / "out.jsonl", doubling(keep=False, failing=(3,)), **options
    )
    assert result.counts.errors == {"user_code_error": 1}
    assert {row["status"] for row in lines(tmp_path / "out.jsonl") if row["id"] != 3} == {"ok"}


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
@pytest.mark.parametrize("policy", [{"dead_letter": "failed.jsonl"}, {"on_error": "skip"}])
async def test_rows_that_left_the_output_come_back_when_they_succeed(tmp_path, name, policy):
    output, letters = tmp_path / name, tmp_path / "failed.jsonl"
    if "dead_letter" in policy:
        policy = {"dead_letter": letters}

    def ids():
        return [
            row["id"]
            for row in (lines(output) if name == "out.jsonl" else pq.read_table(output).to_pylist())
        ]

    await run(numbered(), output, doubling(failing=(5, 60, 61)), **policy)
    assert ids() == [n for n in range(300) if n not in (5, 60, 61)]
    if "dead_letter" in policy:
        assert [(row["id"], row["text"], row["error"]["stage"]) for row in lines(letters)] == [
            (n, f"text {n}", "StatefulStage") for n in (5, 60, 61)
        ]
    seen: list[int] = []
    result = await run(
        numbered(), output, doubling(seen, failing=(61,)), retry_failed=True, **policy
    )
    assert sorted(seen) == [5, 60, 61]
    assert result.counts.errors == {"user_code_error": 1}
    assert ids() == [n for n in range(300) if n != 61]
    if "dead_letter" in policy:
        assert [row["id"] for row in lines(letters)] == [61]


async def test_another_processor_is_another_job(tmp_path):
    output = tmp_path / "out.jsonl"
    await run(numbered(), output, doubling(postprocess=lambda row: {"a": row["id"]}))
    for other in (
        doubling(postprocess=lambda row: {"b": row["id"]}),
        doubling(preprocess=lambda row: {}),
        Processor(ProcessorConfig(), []),
    ):
        with pytest.raises(JobMismatchError, match="belongs to a different job"):
            await run(numbered(), output, other)
    faster = doubling(postprocess=lambda row: {"a": row["id"]})
    faster.stages["StatefulStage"].map_batches_kwargs["concurrency"] = 3
    assert (await run(numbered(), output, faster)).already_complete


async def test_so_is_one_whose_template_says_otherwise(tmp_path):
    def made(**variables):
        template = "{{ messages[0]['content'] }}{{ mark }}"
        config = OpenVINOEngineProcessorConfig(
            engine=SimulatedEngine(), chat_template_stage={"chat_template": template}
        )
        kwargs = {"chat_template_kwargs": variables}
        return build_processor(
            config,
            preprocess=lambda row: {"messages": [{"role": "user", "content": row["text"]}]},
            postprocess=lambda row: {"tokens": row["num_input_tokens"]},
            builder_kwargs=kwargs,
        )

    await run(numbered(10), tmp_path / "out.jsonl", made(mark="!"))
    assert (await run(numbered(10), tmp_path / "out.jsonl", made(mark="!"))).already_complete
    told = r"what stages do(.|\n)*If only Penstock has changed"
    with pytest.raises(JobMismatchError, match=told):
        await run(numbered(10), tmp_path / "out.jsonl", made(mark="?"))


@pytest.mark.parametrize(
    "option",
    [{"prompt": "{text}"}, {"model": "demo"}, {"max_tokens": 3}, {"temperature": 0.0}],
)
async def test_what_has_no_meaning_beside_a_processor(option):
    (name,) = option
    with pytest.raises(ConfigError, match=f"{name}: has no meaning beside a processor"):
        await run(numbered(1), None, doubling(), **option)


@pytest.mark.parametrize("option", [{"on_length": "raise"}, {"on_invalid_json": "retry"}])
async def test_what_the_processor_itself_says(option):
    (name,) = option
    with pytest.raises(ConfigError, match=f"{name}: is said in the configuration of the processor"):
        await run(numbered(1), None, doubling(), **option)


async def test_a_processor_on_what_a_job_gave(tmp_path):
    first = penstock.Job(numbered(10), tmp_path / "out.jsonl", processor=doubling(), progress=False)
    found = [row async for row in doubling()(first)]
    assert [row["double"] for row in found] == [2 * n for n in range(10)]
    result = await first.arun()
    assert len([row async for row in doubling()(result)]) == 10


async def test_duplicates_of_an_engines_rows_survive_in_a_job(tmp_path):
    engine = SimulatedEngine()
    config = OpenVINOEngineProcessorConfig(engine=engine)
    processor = build_processor(
        config,
        preprocess=lambda row: {
            "prompt": f"t {row['id'] % 7}",
            "sampling_params": {"temperature": 0},
        },
        postprocess=lambda row: {"id": row["id"], "text": row["generated_text"]},
    )
    result = await run(numbered(70), tmp_path / "out.jsonl", processor)
    assert (result.counts.engine_calls, result.counts.deduplicated) == (7, 63)
    found = lines(tmp_path / "out.jsonl")
    assert [row["id"] for row in found] == list(range(70))
    assert found[0]["text"] == found[7]["text"]


async def test_policies_by_kind_of_error(tmp_path):
    output = tmp_path / "out.jsonl"
    await run(
        numbered(10),
        output,
        doubling(keep=False, failing=(3,)),
        on_error={"user_code_error": "skip"},
    )
    assert [row["id"] for row in lines(output)] == [n for n in range(10) if n != 3]
    assert {row["status"] for row in lines(output)} == {"ok"}
    seen: list[int] = []
    retried = await run(
        numbered(10), None, doubling(seen, failing=(3,)), on_error={"user_code_error": "retry"}
    )
    assert seen.count(3) == 3
    assert [row["status"] for row in retried.rows()].count("error") == 1
    with pytest.raises(JobError, match="row 3 failed"):
        await run(numbered(10), None, doubling(failing=(3,)), on_error="fail")
    letters = tmp_path / "failed.jsonl"
    await run(numbered(10), tmp_path / "b.parquet", doubling(failing=(3,)), dead_letter=letters)
    assert [row["id"] for row in lines(letters)] == [3]


# Time limits of rows
async def test_a_row_that_hangs_becomes_an_error_row():
    engine = SimulatedEngine(engine_kwargs={"hang_rate": 0.3, "max_num_seqs": 4})
    source = numbered(40)
    result = await penstock.arun(
        source, engine=engine, prompt="{text}", row_timeout=0.05, progress=False
    )
    rows = list(result.rows())
    hung = [row for row in rows if row["status"] == "error"]
    assert 3 < len(hung) < 25
    assert {row["error"]["type"] for row in hung} == {"engine_timeout"}
    assert hung[0]["error"]["message"] == "the row was not answered within 0.05 s"
    assert engine.running == 0
    with pytest.raises(ConfigError, match="row_timeout: must be above 0"):
        await penstock.arun(source, engine=engine, prompt="{text}", row_timeout=0, progress=False)
