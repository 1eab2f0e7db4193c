import os

import fsspec
import pytest

from penstock.batch.sources import files, open_source
from penstock.errors import InputError, MissingExtraError


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"a": 1}\n')


def names(folder, found):
    return [file.path.removeprefix(f"{folder}/") for file in found]


def test_directories_and_globs_are_sorted(tmp_path):
    make(tmp_path, "b.jsonl", "a/c.jsonl", "a.jsonl", "_x.jsonl", ".h.jsonl", "o.jsonl.penstock/p.jsonl", "readme.md")
    assert names(tmp_path, files.find(str(tmp_path))) == ["a.jsonl", "b.jsonl", "a/c.jsonl"]
    assert names(tmp_path, files.find(f"{tmp_path}/*.jsonl")) == ["_x.jsonl", "a.jsonl", "b.jsonl"]
    assert names(tmp_path, files.find(f"{tmp_path}/**/c.jsonl")) == ["a/c.jsonl"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("absent.jsonl", "no such file"),
        ("*.jsonl", "no file matches"),
        ("empty", "no data files.*known extensions are .jsonl, .ndjson, .csv, .parquet"),
        ("x.txt", r"unknown extension; known are .jsonl"),
        ("x.parquet.gz", "unknown extension"),
        ("mixed", "several forms"),
    ],
)
def test_what_cannot_be_read_is_one_clear_line(tmp_path, pattern, message):
    make(tmp_path, "x.txt", "x.parquet.gz", "mixed/a.jsonl", "mixed/b.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message) as caught:
        files.find(str(tmp_path / pattern))
    assert "\n" not in str(caught.value)


def test_a_name_with_magic_characters_is_a_name_first(tmp_path):
    make(tmp_path, "a[1].jsonl")
    assert names(tmp_path, files.find(f"{tmp_path}/a[1].jsonl")) == ["a[1].jsonl"]


def test_fingerprints_tell_data_apart(tmp_path):
    make(tmp_path, "a.jsonl", "b.jsonl")
    pattern = str(tmp_path / "*.jsonl")
    before = files.fingerprint(pattern, files.find(pattern))
    assert before == files.fingerprint(pattern, files.find(pattern))
    (tmp_path / "b.jsonl").write_text('{"a": 2}\n')
    assert files.fingerprint(pattern, files.find(pattern)) != before


async def test_urls():
    memory = fsspec.filesystem("memory")
    memory.pipe("/data/a.jsonl", b'{"a": 1}\n')
    memory.pipe("/data/b.jsonl", b'{"a": 2}\n')
    for url in ("memory://data", "memory://data/*.jsonl"):
        source = await open_source(url)
        assert [row.values for batch in source.batches() for row in batch] == [{"a": 1}, {"a": 2}]
        assert source.fingerprint is not None
        assert source.fingerprint["input files"] == 2
    with pytest.raises(InputError, match="no such file"):
        await open_source("memory://data/absent.jsonl")


async def test_urls_of_unknown_or_missing_file_systems():
    with pytest.raises(InputError, match="nosuch"):
        await open_source("nosuch://x/a.jsonl")
    with pytest.raises(MissingExtraError, match=r"penstock\[s3\]"):
        await open_source("s3://bucket/a.jsonl")


def test_the_middle_of_a_file_counts(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * 200_001)
    before = files.fingerprint(str(path), files.find(str(path)))
    path.write_bytes(b"x" * 100_000 + b"y" + b"x" * 100_000)
    assert files.fingerprint(str(path), files.find(str(path))) != before
    monkeypatch.setattr(files, "_HASHED_BYTES", 1000)
    before = files.fingerprint(str(path), files.find(str(path)))
    os.utime(path, ns=(1, 1))
    assert files.fingerprint(str(path), files.find(str(path))) != before
