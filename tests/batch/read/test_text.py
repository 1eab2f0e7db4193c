import asyncio
import gzip
import io
import json
import os
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penstock.batch.read import open_source, text
from penstock.batch.read.text import lines_of
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
    mended = {"a": "\ufffd"}
    assert [row.values for row in found] == [{"a": 1}, None, mended, None, {"a": 2, "b": 3}]
    assert [row.fault.removeprefix(str(path)) for row in found[1:4]] == [
        ":3: malformed JSON: it ends too early",
        ":4: malformed JSON: invalid UTF-8",
        ":5: not a JSON object",
    ]


@pytest.mark.parametrize(
    ("line", "values"),
    [
        (rb'{"a": "\ud83d!", "\udc00": ["\ud800\ud800"]}', {"a": "�!", "�": ["��"]}),
        (b'{"a": "\xff", "b": {"c": 1}}', {"a": "�", "b": {"c": 1}}),
        (rb'{"a": "\ud83d", "b": 1e999}', None),
        (rb'{"a": "\ud83d"', None),
        (rb'["\ud83d"]', None),
        (rb'{"a": "\ud83d", "b": %b}' % (b"[" * 300 + b"]" * 300), None),
    ],
)
async def test_what_is_no_unicode_takes_no_other_values_along(tmp_path, line, values):
    (tmp_path / "in.jsonl").write_bytes(b'{"a": "sound"}\n' + line + b"\n")
    _, found = rows(await open_source(tmp_path / "in.jsonl"))
    assert found.values == values
    assert f"{tmp_path}/in.jsonl:2: malformed JSON: " in found.fault


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
    monkeypatch.setattr("penstock.batch.read.text._STDIN", reading)
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
    monkeypatch.setattr("penstock.batch.read.text._STDIN", reading)
    opening = asyncio.create_task(open_source("-"))
    await asyncio.sleep(0.01)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    waiting = [thread for thread in threading.enumerate() if thread.name == "penstock-reader"]
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


async def test_objects_of_several_lines_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{\n  "n": 1\n}\n{\n  "n": 2\n}\n')
    with pytest.raises(InputError, match=r"a\.jsonl: is JSON whose objects take several.*jq -c"):
        await open_source(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text('{\n{"n": 1}\n')
    source = await open_source(tmp_path / "a.jsonl")
    assert source.first == {"n": 1}


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


# CSV
async def read(path):
    source = await open_source(path)
    return source, [row for batch in source.batches() for row in batch]


async def test_csv_with_damage(tmp_path):
    path = tmp_path / "in.csv"
    path.write_bytes(b'id,text\n1,"two\nlines"\n2,b,c\n3\n\n4,\xff\n5,"e ""q"""\n')
    source, rows = await read(path)
    assert source.columns == ("id", "text")
    assert [row.values for row in rows] == [
        {"id": "1", "text": "two\nlines"},
        None,
        {"id": "3", "text": None},
        {"id": "4", "text": "\ufffd"},
        {"id": "5", "text": 'e "q"'},
    ]
    faults = [row.fault.removeprefix(str(path)) for row in rows if row.fault]
    assert faults[0] == ":4: 3 fields where the header has 2"
    assert faults[1].startswith(":7: invalid UTF-8. If the file has the code page of Windows")
    assert "`iconv -f WINDOWS-1252 -t UTF-8` converts it" in faults[1]
    assert len(faults) == 2
    assert [row.values for batch in source.batches(2) for row in batch] == [
        row.values for row in rows[2:]
    ]


@pytest.mark.parametrize("header", ["a,a", "a,,", '"a",b,a'])
async def test_a_header_that_is_ambiguous(tmp_path, header):
    (tmp_path / "in.csv").write_text(f"{header}\n1,2\n")
    with pytest.raises(
        InputError, match=r"in\.csv: two columns of its header have the same name, '(a|)'"
    ):
        await open_source(tmp_path / "in.csv")


@pytest.mark.parametrize("data", ["", "\n", " \n\n\t\n", "\ufeff"])
async def test_nothing_has_no_rows(tmp_path, data):
    (tmp_path / "in.csv").write_text(data)
    source, rows = await read(tmp_path / "in.csv")
    assert (source.columns, source.first, rows) == ((), None, [])


async def test_blank_lines_before_the_header(tmp_path):
    (tmp_path / "in.csv").write_text(" \n\na,b\n1,2\n")
    source, rows = await read(tmp_path / "in.csv")
    assert source.columns == ("a", "b")
    assert [row.values for row in rows] == [{"a": "1", "b": "2"}]


async def test_columns_of_later_rows_and_files(tmp_path):
    (tmp_path / "0.csv").write_text("")  # as Spark writes
    (tmp_path / "1.csv").write_text("a,b\n1,2\n")
    (tmp_path / "2.csv").write_text("a,c\n3,4\n")
    assert (await open_source(tmp_path)).columns == ("a", "b", "c")
    later = tmp_path / "in.jsonl"
    later.write_text('{"a": 1}\n' * 999 + "null\n" + '{"b": 1}\n{"c": 1}\n')
    source = await open_source(later)
    assert source.columns == source.every_column(["a"]) == ("a",)
    assert set(source.every_column(["b"]) or ()) >= {"a", "b"}
    assert source.every_column(["d"]) == ("a", "b", "c")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
async def test_line_ends_and_a_byte_order_mark(tmp_path, end):
    (tmp_path / "in.csv").write_bytes(end.join(["\ufeffa,b", "1,é", '"x\0y",2', ""]).encode())
    source, rows = await read(tmp_path / "in.csv")
    assert source.columns == ("a", "b")
    assert [row.values for row in rows] == [{"a": "1", "b": "é"}, {"a": "x\0y", "b": "2"}]


async def test_a_quote_without_end_is_an_error_row_where_it_begins(tmp_path):
    (tmp_path / "a.csv").write_text('a,b\n1,x\n2,"open\n3,y\n')
    _, rows = await read(tmp_path / "a.csv")
    assert [row.values for row in rows] == [{"a": "1", "b": "x"}, None]
    assert rows[1].fault == (
        f"{tmp_path}/a.csv:3: malformed CSV: a quote that begins here has no end; lines 3 to 4,"
        " with all rows there, are lost to it"
    )


async def test_a_quote_in_the_wrong_place_is_one_bad_row(tmp_path):
    (tmp_path / "a.csv").write_text('a,b\n1,"x"y\n2,z\n')
    _, rows = await read(tmp_path / "a.csv")
    assert [row.values for row in rows] == [None, {"a": "2", "b": "z"}]
    assert "a.csv:2: malformed CSV: a quote stands in the wrong place" in rows[0].fault


async def test_a_header_that_cannot_be_read(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"a,\xff\n1,2\n")
    with pytest.raises(InputError, match=r"a\.csv:1: invalid UTF-8\. .*`iconv -f WINDOWS-1252"):
        await open_source(tmp_path / "a.csv")


# Lines
class Drips(io.BytesIO):
    """Gives a byte at a time, as a slow pipe does."""

    def read1(self, size=-1):
        return self.read(1)


def all_lines(data, make=io.BytesIO):
    return [line for found in lines_of(make(data), "in.jsonl") for line in found]


@pytest.mark.parametrize("make", [io.BytesIO, Drips])
def test_lines_without_their_ends(make):
    assert all_lines(b"a\nbc\r\n\n d", make) == [b"a", b"bc\r", b"", b" d"]
    assert all_lines(b"a\n", make) == [b"a"]
    assert all_lines(b"", make) == []


def test_old_line_ends():
    assert all_lines(b'{"a": 1}\r{"a": 2}\r') == [b'{"a": 1}', b'{"a": 2}']
    assert all_lines(b'{"a":\r1}\n{"a": 2}') == [b'{"a":\r1}', b'{"a": 2}']


@pytest.mark.parametrize("make", [io.BytesIO, Drips])
def test_a_line_that_is_too_long_is_left_out(monkeypatch, make):
    monkeypatch.setattr(text, "MAX_LINE", 4)
    monkeypatch.setattr(text, "_BLOCK", 3)
    assert all_lines(b"1234\n12345\n1\n" + b"x" * 9, make) == [b"1234", None, b"1", None]


def test_memory_is_bounded_by_the_longest_line(monkeypatch):
    monkeypatch.setattr(text, "MAX_LINE", 1 << 18)
    held = []

    class Endless(io.BytesIO):
        left = 64

        def read1(self, size=-1):
            self.left -= 1
            return b"x" * size if self.left > 0 else b""

    stream = Endless()
    for found in lines_of(stream, "in.jsonl"):
        held += found
    assert held == [None]


async def test_a_long_line_is_one_bad_row(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "MAX_LINE", 99)
    monkeypatch.setattr(text, "_BLOCK", 50)
    monkeypatch.setattr("penstock.batch.read.text.MAX_LINE", 99)
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": "' + "x" * 999 + '"}\n{"a": 3}\n')
    (tmp_path / "a.csv").write_text("a\n1\n" + "x" * 999 + "\n3\n")
    for name in ("a.jsonl", "a.csv"):
        found = [row for batch in (await open_source(tmp_path / name)).batches() for row in batch]
        assert [row.values is None for row in found] == [False, True, False]
        assert "line is longer than" in (found[1].fault or "")


@pytest.mark.parametrize("name", ["in.jsonl", "in.csv"])
@pytest.mark.parametrize(
    ("encoding", "told"),
    [
        ("utf-16", "UTF-16"),
        ("utf-32", "UTF-32"),
        ("utf-16-le", "UTF-16LE"),
        ("utf-16-be", "UTF-16BE"),
    ],
)
async def test_other_encodings_are_refused_by_name(tmp_path, name, encoding, told):
    (tmp_path / name).write_bytes('{"a": 1}\n'.encode(encoding))
    with pytest.raises(InputError, match=f"{name}: is {told}, not UTF-8; iconv -f {told} -t UTF-8"):
        await open_source(tmp_path / name)


async def test_parquet_behind_another_name(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "in.jsonl")
    with pytest.raises(InputError, match="is Parquet"):
        await open_source(tmp_path / "in.jsonl")


@pytest.mark.parametrize("begin", ["sep=,\n", "sep=;\r\n", "\ufeffsep=\t\n", "sep=|\n"])
async def test_the_separator_that_excel_is_told(tmp_path, begin):
    separator = begin.strip("\r\n")[-1]
    (tmp_path / "in.csv").write_text(f"{begin}a{separator}b\n1{separator}2\n")
    source = await open_source(tmp_path / "in.csv")
    assert (source.columns, values(source)) == (("a", "b"), [{"a": "1", "b": "2"}])


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("begin", ["", "\n \r\n"])
async def test_the_header_shows_the_separator(tmp_path, separator, begin):
    content = f'{begin}a{separator}"b; \t|c"\r\n1,5{separator}2\r\n'.replace(
        "1,5", '"1,5"' if separator == "," else "1,5"
    )
    (tmp_path / "in.csv").write_text(content, newline="")
    source = await open_source(tmp_path / "in.csv")
    assert values(source) == [{"a": "1,5", "b; \t|c": "2"}]


@pytest.mark.parametrize(
    ("name", "header", "columns"),
    [
        ("in.csv", "a, b;c", ("a", " b;c")),
        ("in.csv", '"a;b"', ("a;b",)),
        ("in.csv", '"a;\nb"', ("a;\nb",)),
        ("in.csv", "text", ("text",)),
        ("in.tsv", "a, b;c\td", ("a, b;c", "d")),
        ("in.TAB", "a,b", ("a,b",)),
    ],
)
async def test_headers_where_the_separator_is_not_plain(tmp_path, name, header, columns):
    (tmp_path / name).write_text(f"{header}\n1\n")
    assert (await open_source(tmp_path / name)).columns == columns


async def test_tabs_in_a_compressed_file(tmp_path):
    (tmp_path / "in.tsv.gz").write_bytes(gzip.compress(b"a,b\tc\n1\t2\n"))
    assert values(await open_source(tmp_path / "in.tsv.gz")) == [{"a,b": "1", "c": "2"}]


@pytest.mark.parametrize("header", ["PAR1,PAR2", "BZh,a", "PAR1", "BZh91AY&SY"])
async def test_headers_like_those_of_other_forms(tmp_path, header):
    (tmp_path / "in.csv").write_text(f"{header}\n1\n")
    assert (await open_source(tmp_path / "in.csv")).columns == tuple(header.split(","))


async def test_a_stream_gives_its_lines_as_they_come(monkeypatch):
    reading, writing = os.pipe()
    monkeypatch.setattr("penstock.batch.read.text._STDIN", reading)
    os.write(writing, b'{"a": 1}\n{"a"')
    source = await open_source("-")
    assert source.first == {"a": 1}
    batches = source.batches()
    assert next(batches)[0].values == {"a": 1}
    os.write(writing, b': 2}\n{"a": 3}')
    os.close(writing)
    assert [row.values for batch in batches for row in batch] == [{"a": 2}, {"a": 3}]
