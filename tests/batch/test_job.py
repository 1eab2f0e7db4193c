"""Jobs with an output: what they write, and how they go on after an end they did not choose."""

import asyncio
import csv
import errno
import json
import os
import signal
import threading

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import penstock
from penstock.batch import sinks
from penstock.errors import (
    ConfigError,
    EngineDeadError,
    EngineError,
    EngineTimeoutError,
    InputError,
    JobError,
    JobMismatchError,
    OutputError,
)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(sinks, "PART_ROWS", 40)
    monkeypatch.setattr("penstock.batch.attempts.LONGEST_PAUSE", 0.0)


def numbered(count):
    return [{"id": number, "text": f"text {number}"} for number in range(count)]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in numbered(300)))
    return path


async def ask(source, output, engine, **options):
    options = {"prompt": "{text}", "progress": False, **options}
    return await penstock.arun(source, output, engine=engine, **options)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def settled(rows):
    """Rows without what differs between two runs by right."""
    return [{key: value for key, value in row.items() if key not in ("latency_ms", "attempts")} for row in rows]


async def interrupted(source, output, engine, after, **options):
    """A job that is cancelled when `after` requests have come."""
    job = asyncio.create_task(ask(source, output, engine, **options))
    await engine.was_asked(after)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job


# Forms of output
async def test_jsonl(source, tmp_path, make_engine):
    result = await ask(source, tmp_path / "out.jsonl", make_engine())
    found = lines(tmp_path / "out.jsonl")
    assert [row["response"] for row in found] == [f"TEXT {n}" for n in range(300)]
    assert list(result.rows()) == found
    assert result.counts.rows == 300
    left = sorted(path.name for path in (tmp_path / "out.jsonl.penstock").iterdir())
    assert left == ["lock", "manifest.json", "parts-0.jsonl"]


async def test_parquet_keeps_the_types_of_the_input(tmp_path, make_engine):
    table = pa.table(
        {
            "text": [f"text {n}" for n in range(300)],
            "n": pa.array(range(300), pa.int16()),
            "at": pa.array(range(300), pa.timestamp("ns", "UTC")),
            "tag": pa.array(["a", "b", None] * 100).dictionary_encode(),
            "vector": pa.array([[1.5, 2.5]] * 300, pa.list_(pa.float32(), 2)),
            "nested": pa.array([{"a": {"b": 1}}] * 300),
        }
    )
    for order in ("input", "done"):
        output = tmp_path / f"{order}.parquet"
        result = await ask(table, output, make_engine(), order=order)
        found = pq.read_table(output).sort_by("n")
        assert found.select(table.column_names).cast(table.schema).equals(table)
        assert found.schema.field("tag").type == table.schema.field("tag").type
        assert found["response"].to_pylist() == [f"TEXT {n}" for n in range(300)]
        assert result.table().num_rows == 300


async def test_parquet_from_lines_finds_types_or_falls_back_to_text(tmp_path, make_engine):
    source: list[dict] = [
        {"text": f"text {n}", "n": n, "mixed": n if n < 100 else f"s{n}", "late": {}} for n in range(120)
    ]
    source[60]["n"] = 0.5
    source[110]["more"] = [1, 2]
    await ask(source, tmp_path / "out.parquet", make_engine())
    found = pq.read_table(tmp_path / "out.parquet")
    kinds = {name: str(found.schema.field(name).type) for name in ("n", "mixed", "late", "more", "error")}
    assert kinds["n"] == "double"
    assert kinds["mixed"] == kinds["late"] == "string"
    assert kinds["more"] == "list<element: int64>"
    assert kinds["error"] == "struct<type: string, stage: string, retryable: bool, message: string>"
    assert found["mixed"].to_pylist() == [str(n) if n < 100 else f"s{n}" for n in range(120)]
    assert found["late"].to_pylist()[0] == "{}"


async def test_parquet_types_of_parsed_fields(tmp_path, make_engine):
    schema = {
        "type": "object",
        "properties": {
            "label": {"enum": ["x"]},
            "count": {"type": "integer"},
            "share": {"anyOf": [{"type": "number"}, {"type": "null"}]},
            "tags": {"type": "array", "items": {"type": "string"}},
            "inner": {"type": "object", "properties": {"yes": {"type": "boolean"}}},
            "any": {},
        },
    }
    answer = {"label": "x", "count": 1, "share": None, "tags": ["t"], "inner": {"yes": True}, "any": {"a": 1}}
    engine = make_engine(lambda text: answer if text == "text 0" else "no json")
    await ask(numbered(2), tmp_path / "out.parquet", engine, schema=schema)
    found = pq.read_table(tmp_path / "out.parquet")
    assert [str(found.schema.field(name).type) for name in answer] == [
        "string",
        "int64",
        "double",
        "list<element: string>",
        "struct<yes: bool>",
        "string",
    ]
    assert found.select(list(answer)).to_pylist()[0] == {**answer, "any": '{"a":1}'}


async def test_csv_has_flat_columns(tmp_path, make_engine):
    source = [{"text": "a", "in": {"x": 1, "y": [1]}}, {"text": "b", "in": None}]
    engine = make_engine(lambda text: EngineError('said "no",\nthen died') if text == "b" else text)
    await ask(source, tmp_path / "out.csv", engine)
    good, bad = csv.DictReader((tmp_path / "out.csv").read_text().splitlines(keepends=True))
    assert list(good) == [
        "text",
        "in.x",
        "in.y",
        "response",
        "status",
        "error.type",
        "error.stage",
        "error.retryable",
        "error.message",
        "finish_reason",
        "usage.prompt_tokens",
        "usage.completion_tokens",
        "usage.cached_tokens",
        "attempts",
        "latency_ms",
    ]
    assert (good["in.x"], good["in.y"], good["error.type"]) == ("1", "[1]", "")
    assert (bad["in.x"], bad["error.retryable"], bad["error.message"]) == ("", "false", 'said "no",\nthen died')


async def test_a_directory_of_parquet(source, tmp_path, make_engine):
    await ask(source, f"{tmp_path}/out/", make_engine())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["part-00000.parquet"]
    assert pq.read_table(tmp_path / "out")["id"].to_pylist() == list(range(300))


async def test_urls(source, tmp_path, make_engine, monkeypatch):
    monkeypatch.setenv("PENSTOCK_STATE_DIR", str(tmp_path / "state"))
    engine = make_engine(lambda text: EngineError("no") if text == "text 7" else text)
    for name in ("out.jsonl", "out.csv", "set/"):
        url = f"memory://{tmp_path.name}/{name}"
        result = await ask(source, url, engine)
        assert len(list(result.rows())) == 300
        assert (await ask(source, url, engine)).already_complete
        again = await ask(source, url, make_engine(), retry_failed=True)
        assert again.counts.ok == 300
        assert [row["response"].upper() for row in again.rows()] == [f"TEXT {n}" for n in range(300)]
    assert len(fsspec.filesystem("memory").ls(f"/{tmp_path.name}/set", detail=False)) == 1


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet", "out/"])
@pytest.mark.parametrize("form", ["in.jsonl", "in.csv"])
async def test_no_rows_give_an_empty_output(tmp_path, make_engine, name, form):
    (tmp_path / form).write_text("id,text\n" if form == "in.csv" else "")
    result = await ask(tmp_path / form, f"{tmp_path}/{name}", make_engine())
    assert (result.counts.rows, list(result.rows())) == (0, [])
    if name == "out.parquet":
        names = pq.read_schema(tmp_path / name).names
        assert names[-7:] == ["response", "status", "error", "finish_reason", "usage", "attempts", "latency_ms"]
        assert names[:-7] == (["id", "text"] if form == "in.csv" else [])
    if name == "out.csv":
        assert (tmp_path / name).read_text().startswith("id,text," if form == "in.csv" else "response,")


# Going on
async def test_a_complete_job_is_left_alone(source, tmp_path, make_engine):
    await ask(source, tmp_path / "out.jsonl", make_engine())
    before = (tmp_path / "out.jsonl").stat()
    engine = make_engine()
    result = await ask(source, tmp_path / "out.jsonl", engine)
    assert (result.already_complete, result.counts.rows, engine.starts) == (True, 300, 0)
    assert (tmp_path / "out.jsonl").stat() == before


@pytest.mark.parametrize("order", ["input", "done"])
@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet", "out.csv"])
async def test_an_interrupted_job_goes_on(source, tmp_path, make_engine, name, order):
    whole = await ask(source, tmp_path / f"whole.{name}", make_engine(), order=order)
    asked = []
    for after in (5, 90, 130):
        engine = make_engine()
        await interrupted(source, tmp_path / name, engine, after, order=order)
        asked += engine.asked
        assert not (tmp_path / name).exists()
    engine = make_engine()
    result = await ask(source, tmp_path / name, engine, order=order)
    asked += engine.asked
    again = 3 * engine.most  # at most those that were in flight are asked again
    assert len(set(asked)) == 300
    assert len(asked) <= 300 + again
    assert result.counts.resumed + len(engine.asked) == 300
    found, expected = list(result.rows()), list(whole.rows())
    if order == "done":
        found.sort(key=lambda row: int(row["id"]))
        expected.sort(key=lambda row: int(row["id"]))
    assert settled(found) == settled(expected)


async def test_streams_are_compared_as_they_come_again(tmp_path, make_engine):
    output = tmp_path / "out.jsonl"
    await interrupted(iter(numbered(200)), output, make_engine(), 150)
    other = numbered(200)
    other[3]["text"] = "changed"
    engine = make_engine()
    with pytest.raises(JobMismatchError, match="not the one this job began with"):
        await ask(iter(other), output, engine)
    with pytest.raises(JobMismatchError, match="not the one this job began with"):
        await ask(iter(numbered(20)), output, make_engine())
    result = await ask(iter(numbered(200)), output, make_engine())
    assert [row["response"] for row in result.rows()] == [f"TEXT {n}" for n in range(200)]
    assert result.counts.resumed >= 120


async def test_another_job_is_refused_with_what_differs(source, tmp_path, make_engine):
    output = tmp_path / "out.jsonl"
    await ask(source, output, make_engine())
    with pytest.raises(JobMismatchError) as caught:
        await ask(source, output, make_engine(), prompt="Now: {text}", max_tokens=5)
    assert caught.value.differences == {"prompt": ("{text}", "Now: {text}"), "max_tokens": (None, 5)}
    assert "journaled" in str(caught.value)
    source.write_text('{"text": "other"}\n')
    with pytest.raises(JobMismatchError, match="input digest"):
        await ask(source, output, make_engine())
    result = await ask(source, output, make_engine(), fresh=True)
    assert [row["response"] for row in result.rows()] == ["OTHER"]


async def test_a_job_that_did_nothing_binds_to_nothing(source, tmp_path, make_engine):
    engine = make_engine()

    async def start():
        raise EngineError("no such model")

    engine.start = start
    with pytest.raises(EngineError, match="no such model"):
        await ask(source, tmp_path / "out.jsonl", engine)
    result = await ask(source, tmp_path / "out.jsonl", make_engine(), prompt="Now: {text}")
    assert result.counts.ok == 300


async def test_what_does_not_change_results_may_change(source, tmp_path, make_engine):
    output = tmp_path / "out.jsonl"
    await interrupted(source, output, make_engine(), 50)
    result = await ask(source, output, make_engine(), max_attempts=7, on_error="fail", progress=None)
    assert result.counts.rows == 300


async def test_a_failing_row_that_ended_the_job_is_tried_again(source, tmp_path, make_engine):
    output = tmp_path / "out.jsonl"
    bad = make_engine(lambda text: EngineError("no") if text == "text 200" else text.upper())
    with pytest.raises(JobError, match="row 200"):
        await ask(source, output, bad, on_error="fail")
    engine = make_engine()
    result = await ask(source, output, engine, on_error="fail")
    assert result.counts.ok == 300
    assert result.counts.resumed >= 190
    assert [row["response"] for row in result.rows()] == [f"TEXT {n}" for n in range(300)]


async def test_a_job_whose_engine_failed_for_good_goes_on(source, tmp_path, make_engine):
    output = tmp_path / "out.jsonl"
    seen = []

    def reply(text):
        seen.append(text)
        return EngineDeadError("died") if len(seen) > 100 else text.upper()

    with pytest.raises(JobError):
        await ask(source, output, make_engine(reply), max_attempts=50)
    result = await ask(source, output, make_engine())
    assert result.counts.resumed >= 90
    assert [row["response"] for row in result.rows()] == [f"TEXT {n}" for n in range(300)]


# Retrying
@pytest.mark.parametrize("order", ["input", "done"])
@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet", "out.csv", "out/"])
async def test_retry_failed_runs_the_error_rows_alone(source, tmp_path, make_engine, name, order):
    output = f"{tmp_path}/{name}"
    failing = {f"text {n}" for n in (0, 3, 4, 77, 150, 299)}
    engine = make_engine(lambda text: EngineTimeoutError("late") if text in failing else text.upper())
    first = await ask(source, output, engine, order=order)
    assert first.counts.errors == {"engine_timeout": 6}
    for left in ({"text 3", "text 150"}, {"text 150"}, set()):
        engine = make_engine(lambda text, left=left: EngineError("no") if text in left else text.upper())
        result = await ask(source, output, engine, order=order, retry_failed=True)
        assert set(engine.asked) == failing
        assert result.counts.failed == len(left)
        failing = left
        found = list(result.rows())
        if order == "done":
            found.sort(key=lambda row: int(row["id"]))
        assert [int(row["id"]) for row in found] == list(range(300))
        assert [row["response"] or None for row in found] == [
            None if f"text {n}" in left else f"TEXT {n}" for n in range(300)
        ]
    engine = make_engine()
    assert (await ask(source, output, engine, order=order, retry_failed=True)).already_complete
    assert engine.starts == 0


@pytest.mark.parametrize("order", ["input", "done"])
async def test_retry_failed_of_an_interrupted_job(source, tmp_path, make_engine, order):
    output = tmp_path / "out.jsonl"
    bad = make_engine(lambda text: EngineError("no") if text.endswith("5") else text.upper())
    await interrupted(source, output, bad, 170, order=order)
    engine = make_engine()
    await interrupted(source, output, engine, 20, order=order, retry_failed=True)
    again = make_engine()
    result = await ask(source, output, again, order=order)
    assert result.counts.ok == 300
    assert sorted(row["id"] for row in result.rows()) == list(range(300))
    if order == "input":
        assert [row["response"] for row in result.rows()] == [f"TEXT {n}" for n in range(300)]


async def test_done_order_keeps_old_rows_where_they_were(source, tmp_path, make_engine):
    output = tmp_path / "out.jsonl"
    bad = make_engine(lambda text: EngineError("no") if text == "text 9" else text.upper())
    await ask(source, output, bad, order="done")
    before = [row["id"] for row in lines(output) if row["id"] != 9]
    await ask(source, output, make_engine(), order="done", retry_failed=True)
    assert [row["id"] for row in lines(output)] == [*before, 9]


# What is in the way
async def test_an_output_of_other_origin_is_not_touched(source, tmp_path, make_engine):
    output = tmp_path / "out.jsonl"
    output.write_text("precious\n")
    with pytest.raises(OutputError, match="--fresh"):
        await ask(source, output, make_engine())
    assert output.read_text() == "precious\n"
    assert not (tmp_path / "out.jsonl.penstock").exists()
    await ask(source, output, make_engine(), fresh=True)
    assert len(lines(output)) == 300


async def test_a_complete_job_whose_output_is_gone_says_so(source, tmp_path, make_engine):
    await ask(source, tmp_path / "out.jsonl", make_engine())
    (tmp_path / "out.jsonl").unlink()
    with pytest.raises(JobError, match="is gone; --fresh"):
        await ask(source, tmp_path / "out.jsonl", make_engine())


async def test_one_process_at_a_time(source, tmp_path, make_engine):
    engine = make_engine()
    engine.gate, engine.held = asyncio.Event(), {"text 0"}
    job = asyncio.create_task(ask(source, tmp_path / "out.jsonl", engine))
    await engine.was_asked(1)
    with pytest.raises(JobError, match="another process is running this job"):
        await ask(source, tmp_path / "out.jsonl", make_engine())
    engine.gate.set()
    assert (await job).counts.rows == 300


@pytest.mark.parametrize(
    ("output", "message"),
    [("out.txt", "unknown extension; known are .jsonl"), ("absent/out.jsonl", "there is no directory")],
)
async def test_bad_outputs_are_found_before_the_engine_starts(source, tmp_path, make_engine, output, message):
    engine = make_engine()
    with pytest.raises(ConfigError, match=message):
        await ask(source, f"{tmp_path}/{output}", engine)
    assert engine.starts == 0


async def test_an_output_inside_the_input_is_refused(tmp_path, make_engine):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(ConfigError, match="part of the input"):
        await ask(f"{tmp_path}/*.jsonl", tmp_path / "a.jsonl", make_engine(), fresh=True)


async def test_values_that_json_does_not_know(tmp_path, make_engine):
    source = [
        {"text": "a", "more": {("x", 1): b"\x00", 2: object}},
        {"text": "lone \ud800 surrogate"},
        {"text": "b", "more": "lone \ud800 surrogate"},
    ]
    result = await ask(source, tmp_path / "out.jsonl", make_engine())
    first, second, third = result.rows()
    assert first["more"] == {"('x', 1)": "AA==", "2": "<class 'object'>"}
    assert (second["status"], second["error"]["stage"]) == ("error", "prompt")
    assert third["more"] == "lone ? surrogate"


async def test_a_part_that_fails_after_the_last_row_is_not_forgotten(source, tmp_path, make_engine, monkeypatch):
    output = tmp_path / "out.jsonl"

    def finish(self):
        self.abandon()
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("penstock.batch.writers.JsonlWriter.finish", finish)
        with pytest.raises(OutputError, match="Input/output error"):
            await ask(source, output, make_engine(), limit=40)
    assert not output.exists()
    engine = make_engine()
    assert (await ask(source, output, engine, limit=40)).counts.resumed == 40
    assert not engine.asked


async def test_damaged_input_ends_the_job_but_keeps_what_is_done(tmp_path, make_engine):
    def generate(broken):
        yield from numbered(100)
        if broken:
            raise OSError("connection lost")

    with pytest.raises(InputError, match="connection lost"):
        await ask(generate(True), tmp_path / "out.jsonl", make_engine())
    result = await ask(generate(False), tmp_path / "out.jsonl", make_engine())
    assert [row["id"] for row in result.rows()] == list(range(100))


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
async def test_a_full_disk_stops_the_job_which_goes_on_later(source, tmp_path, make_engine, monkeypatch, call, name):
    output = tmp_path / name
    whole = await ask(source, tmp_path / f"whole-{name}", make_engine())
    await interrupted(source, output, make_engine(), 60)
    real = getattr(os, call)
    left = [1]

    def failing(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **kwargs)

    engine = make_engine()
    with monkeypatch.context() as patch:
        patch.setattr(f"penstock.batch.journal.os.{call}", failing)
        if call == "write":
            patch.setattr("penstock.batch.journal.Journal.__init__.__defaults__", (failing,))
        with pytest.raises(OutputError, match="No space left on device"):
            await ask(source, output, engine)
    assert not engine.alive
    result = await ask(source, output, make_engine())
    assert settled(result.rows()) == settled(whole.rows())


# What a job is
async def test_every_option_comes_back_from_the_manifest_as_it_was(source, tmp_path, make_engine):
    options = {
        "system": "s", "schema": {"enum": ["a"]}, "max_tokens": 5, "min_tokens": 1, "temperature": 0.5,
        "top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 1, "stop": ["zz"], "stop_token_ids": (7,),
        "ignore_eos": True, "presence_penalty": 0.1, "frequency_penalty": 0.1, "repetition_penalty": 1.5,
        "limit": 9, "order": "done", "on_error": "keep", "max_attempts": 2, "result_prefix": "out_",
    }  # fmt: skip
    assert (await ask(source, tmp_path / "out.jsonl", make_engine(), **options)).counts.rows == 9
    assert (await ask(source, tmp_path / "out.jsonl", make_engine(), **options)).already_complete


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
async def test_a_complete_job_knows_its_stream(tmp_path, make_engine, name):
    output = tmp_path / name
    bad = make_engine(lambda text: EngineError("no") if text == "text 9" else text.upper())
    await ask(iter(numbered(50)), output, bad, prompt="{text}")
    other = numbered(50)
    other[30]["text"] = "changed"
    for retry_failed in (False, True):
        with pytest.raises(JobMismatchError, match="its rows differ"):
            await ask(iter(other), output, make_engine(), retry_failed=retry_failed)
        with pytest.raises(JobMismatchError):
            await ask(iter(numbered(49)), output, make_engine())
        if not retry_failed:
            assert (await ask(iter(numbered(50)), output, make_engine())).already_complete


def test_options_of_the_engine_are_part_of_the_job_unless_they_only_cost_time(source, tmp_path):
    def ask_simulated(**options):
        return penstock.run(
            source, tmp_path / "out.jsonl", model="simulated", prompt="{text}", engine_kwargs=options, progress=False
        )

    ask_simulated(output_tokens=3)
    assert ask_simulated(output_tokens=3, max_num_seqs=2, start_ms=1).already_complete
    with pytest.raises(JobMismatchError, match="engine options"):
        ask_simulated(output_tokens=4)


async def test_an_edited_output_is_not_retried(source, tmp_path, make_engine):
    output = tmp_path / "out.jsonl"
    bad = make_engine(lambda text: EngineError("no") if text == "text 9" else text.upper())
    await ask(source, output, bad)
    whole = output.read_bytes()
    output.write_bytes(whole.split(b"\n", 1)[1])
    with pytest.raises(OutputError, match="was changed since"):
        await ask(source, output, make_engine(), retry_failed=True)


async def test_an_output_that_holds_its_input_or_lies_in_it_is_refused(tmp_path, make_engine):
    folder = tmp_path / "data"
    folder.mkdir()
    pq.write_table(pa.table({"text": ["a"]}), folder / "part-7.parquet")
    (tmp_path / "link").symlink_to(folder)
    for source, output in ((folder, "link/"), (folder / "part-7.parquet", "data/"), (folder, "data/out.parquet")):
        with pytest.raises(ConfigError, match="part of the input"):
            await ask(source, f"{tmp_path}/{output}", make_engine(), fresh=True)
    assert os.listdir(folder) == ["part-7.parquet"]


async def test_columns_that_parquet_cannot_hold_are_refused_at_once(tmp_path, make_engine):
    engine = make_engine()
    table = pa.table({"text": ["a"], "o": pa.array([{}], pa.struct([]))})
    with pytest.raises(OutputError, match="cannot be written as Parquet"):
        await ask(table, tmp_path / "out.parquet", engine)
    assert engine.starts == 0


async def test_files_that_disagree_on_a_type_become_text(tmp_path, make_engine):
    folder = tmp_path / "data"
    folder.mkdir()
    pq.write_table(pa.table({"text": ["a"], "y": [1]}), folder / "a.parquet")
    pq.write_table(pa.table({"text": ["b"], "y": ["z"]}), folder / "b.parquet")
    result = await ask(folder, tmp_path / "out.parquet", make_engine())
    assert result.table()["y"].to_pylist() == ["1", "z"]


async def test_columns_that_only_some_rows_have(make_engine):
    rows = [{"a": 1}, {"a": 1, "b": 2}]
    for source in (rows, iter(rows)):
        found = (await penstock.arun(source, engine=make_engine(), prompt="{b}", progress=False)).rows()
        assert [row["status"] for row in found] == ["error", "ok"]


async def test_long_fields_of_a_csv_can_be_read_back(tmp_path, make_engine):
    result = await ask([{"text": "x" * 200_000}], tmp_path / "out.csv", make_engine())
    csv.field_size_limit(131072)
    assert len(next(result.rows())["response"]) == 200_000


async def test_flat_result_columns_are_taken_in_csv(tmp_path, make_engine):
    source = [{"text": "a", "error.type": "mine"}]
    with pytest.raises(ConfigError, match=r"error\.type"):
        await ask(source, tmp_path / "out.csv", make_engine())
    assert (await ask(source, tmp_path / "out.jsonl", make_engine())).counts.ok == 1


@pytest.mark.parametrize("options", [{"model": "demo"}, {"engine_kwargs": {}}])
async def test_an_engine_object_brings_its_own_model(make_engine, options):
    with pytest.raises(ConfigError, match="engine object"):
        await penstock.arun(numbered(1), engine=make_engine(), prompt="{text}", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": 5}, {"schema": 5}, {"stop": None}, {"limit": "5"}, {"engine_kwargs": ["a"]}, {"seed": 1 << 64},
        {"temperature": float("nan")}, {"temperature": 9.0}, {"top_p": 0.0}, {"output": ""},
    ],
)  # fmt: skip
async def test_options_of_a_wrong_type_or_size_are_refused(tmp_path, options):
    with pytest.raises(ConfigError):
        await penstock.arun(numbered(1), **{"prompt": "{text}", "output": tmp_path / "o.jsonl", **options})
    assert not list(tmp_path.iterdir())


def test_the_callers_signal_handlers_are_kept():
    def mine(number, frame):
        pass

    before = signal.signal(signal.SIGTERM, mine)
    try:
        penstock.run(numbered(1), model="simulated", prompt="{text}", progress=False)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user"},
        {"role": "zzz", "content": "a"},
        {"role": "user", "content": 5},
        {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]},
    ],
)
async def test_messages_that_no_template_can_read(make_engine, message):
    result = await penstock.arun([{"m": [message]}], engine=make_engine(), messages="m", progress=False)
    assert [row["error"]["stage"] for row in result.rows()] == ["prompt"]


def test_ctrl_c_beside_a_running_loop_drains_the_job(tmp_path, monkeypatch):
    join = threading.Thread.join
    joins: list[float | None] = []

    def interrupted_once(self, timeout=None):
        join(self, 0.05 if timeout else None)
        if self.name == "penstock-job" and not joins:
            joins.append(timeout)
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "join", interrupted_once)

    async def main():
        options = {"time_per_token_ms": 1000, "start_ms": 0}
        penstock.run(numbered(1), model="simulated", engine_kwargs=options, prompt="{text}", progress=False)

    monkeypatch.setattr("penstock.batch.flow.DRAIN_SECONDS", 0.05)
    with pytest.raises(penstock.batch.JobInterrupted):
        asyncio.run(main())


@pytest.mark.parametrize(("kind", "message"), [("LazyFrame", r"\.collect\(\)"), ("Series", "no data set")])
async def test_things_that_are_nearly_data_sets(kind, message):
    library = pytest.importorskip("polars" if kind == "LazyFrame" else "pandas")
    with pytest.raises(InputError, match=message):
        await penstock.arun(getattr(library, kind)({"a": [1]}), model="simulated", prompt="{a}")


async def test_a_directory_whose_name_ends_in_a_dash(source, tmp_path, make_engine):
    (tmp_path / "labels-").mkdir()
    assert len(list((await ask(source, tmp_path / "labels-", make_engine())).rows())) == 300
