"""Values in jobs: from frames and objects, through processors, over resumes, into each form of
output.
"""

import asyncio
import csv
import dataclasses
import datetime
import decimal
import json

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import penstock
from jobs import ask, interrupted, lines
from penstock.batch.pipeline.configs import ProcessorConfig
from penstock.batch.pipeline.processor import Processor
from penstock.batch.write.tables import block
from penstock.errors import EngineError, InputError, OutputError

pytestmark = pytest.mark.usefixtures("small_parts")

AT = datetime.datetime(2024, 1, 2, 3, 4, 5, 6)
NS = np.datetime64("2024-01-02T03:04:05.000000006")


def circle():
    made: dict = {}
    made["again"] = made
    return made


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
async def test_a_row_that_cannot_be_stored_is_an_error_row(tmp_path, make_engine, name):
    source = [
        {"text": "a", "more": 1},
        {"text": "b", "more": object()},
        {"text": "c", "more": {"in": (circle(),)}},
    ]
    engine = make_engine()
    result = await ask(source, tmp_path / name, engine)
    assert engine.asked == ["a"]
    assert result.counts.errors == {"invalid_request_error": 1, "input_error": 1}
    good, *bad = result.rows()
    assert (good["text"], int(good["more"])) == ("a", 1)
    assert [(row["text"] or None, row["more"] or None) for row in bad] == [
        ("b", None),
        (None, None),
    ]
    messages = [
        row["error.message"] if name == "out.csv" else row["error"]["message"] for row in bad
    ]
    assert "column 'more' cannot be stored: a value of type object" in messages[0]
    assert "nested" in messages[1]


async def test_rows_in_memory_keep_their_objects(make_engine):
    odd = object()
    result = await penstock.arun(
        [{"text": "a", "odd": odd}], engine=make_engine(), prompt="{text}", progress=False
    )
    assert next(result.rows())["odd"] is odd
    with pytest.raises(OutputError, match="column 'odd' cannot be stored"):
        result.table()


async def test_names_of_columns_are_text(tmp_path, make_engine):
    source = [{"text": "a", 1: "x"}, {"text": "b", 1: "x", "1": "y"}]
    result = await ask(source, tmp_path / "out.parquet", make_engine(), prompt="{1}")
    first, second = result.rows()
    assert (first["1"], first["response"]) == ("x", "X")
    assert "two columns have the same name" in second["error"]["message"]


async def test_polars_objects_are_refused_by_name(make_engine):
    frame = pl.DataFrame({"text": ["a"], "odd": pl.Series([object()], dtype=pl.Object)})
    with pytest.raises(InputError, match="column 'odd' holds Python objects"):
        await ask(frame, None, make_engine())
    named = pl.DataFrame(
        {"text": ["a"], "s": [{"Object": 1}], "e": pl.Series(["Object"], dtype=pl.Enum(["Object"]))}
    )
    (row,) = (await ask(named, None, make_engine())).rows()
    assert (row["s"], row["e"]) == ({"Object": 1}, "Object")


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
async def test_frames(tmp_path, make_engine, name):
    pandas = pd.DataFrame(
        {
            "text": ["a", "b"],
            "missing": [1.5, float("nan")],
            "whole": pd.array([1, None], "Int64"),
            "mixed": [{"b", "a"}, pd.NA],
            "bytes": pd.Series([b"\x00", "x"], dtype=object),
            "days": pd.Series([AT.date(), AT], dtype=object),
            "big": pd.Series([2**53 + 1, 0.5], dtype=object),
            "period": pd.period_range("2024-01", periods=2, freq="M"),
            "between": pd.interval_range(0, 2),
            "cut": pd.cut([0, 10], [-1, 5, 11]),
            "kind": pd.Categorical(["x", "y"]),
            "complex": [1 + 2j, 3j],
            "sparse": pd.arrays.SparseArray([0, 7]),
            "matrix": [np.ones((2, 2)), np.zeros((0, 2))],
            "fine": pd.to_datetime(["2024-01-02T03:04:05.000000006", None]),
            7: [1, 2],
        }
    )
    result = await ask(pandas, tmp_path / name, make_engine())
    expected = {
        "missing": [1.5, None],
        "whole": [1, None],
        "mixed": [["a", "b"], None],
        "bytes": ["AA==", "x"],
        "days": ["2024-01-02", "2024-01-02T03:04:05.000006"],
        "big": ["9007199254740993", "0.5"],
        "period": ["2024-01", "2024-02"],
        "between": ["(0, 1]", "(1, 2]"],
        "cut": ["(-1, 5]", "(5, 11]"],
        "kind": ["x", "y"],
        "complex": ["1+2j", "3j"],
        "sparse": [0, 7],
        "matrix": [[[1.0, 1.0], [1.0, 1.0]], []],
        "7": [1, 2],
    }
    rows = list(result.rows())
    assert {column: [row[column] for row in rows] for column in expected} == expected
    assert str(rows[0]["fine"]).replace(" ", "T") == str(NS)
    with pytest.raises(InputError, match="two columns have the same name, 'a'"):
        await ask(pd.DataFrame([[1, 2]], columns=["a", "a"]), None, make_engine())

    polars = pl.DataFrame(
        {"text": ["a"], "wide": pl.Series([2**100], dtype=pl.Int128), "time": [datetime.time(1)]}
    )
    (row,) = (await ask(polars, tmp_path / f"polars-{name}", make_engine())).rows()
    assert row["wide"] in (2**100, str(2**100))
    assert str(row["time"]) == "01:00:00"


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
async def test_processors_give_any_values(tmp_path, name):
    odd = object()
    made = {
        "id": AT,
        "finer": NS,
        "decimal": decimal.Decimal("1.10"),
        "big": 2**80,
        "nan": [float("nan")],
        "key": {1: "x"},
        "text": "lone \ud800",
    }

    def postprocess(row):
        return made if row["id"] != 1 else {"id": odd}

    processor = Processor(
        ProcessorConfig(should_continue_on_error=True), [], postprocess=postprocess
    )
    source = [{"id": 0}, {"id": 1}, {"id": 2, "image": odd}]
    result = await penstock.arun(source, tmp_path / name, processor=processor, progress=False)
    good, bad, other = result.rows()
    assert result.counts.errors == {"user_code_error": 1}
    assert "column 'id' cannot be stored" in bad["error"]["message"]
    for row in (good, other):
        assert str(row["finer"]).replace(" ", "T") == str(NS)
        assert decimal.Decimal(row["decimal"]) == made["decimal"]
        assert int(row["big"]) == 2**80
        assert str(row["nan"][0]).lower() == "nan"
        assert (row["key"], row["text"]) == ({"1": "x"}, "lone \\ud800")
        assert str(row["id"]).replace(" ", "T") == AT.isoformat()


def test_an_error_row_of_a_processor_says_what_was_left_out(tmp_path, capsys):
    @dataclasses.dataclass
    class Image:
        name: str
        pixels: object

    def postprocess(row):
        raise ValueError("no")

    processor = Processor(
        ProcessorConfig(should_continue_on_error=True), [], postprocess=postprocess
    )
    source = [{"id": 1, "image": Image("a", object())}]
    for output in (tmp_path / "out.jsonl", tmp_path / "out.parquet"):
        (row,) = penstock.run(source, output, processor=processor, progress=False).rows()
        assert (row["id"], row["image"]) == (1, None)
        assert "ValueError: no; column 'image' cannot be stored" in row["error"]["message"]


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
async def test_values_of_two_runs_meet(tmp_path, make_engine, name):
    """The first run writes parts of integers, the second parts of something else."""
    big = 2**53 + 1
    source = [
        {"text": f"{n}", "n": big + n if n < 80 else 0.5, "at": AT if n < 80 else NS}
        for n in range(160)
    ]
    engine = make_engine()
    engine.held = {str(n) for n in range(80, 160)}
    engine.gate = asyncio.Event()
    await interrupted(iter(source), tmp_path / name, engine, 82)
    result = await ask(
        iter(source),
        tmp_path / name,
        make_engine(lambda text: EngineError("no") if text == "7" else text),
    )
    assert result.counts.resumed >= 80

    def check():
        rows = list(result.rows())
        assert [row["text"] for row in rows] == [str(n) for n in range(160)]
        assert [decimal.Decimal(row["n"]) for row in rows] == [
            decimal.Decimal(big + n) if n < 80 else decimal.Decimal("0.5") for n in range(160)
        ]
        stamps = [str(row["at"]).replace(" ", "T") for row in rows]
        assert stamps == [AT.isoformat()] * 80 + [str(NS)] * 80

    check()
    result = await ask(iter(source), tmp_path / name, make_engine(), retry_failed=True)
    assert result.counts.errors == {}
    check()


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
async def test_objects_with_other_keys_in_each_row_stay_json(tmp_path, make_engine, name):
    source = [
        {"text": "a", "counts": {f"user {number}": number}, "few": {"one": number}}
        for number in range(1200)
    ]
    await ask(iter(source), tmp_path / name, make_engine())
    if name == "out.csv":
        written = list(csv.DictReader((tmp_path / name).read_text().splitlines(keepends=True)))
        assert [row["few.one"] for row in written] == [str(number) for number in range(1200)]
    else:
        written = pq.read_table(tmp_path / name).to_pylist()
        assert [row["few"] for row in written] == [{"one": number} for number in range(1200)]
    found = [json.loads(row["counts"]) for row in written]
    assert [
        {name: count for name, count in counts.items() if count is not None} for counts in found
    ] == [row["counts"] for row in source]


@pytest.mark.parametrize("name", ["meta.tags", "meta"])
async def test_many_keys_of_a_column_with_a_dot_stay_json(tmp_path, make_engine, name):
    source = [{"text": "a", name: {f"key {n}": n}, "meta.few": {"one": n}} for n in range(1001)]
    await ask(iter(source), tmp_path / "out.csv", make_engine())
    written = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines(keepends=True)))
    assert list(written[0])[:3] == ["text", name, "meta.few.one"]
    assert [json.loads(row[name]) for row in written] == [row[name] for row in source]


async def test_objects_of_a_csv_whose_names_would_clash_stay_json(tmp_path, make_engine):
    source = [
        {"text": "a", "o": {"x": 1}, "p": {"q": 1}},
        {"text": "b", "o": {"x": 2}, "o.x": 3, "p": {"q": 2}},
        {"text": "c", "r": {"s.t": 1, "s": {"t": 2}}},
    ]
    await ask(source, tmp_path / "out.csv", make_engine())
    first, second, third = csv.DictReader(
        (tmp_path / "out.csv").read_text().splitlines(keepends=True)
    )
    assert (first["o"], second["o"], second["o.x"]) == ('{"x":1}', '{"x":2}', "3")
    assert (first["p.q"], second["p.q"]) == ("1", "2")
    assert third["r"] == '{"s.t":1,"s":{"t":2}}'


@pytest.mark.parametrize("zone", [None, "UTC"])
@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
async def test_times_beyond_the_calendar_of_python(tmp_path, make_engine, name, zone):
    table = pa.table(
        {
            "text": ["a"],
            "at": pa.array([2**59], pa.timestamp("us", zone)),
            "day": pa.array([2**22], pa.date32()),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    result = await ask(tmp_path / "in.parquet", tmp_path / name, make_engine(), prompt="{day}")
    (row,) = result.rows()
    assert row["response"] == row["day"] == "13453-08-13"
    assert row["at"] == f"20237-04-25T10:45:03.423488{'Z' if zone else ''}"


async def test_times_that_parquet_has_no_place_for_become_text(tmp_path, make_engine):
    table = pa.table({"text": ["a", "b"], "at": pa.array([0, 2**60], pa.timestamp("s"))})
    await ask(table, tmp_path / "out.parquet", make_engine())
    assert pq.read_table(tmp_path / "out.parquet")["at"].to_pylist() == [
        "1970-01-01T00:00:00",
        "36534630048-05-13T13:56:16",
    ]


async def test_dictionaries_with_nulls_and_other_layouts(tmp_path, make_engine):
    table = pa.table(
        {
            "text": ["a", "b", "c"],
            "tag": pa.DictionaryArray.from_arrays(pa.array([0, 1, None]), pa.array(["x", None])),
            "runs": pa.RunEndEncodedArray.from_arrays([2, 3], ["y", "z"]),
            "parts": pa.array([[1, None], None, []], pa.list_view(pa.int64())),
        }
    )
    for name in ("out.parquet", "out.jsonl"):
        rows = list((await ask(table, tmp_path / name, make_engine())).rows())
        assert [(row["tag"], row["runs"], row["parts"]) for row in rows] == [
            ("x", "y", [1, None]),
            (None, "y", None),
            (None, "z", []),
        ]


async def test_infinity_is_told_from_null(tmp_path, make_engine):
    table = pa.table({"text": ["a"], "v": [[float("inf"), None, float("nan")]]})
    await ask(table, tmp_path / "out.jsonl", make_engine())
    assert lines(tmp_path / "out.jsonl")[0]["v"] == ["Infinity", None, "NaN"]


async def test_fields_of_answers_that_the_schema_does_not_name_are_kept(tmp_path, make_engine):
    schema = {
        "type": "object",
        "properties": {"o": {"type": "object", "properties": {"a": {"type": "integer"}}}},
    }
    answer = {"o": {"a": 1, "b": "x"}}
    await ask(
        [{"text": "a"}], tmp_path / "out.parquet", make_engine(lambda text: answer), schema=schema
    )
    assert pq.read_table(tmp_path / "out.parquet")["o"].to_pylist() == [{"a": 1, "b": "x"}]


def test_blocks_of_ray_do_not_make_values_alike():
    with pytest.raises(pa.ArrowInvalid):
        block([{"a": b"x"}, {"a": "y"}])
    assert block([{"a": 2**63}, {"a": None}])["a"].to_pylist() == [2**63, None]


async def test_types_without_a_place_are_refused_before_the_engine_starts(tmp_path, make_engine):
    engine = make_engine()
    union = pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1]), pa.array(["a"])])
    month = pa.array([(1, 2, 3)], pa.month_day_nano_interval())
    for column in (union, month, pa.array([[{"a": {}}]])):
        table = pa.table({"text": ["a"], "odd": column})
        with pytest.raises(
            OutputError, match="cannot be written as Parquet, which has no such type: 'odd'"
        ):
            await ask(table, tmp_path / "out.parquet", engine)
    twice = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    with pytest.raises(InputError, match="two fields of column 'odd' have the same name, 'a'"):
        await ask(
            pa.table({"text": ["a"], "odd": [[]]}).set_column(1, "odd", twice),
            tmp_path / "out.jsonl",
            engine,
        )
    assert engine.starts == 0
    (row,) = (
        await ask(pa.table({"text": ["a"], "odd": union}), tmp_path / "out.jsonl", engine)
    ).rows()
    assert row["odd"] == 1


async def test_lists_of_length_0(tmp_path, make_engine):
    table = pa.table({"text": ["a", "b"], "none": pa.array([[], None], pa.list_(pa.int32(), 0))})
    await ask(table, tmp_path / "out.parquet", make_engine())
    assert pq.read_table(tmp_path / "out.parquet")["none"].to_pylist() == [[], None]


async def test_tensors_become_parquet(tmp_path, make_engine):
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(8).reshape(2, 2, 2))
    source = pa.table({"text": ["a", "b"], "tensor": tensors})
    await ask(source, tmp_path / "out.parquet", make_engine())
    await ask(source.slice(0, 0), tmp_path / "none.parquet", make_engine())
    assert pq.read_table(tmp_path / "out.parquet").column("tensor").to_pylist() == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
    ]
    assert pq.read_schema(tmp_path / "none.parquet").field("tensor").type == tensors.type


async def test_a_column_that_is_null_in_whole_parts_keeps_the_type_of_the_others(
    tmp_path, make_engine
):
    source = [{"text": f"{n}", "score": None if n < 50 else n} for n in range(100)]
    result = await ask(source, tmp_path / "out.parquet", make_engine())
    column = result.table()["score"]
    assert column.type == pa.int64()
    assert column.to_pylist() == [None] * 50 + list(range(50, 100))
