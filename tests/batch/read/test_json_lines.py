import asyncio
import json
import os
import threading

import pytest

from penstock.batch.read import open_source
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


@pytest.mark.parametrize("name", ["in.jsonl", "in.csv"])
async def test_empty_files_have_no_rows(tmp_path, name):
    (tmp_path / name).touch()
    source = await open_source(tmp_path / name)
    assert (source.columns, source.first, values(source)) == ((), None, [])


async def test_standard_input(monkeypatch):
    reading, writing = os.pipe()
    os.write(writing, b'{"a": 1}\n{\n{"a": 3}\n')
    os.close(writing)
    monkeypatch.setattr("penstock.batch.read.json_lines._STDIN", reading)
    source = await open_source("-")
    assert (source.columns, source.fingerprint) == (("a",), None)
    assert [(row.values, row.fault) for row in rows(source)] == [
        ({"a": 1}, None),
        (None, "stdin:2: malformed JSON: it ends too early"),
        ({"a": 3}, None),
    ]


async def test_numbers_that_json_does_not_know_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": NaN}\n')
    (row,) = rows(await open_source(tmp_path / "a.jsonl"))
    assert row.fault.endswith("NaN and Infinity are not JSON")


async def test_a_pipe_without_a_line_can_be_left(monkeypatch):
    reading, writing = os.pipe()
    monkeypatch.setattr("penstock.batch.read.json_lines._STDIN", reading)
    opening = asyncio.create_task(open_source("-"))
    await asyncio.sleep(0.01)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    waiting = [thread for thread in threading.enumerate() if thread.name == "penstock-opener"]
    # Else the end of the process would wait for the pipe.
    assert all(thread.daemon for thread in waiting)
    assert waiting
    os.close(writing)


@pytest.mark.parametrize("opening", ["[", '{"a":'])
@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("depth", [257, 950, 3000, 100_000])
async def test_a_deep_line_is_one_bad_row(tmp_path, opening, closed, depth):
    closing = "]" if opening == "[" else "}"
    deep = opening * depth + ("1" + closing * depth if closed else "")
    (tmp_path / "a.jsonl").write_text(f'{{"a": 1}}\n{{"a": {deep}}}\n{{"a": {{"b": [1]}}}}\n')
    found = rows(await open_source(tmp_path / "a.jsonl"))
    assert [row.values for row in found] == [{"a": 1}, None, {"a": {"b": [1]}}]
    assert ("nested more than 256 deep" in found[1].fault) or not closed


async def test_brackets_in_text_are_not_deep(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"a": "[" * 9999}) + "\n")
    assert values(await open_source(tmp_path / "a.jsonl")) == [{"a": "[" * 9999}]


@pytest.mark.parametrize(
    "data",
    [
        '[{"a": 1},\n{"a": 2}]',
        '\n[\n  {"a": 1},\n  {"a": 2}\n]\n',
        '[{"a": 1}, {"a": 2}]\n',
        "\ufeff[]",
    ],
)
async def test_a_file_that_is_one_array_is_told(tmp_path, data):
    (tmp_path / "a.jsonl").write_text(data)
    with pytest.raises(InputError, match=r"a\.jsonl: is a JSON array.*jq -c '\.\[\]'"):
        await open_source(tmp_path / "a.jsonl")


async def test_a_list_among_objects_is_one_bad_row(tmp_path):
    (tmp_path / "a.jsonl").write_text('[1]\n{"a": 1}\n')
    assert values(await open_source(tmp_path / "a.jsonl")) == [None, {"a": 1}]


async def test_zero_bytes_are_one_bad_row(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n' + bytes(4096) + b'\n{"a": 2}\n')
    assert values(await open_source(tmp_path / "a.jsonl")) == [{"a": 1}, None, {"a": 2}]


async def test_standard_input_that_is_closed(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(InputError, match="standard input is closed"):
        await open_source("-")
