"""Whatever a file holds, reading it ends: in rows and error rows, or in one error that names the
file.
"""

import asyncio
import bz2
import datetime
import gzip
import io
import lzma
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from penstock.batch.read import open_source
from penstock.errors import InputError

LINES = (
    b'\xef\xbb\xbf{"id": 1, "text": "\xc3\xa9"}\r\n\n{"id": 2, "text": null, "n": [1.5, {"a":'
    b' "\\u00e9"}]}\n{"id": 3}'
)
TABLE = b'\xef\xbb\xbfid,text,n\r\n1,"a ""b"", c",\n2,"two\nlines",3.5\n\n3,\xc3\xa9\n'
PIECES = [
    b"", b"\n", b"\r", b"\r\n", b"\0", b'"', b"'", b",", b"{", b"}", b"[", b"]", b"\\", b"\\ud800",
    b" ",
    b"\xff", b"\xfe\xff", b"\xc3", b"\xf0\x9f\x98\x80", b"\xef\xbb\xbf", b"\x1f\x8b", b"PAR1",
    b"NaN", b"1e999", b"-", b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b'"' * 999, b"," * 999,
    b"null", b'{"id": 4}', b"\n[1]\n",
]  # fmt: skip


def parquet(**options):
    noon = datetime.datetime(2026, 1, 1, 12)
    table = pa.table(
        {
            "id": pa.array([1, 2, None], pa.uint64()),
            "text": ["a", "é" * 40, None],
            "at": pa.array([noon, None, noon], pa.timestamp("us", "Europe/Berlin")),
            "day": pa.array([0, 1, 2], pa.date32()),
            "nested": pa.array([[{"a": 1, "b": "x"}], [], None]),
            "kind": pa.array(["x", "y", "x"]).dictionary_encode(),
            "raw": [b"\0\xff", b"", None],
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


PARQUETS = [
    parquet(compression="none"),
    parquet(compression="snappy", write_page_checksum=True),
    parquet(compression="zstd", row_group_size=1, use_dictionary=False, data_page_version="2.0"),
]


@st.composite
def mutations(draw, good, pieces=PIECES):
    """Good data with some of it cut, doubled, overwritten, flipped or interspersed."""
    data = bytearray(draw(good if isinstance(good, st.SearchStrategy) else st.just(good)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 40))
        piece = draw(st.one_of(st.sampled_from(pieces), st.binary(max_size=8)))
        match draw(st.sampled_from(["insert", "overwrite", "cut", "end", "double", "flip"])):
            case "insert":
                data[at:at] = piece
            case "overwrite":
                data[at : at + len(piece)] = piece
            case "cut":
                del data[at : at + length]
            case "end":
                del data[at:]
            case "double":
                data[at:at] = data[at : at + length]
            case "flip":
                if at < len(data):
                    data[at] ^= 1 << draw(st.integers(0, 7))
    return bytes(data)


def read(path):
    """Read all rows of the file, as a job does."""

    async def everything():
        source = await open_source(path)
        found = [row for batch in source.batches() for row in batch]
        half = [row.index for batch in source.batches(len(found) // 2) for row in batch]
        return found, half

    refusal = None
    try:
        found, half = asyncio.run(everything())
    except InputError as error:
        refusal = str(error)
    if refusal is not None:
        assert path.name in refusal
        assert "\n" not in refusal
        return
    assert [row.index for row in found] == list(range(len(found)))
    assert half == list(range(len(found) // 2, len(found)))
    for row in found:
        if row.fault is not None:
            assert path.name in row.fault
        if row.fault is None or row.values is not None:
            assert isinstance(row.values, dict)
            str(row.values).encode()  # all of it is Unicode


def fuzz(examples):
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[
            HealthCheck.function_scoped_fixture,
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
        ],
    )


PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}


def fuzzed(examples):
    """The tests, each with so many examples."""

    @fuzz(examples)
    @given(data=st.one_of(mutations(LINES), st.binary(max_size=200)))
    def test_lines(tmp_path, data):
        (tmp_path / "rows.jsonl").write_bytes(data)
        read(tmp_path / "rows.jsonl")

    @fuzz(examples)
    @given(data=st.one_of(mutations(TABLE), st.binary(max_size=200)))
    def test_csv(tmp_path, data):
        (tmp_path / "rows.csv").write_bytes(data)
        read(tmp_path / "rows.csv")

    @fuzz(examples)
    @given(
        packed=st.sampled_from(sorted(PACK)).flatmap(
            lambda end: st.tuples(st.just(end), mutations(PACK[end](LINES * 50) * 2))
        )
    )
    def test_compressed(tmp_path, packed):
        extension, data = packed
        path = tmp_path / f"rows.jsonl{extension}"
        path.write_bytes(data)
        read(path)

    @fuzz(examples)
    @given(
        data=st.one_of(
            mutations(st.sampled_from(PARQUETS), [b"", b"\0", b"\xff" * 4, b"PAR1"]),
            st.binary(max_size=99),
        )
    )
    def test_parquet(tmp_path, data):
        (tmp_path / "rows.parquet").write_bytes(data)
        read(tmp_path / "rows.parquet")

    return test_lines, test_csv, test_compressed, test_parquet


test_lines, test_csv, test_compressed, test_parquet = fuzzed(60)
test_many_lines, test_much_csv, test_much_compressed, test_much_parquet = map(
    pytest.mark.nightly, fuzzed(1500)
)
