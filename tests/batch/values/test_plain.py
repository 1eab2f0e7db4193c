"""What single values become: the table of docs/batch.md."""

import dataclasses
import datetime
import decimal
import enum
import fractions
import io
import pathlib
import pickle
import types
import uuid
import zoneinfo

import msgspec
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from PIL import Image

from penstock.batch.values.arrow import array
from penstock.batch.values.nanoseconds import (
    NanoDatetime,
    NanoTime,
    NanoTimedelta,
    date_text,
    duration_text,
)
from penstock.batch.values.packed import pack, unpack
from penstock.batch.values.plain import UnstorableError, json_line, plain, plain_row, text


class Colour(enum.Enum):
    RED = "red"


class Size(enum.IntEnum):
    BIG = 3


@dataclasses.dataclass
class Point:
    x: int
    tags: set


class Struct(msgspec.Struct):
    when: datetime.date


class Modelled:
    def model_dump(self):
        return {"a": Colour.RED}


BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
RECORD = np.array([(1, 2.5, "x")], dtype=[("a", "i4"), ("b", "f8"), ("c", "U3")])
MASK = np.array([(True, False, False)], [("a", bool), ("b", bool), ("c", bool)])
NS = np.datetime64("2024-01-02T03:04:05.000000006")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("nan"), "NaN"),
        (float("-inf"), "-Infinity"),
        (2**70, 2**70),
        (decimal.Decimal("1.50"), "1.50"),
        (b"\x00", "AA=="),
        (bytearray(b"\x00"), "AA=="),
        (datetime.date(2024, 1, 2), "2024-01-02"),
        (datetime.datetime(2024, 1, 2, tzinfo=BERLIN), "2024-01-02T00:00:00+01:00"),
        (datetime.datetime(1880, 1, 1, tzinfo=BERLIN), "1880-01-01T00:00:00+00:53:28"),
        (datetime.time(1, tzinfo=BERLIN), "01:00:00[Europe/Berlin]"),
        (datetime.timedelta(days=1, microseconds=3), "P1DT0.000003S"),
        (Colour.RED, "red"),
        (Size.BIG, 3),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (pathlib.Path("/a b"), "/a b"),
        (fractions.Fraction(1, 3), "1/3"),
        (complex(1, -2), "1-2j"),
        ((1, "a"), [1, "a"]),
        ({3, 1}, [1, 3]),
        ({"a", 1, None}, [None, 1, "a"]),
        (range(2), [0, 1]),
        ({1.5: 2, None: 3, True: 4, (1, "x"): 5}, {"1.5": 2, "true": 4, "null": 3, '[1,"x"]': 5}),
        (Point(1, {2}), {"x": 1, "tags": [2]}),
        (Struct(datetime.date(2024, 1, 2)), {"when": "2024-01-02"}),
        (Modelled(), {"a": "red"}),
        (types.SimpleNamespace(a=1), {"a": 1}),
        ("lone \ud800", "lone \\ud800"),
        (np.float32(0.1), 0.10000000149011612),
        (np.float16(1.5), 1.5),
        (np.longdouble("0.1"), "0.1"),
        (np.bool_(True), True),
        (np.int8(-1), -1),
        (np.datetime64("2024-01-02"), "2024-01-02"),
        (NS, "2024-01-02T03:04:05.000000006"),
        (np.datetime64("NaT", "s"), None),
        (np.datetime64(2**62, "s"), "146138514283-06-19T07:45:04"),
        (np.datetime64(5, "as"), "1970-01-01T00:00:00.000000000000000005"),
        (np.timedelta64(5, "ns"), "PT0.000000005S"),
        (np.timedelta64(5, "M"), "P5M"),
        (np.array(5), 5),
        (np.ones((2, 1)), [[1.0], [1.0]]),
        (np.array([np.nan, 1]), ["NaN", 1.0]),
        (np.array([NS]), ["2024-01-02T03:04:05.000000006"]),
        (np.ma.array([1, 2], mask=[False, True]), [1, None]),
        (
            np.ma.array(RECORD, mask=MASK),
            [{"a": None, "b": 2.5, "c": "x"}],
        ),
        (RECORD, [{"a": 1, "b": 2.5, "c": "x"}]),
        (pd.NA, None),
        (pd.NaT, None),
        (pd.Timestamp("2024-01-02T00:00:00.000000001"), "2024-01-02T00:00:00.000000001"),
        (pd.Timedelta(5, "ns"), "PT0.000000005S"),
        (pd.Interval(0, 1), "(0, 1]"),
        (pd.Period("2024-01"), "2024-01"),
        (pd.Series([1, 2]), [1, 2]),
        (pd.Categorical(["a"]), ["a"]),
        (pd.DataFrame({"a": [1]}), [{"a": 1}]),
        (pl.Series([1]), [1]),
        (pl.DataFrame({"a": [1]}), [{"a": 1}]),
        (pa.scalar(5, pa.timestamp("ns")), "1970-01-01T00:00:00.000000005"),
        (pa.array([5], pa.duration("ns")), ["PT0.000000005S"]),
        (pa.table({"a": [1]}), [{"a": 1}]),
    ],
    ids=repr,
)
def test_in_json(value, said):
    assert msgspec.json.decode(json_line({"value": value})) == {"value": said}
    assert msgspec.json.decode(json_line({"value": [{"deep": value}]})) == {
        "value": [{"deep": said}]
    }
    if isinstance(said, str):
        assert text(value) == said
        assert array([value, "text"]).to_pylist() == [said, "text"]


def test_an_integer_that_takes_long_to_write_is_hexadecimal():
    assert msgspec.json.decode(json_line({"a": 10**5000})) == {"a": hex(10**5000)}


def circle():
    made: list = []
    made.append({"again": made})
    return made


class Failing:
    def __str__(self):
        raise KeyError("a")


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (object(), "type object has no text that tells its content"),
        (lambda: 1, "type function has no text"),
        ((n for n in "ab"), "type generator has no text"),
        ({"a": [object()]}, "has no text that tells its content"),
        (circle(), "holds itself"),
        ({1: "a", "1": "b"}, "two of its keys read '1'"),
        (Failing(), "fails with KeyError"),
    ],
)
def test_what_no_output_can_hold(value, why):
    for way in (
        plain,
        text,
        lambda given: json_line({"value": given}),
        lambda given: array([given]),
    ):
        with pytest.raises(UnstorableError, match=why):
            way(value)
    row, wrong = plain_row({"good": 1, "bad": value})
    assert row == {"good": 1, "bad": None}
    assert wrong is not None
    assert "column 'bad' cannot be stored" in wrong


def nested_lists(depth):
    return [nested_lists(depth - 1)] if depth else 1


def nested_type(depth):
    return pa.list_(nested_type(depth - 1)) if depth else pa.int64()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, None, 2.5], pa.float64()),
        ([2**53 + 1, 2.5], pa.string()),
        ([2**63, 5], pa.uint64()),
        ([2**63, -5], pa.string()),
        ([2**64], pa.string()),
        ([True, 5], pa.string()),
        ([b"a", "a"], pa.string()),
        ([datetime.date(2024, 1, 2), datetime.datetime(2024, 1, 2, 5)], pa.string()),
        (
            [datetime.datetime(2024, 1, 2), datetime.datetime(2024, 1, 2, tzinfo=BERLIN)],
            pa.string(),
        ),
        ([datetime.datetime(2024, 1, 2, tzinfo=BERLIN)], pa.timestamp("us", "Europe/Berlin")),
        (
            [datetime.datetime(2024, 1, 2, tzinfo=zone) for zone in (BERLIN, datetime.UTC)],
            pa.timestamp("us", "UTC"),
        ),
        ([datetime.time(1, tzinfo=datetime.UTC)], pa.string()),
        ([datetime.timedelta.max], pa.string()),
        ([NS], pa.timestamp("ns")),
        ([NS, datetime.datetime(9999, 12, 31)], pa.string()),
        ([decimal.Decimal("1.5"), decimal.Decimal("NaN")], pa.string()),
        ([decimal.Decimal("1.5"), 0.5], pa.string()),
        ([np.arange(3), []], pa.list_(pa.int64())),
        ([{"a": 1}, {"b": [None]}], pa.struct([("a", pa.int64()), ("b", pa.list_(pa.null()))])),
        ([{"a": {}}], pa.string()),
        ([{"a": 1}, {"a": "x"}], pa.string()),
        ([{str(n): n} for n in range(1001)], pa.string()),
        ([nested_lists(30)], nested_type(30)),
        ([nested_lists(31)], pa.string()),
        ([None], pa.null()),
    ],
)
def test_in_arrow(values, kind):
    assert array(values).type == kind


def test_a_type_that_is_asked_for_holds_each_value_or_is_not_taken():
    assert array([0.1], pa.float32()).type == pa.float64()
    assert array([datetime.datetime(2024, 1, 2, 5)], pa.date32()).type == pa.timestamp("us")
    assert array(["a"], pa.binary()).type == pa.string()
    assert array([{"a": 1, "b": 2}], pa.struct([("a", pa.int64())])).to_pylist() == [
        {"a": 1, "b": 2}
    ]
    nested = pa.list_(pa.struct([("at", pa.timestamp("ns"))]))
    made = array([[{"at": NS}, None], None], nested)
    assert made.type == nested
    assert made.cast(pa.list_(pa.struct([("at", pa.int64())]))).to_pylist() == [
        [{"at": int(NS.astype("int64"))}, None],
        None,
    ]


def test_packed_values_come_back():
    zone = datetime.timezone(datetime.timedelta(hours=2))
    row = {
        "decimal": decimal.Decimal("1.50"),
        "date": datetime.date(2024, 1, 2),
        "at": datetime.datetime(2024, 1, 2, 3, tzinfo=zone),
        "time": datetime.time(1, 2, 3, 4),
        "length": datetime.timedelta(-1, 2, 3),
        "finer": [
            NanoDatetime.of(datetime.datetime(2024, 1, 2, tzinfo=zone), 5),
            NanoTime.of(datetime.time(1), 6),
            NanoTimedelta.of(datetime.timedelta(-1), 7),
        ],
        "big": {"inner": -(2**80)},
        "nan": [1.5, float("inf")],
        "bytes": b"\x00",
    }
    data, wrong = pack(row)
    assert (unpack(data), wrong) == (row, None)
    assert unpack(pack({"a": "lone \ud800"})[0]) == {"a": "lone \\ud800"}


def test_times_with_nanoseconds_are_values():
    for value in (
        NanoDatetime.of(datetime.datetime(2024, 1, 2, tzinfo=BERLIN), 5),
        NanoTime.of(datetime.time(1), 6),
        NanoTimedelta.of(datetime.timedelta(-1), 7),
    ):
        copy = pickle.loads(pickle.dumps(value))
        assert (type(copy), copy, hash(copy), str(copy)) == (
            type(value),
            value,
            hash(value),
            str(value),
        )
    assert NanoTime.of(datetime.time(1), 6) != datetime.time(1)
    assert str(NanoTime.of(datetime.time(1), 6)) == "01:00:00.000000006"
    assert str(NanoTimedelta.of(datetime.timedelta(-1), 7)) == "-PT86399.999999993S"
    assert type(NanoTime.of(datetime.time(1), 0)) is datetime.time


def test_dates_of_any_year():
    assert [date_text(days) for days in (0, 2932897, -719529, 2**31 - 1)] == [
        "1970-01-01",
        "10000-01-01",
        "-0001-12-31",
        "5881580-07-11",
    ]
    assert duration_text(0) == "P0D"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "1", "P", "CMYK"])
def test_an_image_of_pillow_is_the_file(mode):
    image = Image.new(mode, (3, 2), 1 if mode in "1LP" else None)
    made = plain(image)
    assert isinstance(made, bytes)
    read = Image.open(io.BytesIO(made))
    assert (read.format, read.size) == ("PNG", (3, 2))
    assert read.convert("RGB").tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B"])
def test_an_image_of_16_bits_keeps_them(mode):
    image = Image.new("I", (3, 2), 1000).convert("I;16")
    if mode == "I;16B":
        image = Image.frombytes(mode, image.size, (1000).to_bytes(2, "big") * 6)
    read = Image.open(io.BytesIO(plain(image.convert(mode))))
    assert read.convert("I").getextrema() == (1000, 1000)


@pytest.mark.parametrize(("mode", "pixel"), [("F", 0.5), ("I", 1 << 16), ("I", -1)])
def test_an_image_that_png_cannot_hold(mode, pixel):
    with pytest.raises(UnstorableError, match="PNG holds"):
        plain(Image.new(mode, (3, 2), pixel))
