"""Whatever rows hold stands in the output as it is, or as its documented text, or the job says that
it cannot.
"""

import asyncio
import csv
import dataclasses
import datetime
import enum
import json
import pathlib
import shutil
import tempfile
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

import penstock
from penstock.batch.values.arrow import python_rows
from penstock.batch.write import sinks
from survival import Ticks, agrees

FORMS = ("jsonl", "csv", "parquet")
few = settings(
    max_examples=3,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
many = settings(few, max_examples=150)


@pytest.fixture(autouse=True)
def parts_of_two_rows(monkeypatch):
    monkeypatch.setattr(sinks, "PART_ROWS", 2)


class Colour(enum.Enum):
    RED = "red"
    FIVE = 5


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: float


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
zones = st.one_of(
    st.none(), st.timezones(), st.just(datetime.timezone(datetime.timedelta(hours=5, minutes=45)))
)
numbers = st.one_of(
    st.integers(-5, 5),
    st.integers(-(2**63), 2**64),
    st.integers(-(2**80), 2**80),
    st.sampled_from([2**53 + 1, 2**63, 0]),
    st.floats(),
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    numbers,
    text,
    st.binary(max_size=4),
    st.decimals(),
    st.dates(),
    st.datetimes(timezones=zones, allow_imaginary=False),
    st.times(),
    st.timedeltas(),
    st.uuids(),
    st.sampled_from(
        [*Colour, pathlib.PurePosixPath("/a b/c"), Point(1, 0.5), "lone \ud800", (1, "a"), {3, 1}]
    ),
    st.builds(np.datetime64, st.integers(-(2**62), 2**62), st.sampled_from(["ns", "us"])).filter(
        lambda value: np.datetime_data(value.dtype)[0] == "ns" or abs(value.astype("int64")) < 2**53
    ),
    st.builds(np.timedelta64, st.integers(-(2**62), 2**62), st.just("ns")),
    st.builds(np.float32, st.floats(width=32)),
    st.builds(np.int8, st.integers(-128, 127)),
    st.builds(np.uint64, st.integers(0, 2**64 - 1)),
    st.complex_numbers(allow_nan=False, max_magnitude=1e6),
    st.builds(lambda size: np.arange(size * 2).reshape(size, 2), st.integers(0, 700)),
    st.just(np.ma.array([1, 2], mask=[False, True]).tolist()),
)
keys = st.one_of(st.sampled_from(["a", "b", "c.d", ""]), st.integers(0, 3), st.none())
nested = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)
whole = st.integers(-5, 5)
long = st.sampled_from([2**53 + 1, 3, 2**63 + 5, -(2**63)])
aware = st.datetimes(
    timezones=st.timezones() | st.just(datetime.timezone(datetime.timedelta(hours=5, minutes=45)))
)
FAMILIES: list[list[st.SearchStrategy]] = [
    [whole, long, st.floats(), st.booleans()],
    [whole, st.sampled_from([2**53 - 1, 2**63 + 5]), st.sampled_from([0.5, 1e300])],
    [whole, st.decimals(allow_nan=False), st.sampled_from([0.1, 0.5])],
    [st.dates(), st.datetimes(), text],
    [st.datetimes(), aware],
    [aware, st.builds(np.datetime64, st.integers(-(2**62), 2**62), st.just("ns"))],
    [st.timedeltas(), st.builds(np.timedelta64, st.integers(-(2**62), 2**62), st.just("ns"))],
    [st.binary(max_size=3), text, whole],
    [st.lists(whole), st.lists(long, min_size=1), st.lists(st.floats())],
    [
        st.dictionaries(st.sampled_from("ab"), numbers),
        st.just({}),
        st.lists(st.dictionaries(text, whole, max_size=2)),
    ],
    [scalars],
    [nested],
]


@st.composite
def drifting(draw):
    """Rows whose columns change their kind on the way."""
    columns: dict[str, list] = {}
    for number, family in enumerate(FAMILIES):
        values = columns[f"{number}.x"] = []
        for _ in range(3):
            values += draw(
                st.lists(st.none() | draw(st.sampled_from(family)), min_size=1, max_size=3)
            )
    count = max(map(len, columns.values()))
    return [
        {name: values[number] for name, values in columns.items() if number < len(values)}
        for number in range(count)
    ]


ARROW = {
    **{str(kind): (st.integers(-(2 ** (kind.bit_width - 1)), 2 ** (kind.bit_width - 1) - 1), kind)
       for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64())},
    **{str(kind): (st.integers(0, 2**kind.bit_width - 1), kind)
       for kind in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())},
    "small": (st.integers(-5, 5), pa.int64()),
    "float": (st.floats(width=32), pa.float32()),
    "half": (st.floats(width=16), pa.float16()),
    "double": (st.floats(), pa.float64()),
    "bool": (st.booleans(), pa.bool_()),
    "null": (st.none(), pa.null()),
    "text": (text, pa.string()),
    "large": (text, pa.large_string()),
    "view": (text, pa.string_view()),
    "binary": (st.binary(max_size=3), pa.binary()),
    "fixed": (st.binary(min_size=2, max_size=2), pa.binary(2)),
    "decimal": (st.decimals(-999, 999, places=3), pa.decimal128(9, 3)),
    "wide": (st.decimals(-(10**40), 10**40, places=2), pa.decimal256(60, 2)),
    "tags": (st.sampled_from(["x", "y"]), pa.dictionary(pa.int8(), pa.string())),
    "uuid": (st.uuids().map(lambda value: value.bytes), pa.uuid()),
    "pairs": (
        st.lists(st.tuples(text, st.integers(0, 9)), max_size=2),
        pa.map_(pa.string(), pa.int32()),
    ),
    "list": (st.lists(st.none() | st.integers(-9, 9), max_size=3), pa.list_(pa.int64())),
    "floats": (st.lists(st.floats(), min_size=2, max_size=2), pa.list_(pa.float64(), 2)),
    "big list": (st.lists(st.integers(2**63, 2**64 - 1), max_size=2), pa.large_list(pa.uint64())),
    "struct": (st.fixed_dictionaries({"a": st.integers(0, 9), "b": st.none() | text}),
               pa.struct([("a", pa.int64()), ("b", pa.string())])),
    "other struct": (
        st.fixed_dictionaries({"a": st.floats(allow_nan=False)}),
        pa.struct([("a", pa.float64())]),
    ),
}  # fmt: skip
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
INTEGERS = [name for name, (_, kind) in ARROW.items() if pa.types.is_integer(kind)]
ARROW_FAMILIES = [
    INTEGERS,
    [*INTEGERS, "float", "half", "double"],
    ["small", "int8", "double"],
    ["small", "decimal", "wide", "double"],
    ["text", "large", "view", "tags", "null", "uuid"],
    ["binary", "fixed", "text"],
    ["list", "floats", "big list"],
    ["struct", "other struct", "pairs"],
    sorted(ARROW),
    *(["clock"], ["instant"], ["length"], ["time"], ["clock", "instant", "day"]),
]


@st.composite
def arrow_column(draw, name, count):
    """A column of a type with this name, and the values that it was given."""
    empty = [draw(st.integers(0, 3)) == 0 for _ in range(count)]
    if name in ARROW:
        values, kind = ARROW[name]
        drawn = [None if gone else draw(values) for gone in empty]
        if kind == pa.uuid():
            storage = pa.array(drawn, pa.binary(16))
            return storage.cast(kind), [
                None if value is None else uuid.UUID(bytes=value) for value in drawn
            ]
        return pa.array(drawn, kind), drawn
    unit = draw(st.sampled_from(sorted(PER_SECOND)))
    size = 2**62 if unit != "s" else 2**50
    ticks = st.integers(-size, size) | st.integers(-(10**9), 10**9)
    step = 10**9 // PER_SECOND[unit]
    kind = pa.timestamp(unit)
    if name == "day":
        step, kind = 86400 * 10**9, pa.date32()
        ticks = st.integers(-(2**31), 2**31 - 1) | st.integers(-(10**6), 10**6)
    elif name == "time":
        ticks = st.integers(0, 86400 * PER_SECOND[unit] - 1)
        kind = pa.time32(unit) if unit in ("s", "ms") else pa.time64(unit)
    elif name == "length":
        kind = pa.duration(unit)
    elif name == "instant":
        kind = pa.timestamp(
            unit, draw(st.sampled_from(["UTC", "Asia/Kolkata", "America/New_York", "+02:00"]))
        )
    drawn = [None if gone else draw(ticks) for gone in empty]
    stored = pa.int32() if kind.bit_width == 32 else pa.int64()
    return pa.array(drawn, stored).cast(kind), [
        None if tick is None else Ticks(name, tick * step) for tick in drawn
    ]


@st.composite
def arrow_tables(draw):
    """Some tables with the same columns, of the same types or others, and all their rows."""
    tables, rows = [], []
    for _ in range(3):
        count = draw(st.integers(1, 3))
        columns, given = {}, {}
        for number, family in enumerate(ARROW_FAMILIES):
            name = f"c{number}.{number}"
            columns[name], given[name] = draw(arrow_column(draw(st.sampled_from(family)), count))
        tables.append(pa.table({"text": ["x"] * count, **columns}))
        rows += [
            {name: values[number] for name, values in given.items()} for number in range(count)
        ]
    return tables, rows


def run(source, output, **options):
    """The output rows, read with other means than those that wrote them."""

    async def job():
        return await penstock.arun(
            source,
            output,
            engine="simulated",
            model="x",
            prompt="{text}",
            progress=False,
            **options,
        )

    result = asyncio.run(job())
    if output is None:
        return python_rows(result.table())
    path = pathlib.Path(output)
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_bytes().splitlines()]
    if path.suffix == ".csv":
        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    return python_rows(pq.read_table(path))


def check(source, rows, form, **options):
    folder = pathlib.Path(tempfile.mkdtemp())
    try:
        if isinstance(source, list) and isinstance(source[0], pa.Table):
            (folder / "in").mkdir()
            for number, table in enumerate(source):
                pq.write_table(table, folder / "in" / f"{number}.parquet")
            source = folder / "in"
        found = run(source, None if form is None else folder / f"out.{form}", **options)
    finally:
        shutil.rmtree(folder)
    assert len(found) == len(rows)
    for row, wanted in zip(found, rows, strict=True):
        assert row["status"] == "ok", row["error"]
        for name, value in wanted.items():
            if name in row or form != "csv":
                assert agrees(row[name], value), (name, row[name], value)
            else:  # an object, taken apart
                assert agrees(apart(row, name), value), (name, row, value)


def apart(row, name):
    """An object of a CSV put together again."""
    made = {}
    for column, value in row.items():
        if column.startswith(f"{name}."):
            made[column.removeprefix(f"{name}.")] = value
    return made


@few
@given(drifting(), st.sampled_from(["jsonl", "parquet", None]))
def test_python_values_survive(rows, form):
    check([{"text": "x", **row} for row in rows], rows, form)


@few
@given(arrow_tables(), st.sampled_from(["jsonl", "parquet"]))
def test_arrow_values_survive(tables_and_rows, form):
    tables, rows = tables_and_rows
    check(tables, rows, form)


@pytest.mark.nightly
@many
@given(drifting(), st.sampled_from(["jsonl", "parquet", None]))
def test_more_python_values_survive(rows, form):
    check([{"text": "x", **row} for row in rows], rows, form)


@pytest.mark.nightly
@many
@given(arrow_tables(), st.sampled_from(["jsonl", "parquet"]))
def test_more_arrow_values_survive(tables_and_rows, form):
    tables, rows = tables_and_rows
    check(tables, rows, form)
