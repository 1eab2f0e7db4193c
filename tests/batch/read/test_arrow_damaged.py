import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import penstock
from penstock.batch.read import open_source
from penstock.errors import InputError


async def rows(source):
    opened = await open_source(source)
    return [row for batch in opened.batches() for row in batch]


def text(*values):
    """A column of text, whatever the bytes are."""
    return pa.Array.from_buffers(
        pa.binary(), len(values), pa.array(values, pa.binary()).buffers()
    ).view(pa.string())


def nested(column):
    return pa.ListArray.from_arrays([0, 1, 2, 3], column)


def of_few(column):
    return pa.DictionaryArray.from_arrays([0, 1, 2], column)


@pytest.mark.parametrize(
    ("made", "mended"), [(pa.array, "b\ufffd"), (nested, None), (of_few, None)]
)
async def test_a_damaged_value_is_one_bad_row_that_keeps_the_others(tmp_path, made, mended):
    column = made(text(b"a", b"b\xff", b"c"))
    table = pa.table({"id": [1, 2, 3], "text": column, "last": ["x", "y", "z"]})
    sources = {"table": table}
    if made is not of_few:  # pyarrow itself refuses such a dictionary in a file
        path = tmp_path / "in.parquet"
        pq.write_table(table, path)
        sources[str(path)] = path
    for name, source in sources.items():
        found = await rows(source)
        assert [row.sound and row.sound["id"] for row in found] == [1, None, 3]
        assert found[1].values == {"id": 2, "text": mended, "last": "y"}
        assert found[1].fault == f"{name}: row 1: column 'text': invalid UTF-8"
        columns = found[1].record_batch.to_pydict()
        assert [values[1] for values in columns.values()] == [2, mended, "y"]
        kinds = [field.type for field in (await open_source(source)).schema or ()]
        assert found[1].record_batch.schema.types == kinds


@pytest.mark.parametrize("form", ["parquet", "jsonl", "csv"])
async def test_an_output_keeps_the_columns_of_a_damaged_row(tmp_path, form):
    source = pa.table({"id": [1, 2, 3], "text": text(b"a", b"b\xff", b"c")})
    output = tmp_path / f"out.{form}"
    result = await penstock.arun(source, output, model="simulated", prompt="{text}", progress=False)
    found = [(int(row["id"]), row["text"], row["status"]) for row in result.rows()]
    assert found == [(1, "a", "ok"), (2, "b\ufffd", "error"), (3, "c", "ok")]


@pytest.mark.parametrize("made", [pa.array, nested])
@pytest.mark.parametrize("prompt", ["{id}", "nothing of the row"])
async def test_a_column_that_no_prompt_reads_is_looked_at_too(tmp_path, made, prompt):
    table = pa.table({"id": [1, 2, 3], "note": made(text(b"a", b"b\xff", b"c"))})
    pq.write_table(table, tmp_path / "in.parquet")
    for output in (None, tmp_path / "out.parquet"):
        result = await penstock.arun(
            tmp_path / "in.parquet", output, model="simulated", prompt=prompt, progress=False
        )
        found = list(result.rows())
        assert [row["id"] for row in found] == [1, 2, 3]
        assert [row["status"] for row in found] == ["ok", "error", "ok"]
        assert found[1]["error"]["message"].endswith("row 1: column 'note': invalid UTF-8")
        assert result.table().num_rows == 3


async def test_what_python_has_no_place_for_is_no_damage(tmp_path):
    later = [2**50, None, -(2**51)]
    table = pa.table(
        {
            "day": pa.array([2932897, None, -719163], pa.date32()),
            "at": pa.array(later, pa.timestamp("us", "UTC")),
            "there": pa.array([0, None, 0], pa.timestamp("s", "Mars/Olympus")),
            "long": pa.array([2**62, None, 0], pa.duration("s")),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    for source in (tmp_path / "in.parquet", table, table.to_reader()):
        found = await rows(source)
        assert [row.fault for row in found] == [None] * 3
        assert found[0].values["day"] == "+10000-01-01" or found[0].values["day"] == "10000-01-01"
        assert found[0].values["there"] == datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
        assert all(value is None for value in found[1].values.values())


async def test_deep_types_are_refused_by_name(tmp_path):
    kind = pa.int8()
    for _ in range(1000):
        kind = pa.list_(kind)
    table = pa.table({"deep": pa.nulls(1, kind)})
    pq.write_table(table, tmp_path / "in.parquet")
    with pytest.raises(InputError, match=r"in\.parquet"):
        await open_source(tmp_path / "in.parquet")
    with pytest.raises(InputError, match="no Arrow form"):
        await open_source(table)


async def test_tables_without_columns_and_with_doubles(tmp_path):
    empty = pa.table({"a": [1, 2]}).select([])
    assert [row.values for row in await rows(empty)] == [{}, {}]
    pq.write_table(pa.table({"a": pa.array([], pa.int8())}), tmp_path / "none.parquet")
    assert await rows(tmp_path / "none.parquet") == []
    twice = pa.table([pa.array([1]), pa.array([2])], ["a", "a"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    for source in (twice, tmp_path / "twice.parquet"):
        with pytest.raises(InputError, match="two columns have the same name, 'a'"):
            await open_source(source)


@pytest.mark.parametrize("damage", ["empty", "cut", "footer", "page", "no magic", "text"])
async def test_damaged_parquet_is_told_with_its_name(tmp_path, damage):
    path = tmp_path / "in.parquet"
    pq.write_table(
        pa.table({"a": [b"x" * 99] * 9}), path, compression="none", write_page_checksum=True
    )
    data = bytearray(path.read_bytes())
    if damage == "footer":
        data[-30:-10] = b"\xff" * 20
    elif damage == "page":
        data[90] ^= 1  # only its checksum tells
    else:
        others = {
            "empty": b"",
            "cut": data[:-20],
            "no magic": data[:-1] + b"?",
            "text": b'{"a": 1}\n',
        }
        data = bytearray(others[damage])
    path.write_bytes(data)
    with pytest.raises(
        InputError, match=r"in\.parquet: (not a readable|damaged) Parquet file"
    ) as error:
        await rows(path)
    assert "\n" not in str(error.value)


async def test_arrow_streams_that_are_cut_off():
    sink = pa.BufferOutputStream()
    batch = pa.record_batch({"a": list(range(1000))})
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
        writer.write_batch(batch)
    data = sink.getvalue().to_pybytes()
    source = await open_source(pa.ipc.open_stream(data[:-3000]))
    batches = source.batches()
    assert len(next(batches)) == 256
    with pytest.raises(InputError, match="reading the record batches failed"):
        list(batches)
