import io
import os

import pytest

from penstock.batch.read import lines, open_source
from penstock.batch.read.lines import lines_of
from penstock.errors import InputError


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
    monkeypatch.setattr(lines, "MAX_LINE", 4)
    monkeypatch.setattr(lines, "_BLOCK", 3)
    assert all_lines(b"1234\n12345\n1\n" + b"x" * 9, make) == [b"1234", None, b"1", None]


def test_memory_is_bounded_by_the_longest_line(monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE", 1 << 18)
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
    monkeypatch.setattr(lines, "MAX_LINE", 99)
    monkeypatch.setattr(lines, "_BLOCK", 50)
    monkeypatch.setattr("penstock.batch.read.delimited.MAX_LINE", 99)
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
    (tmp_path / "in.jsonl").write_bytes(b"PAR1...")
    with pytest.raises(InputError, match="is Parquet"):
        await open_source(tmp_path / "in.jsonl")


async def test_a_stream_gives_its_lines_as_they_come(monkeypatch):
    reading, writing = os.pipe()
    monkeypatch.setattr("penstock.batch.read.json_lines._STDIN", reading)
    os.write(writing, b'{"a": 1}\n{"a"')
    source = await open_source("-")
    assert source.first == {"a": 1}
    batches = source.batches()
    assert next(batches)[0].values == {"a": 1}
    os.write(writing, b': 2}\n{"a": 3}')
    os.close(writing)
    assert [row.values for batch in batches for row in batch] == [{"a": 2}, {"a": 3}]
