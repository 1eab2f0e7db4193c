from datetime import date, datetime

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penstock.batch.read import open_source
from penstock.batch.values.arrow import python_values
from penstock.errors import InputError


def rows(source, start=0, columns=None):
    return [row for batch in source.batches(start, columns) for row in batch]


async def test_parquet_can_be_read_from_any_row(tmp_path):
    for number in range(2):
        table = pa.table({"n": range(number * 1000, number * 1000 + 1000), "t": ["x"] * 1000})
        pq.write_table(table, tmp_path / f"{number}.parquet", row_group_size=300)
    source = await open_source(tmp_path)
    assert (source.rows, source.columns) == (2000, ("n", "t"))
    for start in (0, 299, 300, 1000, 1850, 2000):
        found = rows(source, start)
        assert [row.values["n"] for row in found] == list(range(start, 2000))
        assert [row.index for row in found] == list(range(start, 2000))
        assert all(row.record_batch["n"][row.offset].as_py() == row.index for row in found)


async def test_only_the_columns_asked_for_become_values(tmp_path):
    source = await open_source(pa.table({"a": [1], "b": [2]}))
    (row,) = rows(source, columns=("b", "absent"))
    assert row.values == {"b": 2}
    assert row.record_batch.column_names == ["a", "b"]
    (row,) = rows(source, columns=())
    assert row.values == {}


async def test_times_finer_than_python_knows(tmp_path):
    table = pa.table({"at": pa.array([1_700_000_000_123_456_789], pa.timestamp("ns"))})
    (row,) = rows(await open_source(table))
    assert isinstance(row.values["at"], datetime)
    assert str(row.values["at"]) == "2023-11-14 22:13:20.123456789"
    assert row.record_batch.schema.field("at").type == pa.timestamp("ns")


async def test_damaged_parquet_is_one_clear_line(tmp_path):
    (tmp_path / "in.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(InputError, match="not a readable Parquet file") as caught:
        await open_source(tmp_path / "in.parquet")
    assert "\n" not in str(caught.value)


async def test_a_reader_is_read_once_and_a_table_again():
    table = pa.table({"n": range(1000)})
    reader = await open_source(table.to_reader(max_chunksize=300))
    assert reader.fingerprint is None
    assert [row.index for row in rows(reader, 500)] == list(range(500, 1000))
    source = await open_source(table)
    assert [row.values["n"] for row in rows(source, 990)] == list(range(990, 1000))
    assert source.fingerprint == (await open_source(pa.table({"n": range(1000)}))).fingerprint
    assert source.fingerprint != (await open_source(pa.table({"n": [*range(999), -1]}))).fingerprint


async def test_wide_rows_come_in_small_batches():
    table = pa.table({"t": ["x" * 300_000] * 12})
    sizes = [len(batch) for batch in (await open_source(table)).batches()]
    assert max(sizes) <= 4
    assert sum(sizes) == 12


async def test_empty_tables():
    source = await open_source(pa.table({"n": pa.array([], pa.int32())}))
    assert (source.rows, source.columns, source.first, rows(source)) == (0, ("n",), None, [])


async def test_polars_frames():
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"a": [1, 2], "t": ["x", "a longer text than fits into a view"]})
    source = await open_source(frame)
    assert [row.values for row in rows(source)] == frame.to_dicts()
    assert source.schema is not None
    assert source.schema.field("t").type == pa.large_string()


async def test_pandas_frames():
    frame = pd.DataFrame({"a": [1, 2], "t": ["x", None]}, index=[7, 9])
    source = await open_source(frame)
    assert [row.values for row in rows(source)] == [{"a": 1, "t": "x"}, {"a": 2, "t": None}]


async def test_the_middle_of_a_table_counts():
    table = pa.table({"n": range(1000)})
    other = pa.table({"n": [*range(500), 0, *range(501, 1000)]})
    chunked = pa.concat_tables([table.slice(0, 300), table.slice(300)])
    digests = [(await open_source(each)).fingerprint for each in (table, chunked, other)]
    assert digests[0] == digests[1] != digests[2]


async def test_view_layouts_inside_other_types():
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame(
        {"c": ["a", "b"], "l": [["x"], []], "s": [{"k": "v"}, {"k": "w"}]},
        schema_overrides={"c": polars.Enum(["a", "b"])},
    ).with_columns(polars.col("c").cast(polars.Categorical).alias("d"))
    source = await open_source(frame)
    pq.write_table(
        pa.Table.from_batches([next(source.batches())[0].record_batch]), pa.BufferOutputStream()
    )
    assert "view" not in str(source.schema)
    assert source.first == {"c": "a", "l": ["x"], "s": {"k": "v"}, "d": "a"}


@pytest.mark.parametrize(
    ("label", "name"),
    [
        (None, "null"),
        (1, "1"),
        (1.5, "1.5"),
        (float("nan"), "NaN"),
        (True, "true"),
        ((1, "a"), '[1,"a"]'),
        (date(2026, 11, 29), "2026-11-29"),
        (b"x", "eA=="),
    ],
)
async def test_names_of_a_frame_that_are_no_text_become_as_those_of_a_dict(label, name):
    frame = pd.DataFrame([["a", "b"]], columns=pd.Index([label, "text"], dtype=object))
    for source in (frame, [{label: "a", "text": "b"}]):
        assert (await open_source(source)).columns == (name, "text")


async def test_files_may_differ_in_columns_and_types(tmp_path):
    pq.write_table(pa.table({"y": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"y": ["b"], "z": [2]}), tmp_path / "b.parquet")
    assert (await open_source(tmp_path)).columns == ("y", "z")


@pytest.mark.parametrize("far", [False, True])
async def test_int96_times_beyond_those_that_nanoseconds_hold(tmp_path, far):
    """Spark writes such times, and 0001-01-01 or 9999-12-31 for none."""
    unit = "us" if far else "ns"
    ticks = [-62_135_596_800_000_000, 253_402_300_799_999_999, None] if far else [1500, -1500, None]
    at = pa.array(ticks, pa.timestamp(unit))
    table = pa.table({"at": at, "list": pa.ListArray.from_arrays([0, 1, 2, 3], at), "n": [1, 2, 3]})
    pq.write_table(table, tmp_path / "in.parquet", use_deprecated_int96_timestamps=True)
    source = await open_source(tmp_path / "in.parquet")
    assert source.schema is not None
    assert source.schema.field("at").type == pa.timestamp(unit)
    expected = [row.values for row in rows(await open_source(table))]
    assert [row.values for row in rows(source)] == expected


async def test_views_and_runs_are_read_as_plain_columns(tmp_path):
    table = pa.table(
        {
            "text": pa.array(["a", None, "b" * 20], pa.string_view()),
            "bytes": pa.array([b"\x01", b"", None], pa.binary_view()),
            "list": pa.array([[1], None, []], pa.list_view(pa.int64())),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    runs = pa.RunEndEncodedArray.from_arrays([3], ["x"])
    reader = pa.Table.from_arrays([runs], ["run"]).to_reader()
    for given, expected in (
        (tmp_path / "in.parquet", table.to_pylist()),
        (reader, [{"run": "x"}] * 3),
    ):
        source = await open_source(given)
        found = rows(source)
        assert [row.values for row in found] == expected
        assert all(row.record_batch.schema.equals(source.schema) for row in found)
        assert not any(word in str(source.schema) for word in ("view", "run_end"))


def _layouts():
    """By name: a column of two rows, and the plain type of its values."""
    ends = pa.array([1, 2], pa.int32())
    places = pa.array([1, 0], pa.int8())
    offsets = pa.array([0, 1, 2], pa.int32())
    runs = pa.RunEndEncodedArray.from_arrays(ends, pa.array(["x", "y"]))
    views = pa.array(["x", None], pa.string_view())
    far = pa.array([1, 1 << 60], pa.timestamp("us"))
    ids = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16, None], pa.binary(16)))
    zoned = pa.array([1, 2], pa.timestamp("ns", "Europe/Berlin"))
    lengths = pa.array([1, 2], pa.duration("ns"))
    lists = pa.array([[1], None], pa.list_(pa.int64()))
    structs = pa.array([{"a": 1}, None])

    def runs_of(values):
        return pa.RunEndEncodedArray.from_arrays(ends, values)

    def coded(values):
        return pa.DictionaryArray.from_arrays(places, values)

    def view_of(values):
        return pa.ListViewArray.from_arrays(places, pa.array([1, 2]).cast(pa.int32()), values)

    return {
        "runs of views": (runs_of(views), pa.large_string()),
        "runs of runs": (runs_of(runs), pa.string()),
        "runs of a dictionary": (runs_of(coded(pa.array(["x", "y"]))), pa.string()),
        "runs of lists": (runs_of(lists), lists.type),
        "runs in a struct": (
            pa.StructArray.from_arrays([runs], ["a"], mask=pa.array([False, True])),
            pa.struct([("a", pa.string())]),
        ),
        "runs in a list": (pa.ListArray.from_arrays(offsets, runs), pa.list_(pa.string())),
        "runs in a list of one length": (
            pa.FixedSizeListArray.from_arrays(runs, 1, mask=pa.array([False, True])),
            pa.list_(pa.string(), 1),
        ),
        "a dictionary of runs": (coded(runs), pa.dictionary(pa.int8(), pa.string())),
        "a dictionary of a dictionary": (
            coded(coded(pa.array(["x", "y"]))),
            pa.dictionary(pa.int8(), pa.string()),
        ),
        "a dictionary of times": (coded(zoned), zoned.type),
        "a dictionary of lengths of time": (coded(lengths), lengths.type),
        "a dictionary of lists": (coded(lists), lists.type),
        "a dictionary of structs": (coded(structs), structs.type),
        "a list view of ids": (view_of(ids), pa.list_(ids.type)),
        "a list view of far times": (view_of(far), pa.list_(far.type)),
        "a list view of structs": (view_of(structs), pa.list_(structs.type)),
    }


@pytest.mark.parametrize("name", _layouts())
async def test_each_layout_is_read_as_a_plain_column(name, tmp_path):
    """And Parquet gives it back as such; it knows no runs, and few dictionaries."""
    column, kind = _layouts()[name]
    table = pa.table({"c": column})
    expected = [{"c": value} for value in python_values(column)]
    parts = pa.concat_tables([table.slice(1), table.slice(0, 1)])
    for given, wanted in (
        (table, expected),
        (table.to_reader(), expected),
        (table.slice(1), expected[1:]),
        (parts, expected[::-1]),
    ):
        source = await open_source(given)
        found = rows(source)
        assert [row.values for row in found] == wanted
        assert source.schema is not None
        assert [field.with_nullable(True).type for field in source.schema] == [kind]
        written = pa.Table.from_batches([found[0].record_batch])
        pq.write_table(written, tmp_path / "c.parquet")
        back = pq.read_table(tmp_path / "c.parquet").column("c")
        assert not pa.types.is_dictionary(kind) or pa.types.is_dictionary(back.type)
        assert pa.types.is_dictionary(kind) or _shape(back.type) == _shape(kind)
        assert python_values(back) == python_values(written.column("c"))


def _shape(kind: pa.DataType) -> str:
    return str(kind).replace("element: ", "").replace("item: ", "")


async def test_files_that_differ_in_views_alone_have_one_type(tmp_path):
    for name, kinds in (
        ("a", (pa.binary(), pa.list_(pa.int64()))),
        ("b", (pa.binary_view(), pa.list_view(pa.int64()))),
    ):
        columns = {"x": pa.array([b"\x01"], kinds[0]), "l": pa.array([[1]], kinds[1])}
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    source = await open_source(tmp_path)
    assert source.schema is not None
    assert source.schema.types == [pa.large_binary(), pa.list_(pa.int64())]


async def test_polars_columns_whose_names_are_patterns():
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"a": ["x"], "*": ["star"], "^a.*$": ["hat"]})
    (row,) = rows(await open_source(frame))
    assert row.values == {"a": "x", "*": "star", "^a.*$": "hat"}
