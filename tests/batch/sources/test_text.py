import asyncio
import gzip
import json
import lzma
import os
import threading

import pytest

from penstock.batch.sources import open_source
from penstock.errors import InputError


def rows(source, start=0):
    return [row for batch in source.batches(start) for row in batch]


def values(source, start=0):
    return [row.values for row in rows(source, start)]


async def test_json_lines_with_damage(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n{"a": \n{"a": "\xff"}\r\n[1]\n  \n{"a": 2, "b": 3}')
    source = await open_source(path)
    assert source.columns == ("a", "b")
    found = rows(source)
    assert [row.index for row in found] == [0, 1, 2, 3, 4]
    assert [row.values for row in found] == [{"a": 1}, None, None, None, {"a": 2, "b": 3}]
    assert [row.fault.removeprefix(str(path)) for row in found[1:4]] == [
        ":3: malformed JSON: it ends too early",
        ":4: malformed JSON: invalid UTF-8",
        ":5: not a JSON object",
    ]


async def test_reading_can_begin_at_any_row(tmp_path):
    for number in range(3):
        lines = "\n\n".join(json.dumps({"n": number * 400 + k}) for k in range(400))
        (tmp_path / f"{number}.jsonl").write_text(lines + "\n")
    source = await open_source(tmp_path)
    assert values(source) == [{"n": n} for n in range(1200)]
    for start in (0, 1, 399, 400, 850, 1200):
        assert values(source, start) == [{"n": n} for n in range(start, 1200)]
    assert [row.index for row in rows(source, 850)] == list(range(850, 1200))


async def test_batches_are_bounded(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"t": "x" * 400_000}) + "\n" for _ in range(10)))
    assert [len(batch) for batch in (await open_source(path)).batches()] == [3, 3, 3, 1]


async def test_csv_with_damage(tmp_path):
    path = tmp_path / "in.csv"
    path.write_bytes(b'id,text\n1,"two\nlines"\n2,b,c\n3\n\n4,\xff\n5,"e ""q"""\n')
    source = await open_source(path)
    assert source.columns == ("id", "text")
    assert values(source) == [
        {"id": "1", "text": "two\nlines"},
        None,
        {"id": "3", "text": None},
        None,
        {"id": "5", "text": 'e "q"'},
    ]
    faults = [row.fault.removeprefix(str(path)) for row in rows(source) if row.fault]
    assert faults == [":4: 3 fields where the header has 2", ":7: invalid UTF-8"]
    assert values(source, 2) == values(source)[2:]


async def test_csv_whose_header_is_ambiguous(tmp_path):
    (tmp_path / "in.csv").write_text("a,a\n1,2\n")
    with pytest.raises(InputError, match="same name"):
        await open_source(tmp_path / "in.csv")


@pytest.mark.parametrize("name", ["in.jsonl", "in.csv"])
async def test_empty_files_have_no_rows(tmp_path, name):
    (tmp_path / name).touch()
    source = await open_source(tmp_path / name)
    assert (source.columns, source.first, values(source)) == ((), None, [])


async def test_compressed_files(tmp_path):
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n{"a": 2}\n'))
    (tmp_path / "in.csv.gz").write_bytes(gzip.compress(b"a\n1\n"))
    assert values(await open_source(tmp_path / "in.jsonl.gz")) == [{"a": 1}, {"a": 2}]
    assert values(await open_source(tmp_path / "in.csv.gz")) == [{"a": "1"}]
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:40])
    with pytest.raises(InputError, match=r"cut\.jsonl\.gz"):
        await open_source(tmp_path / "cut.jsonl.gz")


async def test_standard_input(monkeypatch):
    reading, writing = os.pipe()
    os.write(writing, b'{"a": 1}\n{\n{"a": 3}\n')
    os.close(writing)
    monkeypatch.setattr("penstock.batch.sources.text._STDIN", reading)
    source = await open_source("-")
    assert (source.columns, source.fingerprint) == (("a",), None)
    assert [(row.values, row.fault) for row in rows(source)] == [
        ({"a": 1}, None),
        (None, "stdin:2: malformed JSON: it ends too early"),
        ({"a": 3}, None),
    ]


async def test_a_quote_without_end_is_an_error_row(tmp_path):
    (tmp_path / "a.csv").write_text('a,b\n1,x\n2,"open\n3,y\n')
    found = rows(await open_source(tmp_path / "a.csv"))
    assert found[0].values == {"a": "1", "b": "x"}
    assert "malformed CSV" in found[1].fault


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz", "a.jsonl.xz"])
async def test_damaged_compression_is_an_input_error(tmp_path, name):
    pack = gzip.compress if name.endswith("gz") else lzma.compress
    data = bytearray(pack(b"".join(b'{"a": %d}\n' % number for number in range(9999))))
    data[len(data) // 2 : len(data) // 2 + 40] = b"\xff" * 40
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=name):
        rows(await open_source(tmp_path / name))


async def test_numbers_that_json_does_not_know_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": NaN}\n')
    (row,) = rows(await open_source(tmp_path / "a.jsonl"))
    assert row.fault.endswith("NaN and Infinity are not JSON")


async def test_a_pipe_without_a_line_can_be_left(monkeypatch):
    reading, writing = os.pipe()
    monkeypatch.setattr("penstock.batch.sources.text._STDIN", reading)
    opening = asyncio.create_task(open_source("-"))
    await asyncio.sleep(0.01)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    waiting = [thread for thread in threading.enumerate() if thread.name == "penstock-opener"]
    assert all(thread.daemon for thread in waiting)  # else the end of the process would wait for the pipe
    assert waiting
    os.close(writing)
