import bz2
import gzip
import io
import lzma
import os
from collections.abc import Callable
from typing import Any

import fsspec
import pyarrow as pa
import pytest

from penstock.batch.read import open_source
from penstock.batch.read.compressed import COMPRESSED, decompressed
from penstock.errors import InputError

ROWS = [{"a": number, "b": "x" * number} for number in range(50)]
LINES = b"".join(b'{"a": %d, "b": "%b"}\n' % (number, b"x" * number) for number in range(50))
TABLE = b"a,b\n" + b"".join(b"%d,%b\n" % (number, b"x" * number) for number in range(50))
PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}


async def values(source):
    opened = await open_source(source)
    return [row.values for batch in opened.batches() for row in batch]


def test_each_compression_is_tested():
    assert tuple(PACK) == COMPRESSED


@pytest.mark.parametrize("extension", COMPRESSED)
async def test_in_files_directories_globs_and_urls(tmp_path, extension):
    packed = PACK[extension](LINES)
    (tmp_path / f"rows.jsonl{extension}").write_bytes(packed)
    (tmp_path / f"ROWS.CSV{extension.upper()}").write_bytes(PACK[extension](TABLE))
    assert await values(tmp_path / f"rows.jsonl{extension}") == ROWS
    assert await values(tmp_path / f"ROWS.CSV{extension.upper()}") == [
        {name: str(value) for name, value in row.items()} for row in ROWS
    ]
    assert await values(f"{tmp_path}/*.jsonl{extension}") == ROWS
    (tmp_path / f"ROWS.CSV{extension.upper()}").unlink()
    assert await values(tmp_path) == ROWS
    fsspec.filesystem("memory").pipe(f"/packed/rows.jsonl{extension}", packed)
    assert await values(f"memory://packed/rows.jsonl{extension}") == ROWS
    assert await values("memory://packed/*.jsonl" + extension) == ROWS


@pytest.mark.parametrize("extension", COMPRESSED)
async def test_members_make_one_file(tmp_path, extension):
    path = tmp_path / f"rows.jsonl{extension}"
    middle = len(LINES) // 2
    pack = PACK[extension]
    path.write_bytes(pack(LINES[:middle]) + pack(b"") + pack(LINES[middle:]))
    assert await values(path) == ROWS


@pytest.mark.parametrize("extension", COMPRESSED)
async def test_an_empty_file_has_no_rows(tmp_path, extension):
    path = tmp_path / f"rows.jsonl{extension}"
    for data in (b"", PACK[extension](b"")):
        path.write_bytes(data)
        assert await values(path) == []


@pytest.mark.parametrize("extension", COMPRESSED)
@pytest.mark.parametrize(
    "damage", ["cut", "cut to nothing", "garbage", "damaged second", "plain", "flipped"]
)
async def test_damage_is_told_with_the_name(tmp_path, extension, damage):
    packed = PACK[extension](LINES)
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 0xFF
    data = {
        "cut": packed[:-5],
        "cut to nothing": packed[:5],
        "garbage": packed + b"garbage of some length",
        "damaged second": packed + b"\x01" + packed[1:],
        "plain": LINES,
        "flipped": bytes(flipped),
    }[damage]
    path = tmp_path / f"rows.jsonl{extension}"
    path.write_bytes(data)
    with pytest.raises(
        InputError,
        match=rf"rows\.jsonl{extension}: the compressed data are damaged or cut off, or were never",
    ):
        await values(path)


@pytest.mark.parametrize("extension", [".gz", ".bz2", ".xz"])
async def test_padding_is_no_damage(tmp_path, extension):
    path = tmp_path / f"rows.jsonl{extension}"
    path.write_bytes(PACK[extension](LINES) + bytes(1024))
    assert await values(path) == ROWS


@pytest.mark.parametrize("extension", COMPRESSED)
async def test_what_is_compressed_behind_another_name_is_told(tmp_path, monkeypatch, extension):
    for name in ("rows.jsonl", "rows.csv"):
        (tmp_path / name).write_bytes(PACK[extension](LINES))
        with pytest.raises(InputError, match=rf"{name}: is compressed, as \*{extension} files are"):
            await values(tmp_path / name)
    (tmp_path / f"rows.jsonl{extension}").write_bytes(PACK[extension](PACK[extension](LINES)))
    with pytest.raises(InputError, match="compressed twice: decompress it once"):
        await values(tmp_path / f"rows.jsonl{extension}")
    reading = os.open(tmp_path / "rows.jsonl", os.O_RDONLY)
    monkeypatch.setattr("penstock.batch.read.text._STDIN", reading)
    with pytest.raises(InputError, match=rf"stdin: is compressed, as \*{extension} files are"):
        await open_source("-")
    os.close(reading)


@pytest.mark.parametrize("extension", COMPRESSED)
def test_closing_closes_the_file_below(tmp_path, extension):
    raw = io.BytesIO(PACK[extension](LINES))
    decompressed(raw, f"a{extension}").close()
    assert raw.closed


@pytest.mark.parametrize("extension", COMPRESSED)
def test_what_is_read_is_bounded_however_much_it_becomes(extension):
    packed = PACK[extension](bytes(1 << 24))
    stream: Any = decompressed(io.BytesIO(packed), f"a{extension}")
    assert len(stream.read1(1000)) <= 1000
    assert sum(len(block) for block in iter(lambda: stream.read1(1 << 16), b"")) > (1 << 24) - 1001
