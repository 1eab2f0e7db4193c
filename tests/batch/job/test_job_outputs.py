"""What jobs write, in each form of output."""

import asyncio
import csv
import threading

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import penstock
from jobs import ask, lines, numbered
from penstock.batch.read.text import CSV_LIMIT, JsonLines
from penstock.batch.write.text import dicts_of
from penstock.errors import (
    ConfigError,
    EngineError,
    JobError,
    OutputError,
)

pytestmark = pytest.mark.usefixtures("small_parts")


async def test_jsonl(source, tmp_path, make_engine):
    result = await ask(source, tmp_path / "out.jsonl", make_engine())
    found = lines(tmp_path / "out.jsonl")
    assert [row["response"] for row in found] == [f"TEXT {n}" for n in range(300)]
    assert list(result.rows()) == found
    assert result.counts.rows == 300
    left = sorted(path.name for path in (tmp_path / "out.jsonl.penstock").iterdir())
    assert left == ["lock", "manifest.json", "parts-0.jsonl", "status.json"]


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet", "out/"])
async def test_a_result_whose_output_is_gone_says_so(tmp_path, make_engine, name):
    result = await ask(numbered(2), f"{tmp_path}/{name}", make_engine())
    (tmp_path / name).rename(tmp_path / "elsewhere")
    for read in (result.table, lambda: list(result.rows())):
        with pytest.raises(OutputError, match=f"{name} is no longer there"):
            read()


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
        {"text": f"text {n}", "n": n, "mixed": n if n < 100 else f"s{n}", "late": {}}
        for n in range(120)
    ]
    source[60]["n"] = 0.5
    source[110]["more"] = [1, 2]
    await ask(source, tmp_path / "out.parquet", make_engine())
    found = pq.read_table(tmp_path / "out.parquet")
    kinds = {
        name: str(found.schema.field(name).type) for name in ("n", "mixed", "late", "more", "error")
    }
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
            "stars": {"enum": [1, 2, None]},
            "weight": {"enum": [1, 0.5]},
            "sure": {"const": True},
            "several": {"enum": [1, "x"]},
        },
    }
    answer = {
        "label": "x",
        "count": 1,
        "share": None,
        "tags": ["t"],
        "inner": {"yes": True},
        "any": {"a": 1},
        "stars": 2,
        "weight": 0.5,
        "sure": True,
        "several": 1,
    }
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
        "int64",
        "double",
        "bool",
        "string",
    ]
    expected = {**answer, "any": '{"a":1}', "several": "1"}
    assert found.select(list(answer)).to_pylist()[0] == expected


async def test_csv_has_flat_columns(tmp_path, make_engine):
    source = [{"text": 'an "a",\nthen b', "in": {"x": 1, "y": [1]}}, {"text": "b", "in": None}]
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
    assert good["text"] == good["response"] == 'an "a",\nthen b'
    assert (bad["in.x"], bad["error.retryable"], bad["error.message"]) == (
        "",
        "false",
        'said "no", then died',
    )


async def test_a_directory_of_parquet(source, tmp_path, make_engine):
    await ask(source, f"{tmp_path}/out/", make_engine(), fresh=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["part-00000.parquet"]
    assert pq.read_table(tmp_path / "out")["id"].to_pylist() == list(range(300))


async def test_the_root_directory_is_no_output(make_engine):
    with pytest.raises(ConfigError, match="nor the root directory"):
        await ask([{"text": "a"}], "/", make_engine())


@pytest.mark.parametrize("remote", [False, True])
async def test_a_fresh_job_leaves_the_parquet_of_others(tmp_path, make_engine, monkeypatch, remote):
    monkeypatch.setenv("PENSTOCK_STATE_DIR", str(tmp_path / "state"))
    folder = f"memory://{tmp_path.name}/" if remote else f"{tmp_path}/out/"
    fs, path = fsspec.core.url_to_fs(folder)
    fs.makedirs(path, exist_ok=True)
    other = f"{path.rstrip('/')}/part-00000-0badcafe.snappy.parquet"
    fs.pipe_file(other, b"somebody's")
    engine = make_engine()
    with pytest.raises(ConfigError, match=r"holds part-00000-0badcafe.* give another directory"):
        await ask([{"text": "a"}], folder, engine, fresh=True)
    assert (engine.starts, fs.cat_file(other)) == (0, b"somebody's")
    fs.rm_file(other)
    for _ in range(2):
        assert (await ask([{"text": "a"}], folder, engine, fresh=True)).counts.ok == 1


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
        assert [row["response"].upper() for row in again.rows()] == [
            f"TEXT {n}" for n in range(300)
        ]
    assert len(fsspec.filesystem("memory").ls(f"/{tmp_path.name}/set", detail=False)) == 1


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet", "out/"])
@pytest.mark.parametrize("form", ["in.jsonl", "in.csv"])
async def test_no_rows_give_an_empty_output(tmp_path, make_engine, name, form):
    (tmp_path / form).write_text("id,text\n" if form == "in.csv" else "")
    result = await ask(tmp_path / form, f"{tmp_path}/{name}", make_engine())
    assert (result.counts.rows, list(result.rows())) == (0, [])
    if name == "out.parquet":
        names = pq.read_schema(tmp_path / name).names
        assert names[-7:] == [
            "response",
            "status",
            "error",
            "finish_reason",
            "usage",
            "attempts",
            "latency_ms",
        ]
        assert names[:-7] == (["id", "text"] if form == "in.csv" else [])
    if name == "out.csv":
        assert (
            (tmp_path / name)
            .read_text()
            .startswith("id,text," if form == "in.csv" else "response,")
        )


async def test_values_that_json_does_not_know(tmp_path, make_engine):
    source = [
        {"text": "a", "more": {("x", 1): b"\x00", 2: object}},
        {"text": "lone \ud800 surrogate"},
        {"text": "b", "more": "lone \ud800 surrogate"},
    ]
    result = await ask(source, tmp_path / "out.jsonl", make_engine())
    first, second, third = result.rows()
    assert first["more"] == {'["x",1]': "AA==", "2": "<class 'object'>"}
    assert (second["status"], second["error"]["stage"]) == ("error", "prompt")
    assert third["more"] == "lone \\ud800 surrogate"


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
        found = (
            await penstock.arun(source, engine=make_engine(), prompt="{b}", progress=False)
        ).rows()
        assert [row["status"] for row in found] == ["error", "ok"]


async def test_a_search_for_a_column_leaves_the_event_loop_free(tmp_path, make_engine, monkeypatch):
    (tmp_path / "in.jsonl").write_text('{"a": 1}\n')
    loop, went_on = asyncio.get_running_loop(), threading.Event()

    def search(source, needed):
        loop.call_soon_threadsafe(went_on.set)
        assert went_on.wait(30)
        return source.columns

    monkeypatch.setattr(JsonLines, "every_column", search)
    source = tmp_path / "in.jsonl"
    with pytest.raises(ConfigError, match="no column 'b'"):
        await penstock.arun(source, engine=make_engine(), prompt="{b}", progress=False)


async def test_a_file_in_the_place_of_a_directory(source, tmp_path, make_engine):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ConfigError, match="is to be a directory, and a file stands there"):
        await ask(source, f"{tmp_path}/out/", make_engine(), fresh=True)
    assert (tmp_path / "out").read_text() == "mine"


async def test_long_fields_of_a_csv_can_be_read_back(tmp_path, make_engine):
    result = await ask([{"text": "x" * 200_000}], tmp_path / "out.csv", make_engine())
    csv.field_size_limit(131072)
    assert len(next(result.rows())["response"]) == 200_000


def test_nobody_reads_csv_while_the_limit_of_fields_is_another():
    held = []

    def written():
        for line in ("a\n", "1\n", "2\n"):
            held.append(CSV_LIMIT.locked())
            yield line

    limit = csv.field_size_limit()
    rows = dicts_of(written())
    assert next(rows) == {"a": "1"}
    assert not CSV_LIMIT.locked()
    assert list(rows) == [{"a": "2"}]
    assert held == [True] * 3
    assert csv.field_size_limit() == limit


async def test_flat_result_columns_are_taken_in_csv(tmp_path, make_engine):
    source = [{"text": "a", "error.type": "mine"}]
    with pytest.raises(ConfigError, match=r"error\.type"):
        await ask(source, tmp_path / "out.csv", make_engine())
    assert (await ask(source, tmp_path / "out.jsonl", make_engine())).counts.ok == 1


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
@pytest.mark.parametrize("depth", [20, 100, 250])
async def test_a_deep_value_of_one_row_does_not_cost_the_others(tmp_path, make_engine, name, depth):
    deep: object = {"é": 1}
    for number in range(depth):
        deep = [deep] if number % 2 else {"a": deep}
    rows = [{"text": "a", "v": deep}, {"text": "b", "v": None}]
    result = await ask(rows, tmp_path / name, make_engine())
    assert (result.counts.ok, result.counts.failed) == (2, 0)
    assert [row["text"] for row in result.rows()] == ["a", "b"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dead_letter": "out/failed.jsonl"}, "dead_letter: .* lies in, the output"),
        ({"report": "out/job.html"}, "report: .* lies in, the output"),
        ({"cache": "out"}, "cache: .* lies in, the output"),
        ({"cache": "out.penstock/answers"}, "cache: .* lies in, the job's state"),
        ({"dead_letter": "out.penstock/f.jsonl"}, "dead_letter: .* lies in, the job's state"),
        ({"dead_letter": "a\0.jsonl"}, "dead_letter: a path holds no zero byte"),
        ({"output": "a\0.jsonl"}, "output: a path holds no zero byte"),
    ],
)
async def test_what_a_job_has_beside_its_output_lies_apart(
    tmp_path, make_engine, monkeypatch, options, message
):
    """In the output it would stand in the way at the end, in the state it would be swept."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out.penstock").mkdir()
    engine = make_engine()
    with pytest.raises(ConfigError, match=message):
        await ask(numbered(1), **{"output": "out/", "engine": engine, **options})
    assert engine.starts == 0


async def test_files_of_others_in_the_place_of_the_state_stay(tmp_path, make_engine):
    output = tmp_path / "out.jsonl"
    notes = tmp_path / "out.jsonl.penstock" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    with pytest.raises(JobError, match=r"holds notes\.txt and no manifest\.json.*move it away"):
        await ask(numbered(1), output, make_engine())
    assert notes.read_text() == "mine"
