from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta, Struct

from penstock import validation
from penstock.validation import loosened, mismatch


class Inner(Struct):
    kind: Literal["big", "small"] | None = None
    weights: dict[str, float] = {}


class Strict(Struct, forbid_unknown_fields=True):
    a: int = 0
    b: int = 0


class Outer(Struct):
    name: str
    count: Annotated[int, Meta(ge=1, le=9)] = 1
    share: Annotated[float, Meta(gt=0)] | None = None
    flag: bool = False
    parts: list[Inner] = []
    pair: tuple[int, str] | None = None
    stop: str | Annotated[list[str], Meta(min_length=1, max_length=2)] = ""
    inner: Inner | None = None
    anything: Any = None
    strict: Strict | None = None


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (5, "it must be an object, not 5"),
        ({}, "name is missing"),
        ({"name": None}, "name must be text, not null"),
        (
            {"name": "x", "share": 10**400},
            "share is too large a number",
        ),
        ({"name": "x", "count": True}, "count must be an integer, not true"),
        ({"name": "x", "count": 1.0}, "count must be an integer, not 1.0"),
        ({"name": "x", "count": 0}, "count must be at least 1, not 0"),
        ({"name": "x", "count": 10}, "count must be at most 9, not 10"),
        ({"name": "x", "count": 1 << 70}, f"count must be at most 9, not {1 << 70}"),
        ({"name": "x", "share": 0}, "share must be more than 0, not 0"),
        ({"name": "x", "share": "half"}, "share must be a number or null, not 'half'"),
        ({"name": "x", "flag": 1}, "flag must be a boolean, not 1"),
        ({"name": "x", "parts": {}}, "parts must be a list, not an object"),
        ({"name": "x", "parts": [{}, 3]}, "parts[1] must be an object, not 3"),
        (
            {"name": "x", "parts": [{}, {"weights": {"a": "b"}}]},
            "parts[1].weights.a must be a number, not 'b'",
        ),
        ({"name": "x", "pair": [1, 2]}, "pair[1] must be text, not 2"),
        ({"name": "x", "pair": [1]}, "pair must be a list of 2 or null, not a list"),
        ({"name": "x", "stop": 3}, "stop must be text or a list, not 3"),
        ({"name": "x", "stop": []}, "stop has a length below 1"),
        ({"name": "x", "stop": ["a", "b", "c"]}, "stop has a length above 2"),
        ({"name": "x", "stop": ["a", 3]}, "stop[1] must be text, not 3"),
        (
            {"name": "x", "inner": {"kind": "bag"}},
            "inner.kind must be 'big', 'small' or null, not 'bag'",
        ),
        ({"name": "x", "strict": {"c": [1]}}, "strict.c is unknown, and was a list. Known: a, b"),
        ({"name": "x", "strict": {"a": 1, "c": 5}}, "strict.c is unknown, and was 5. Known: a, b"),
        (
            {"name": "x", "anything": {"a": [1]}, "flag": "yes" * 50},
            f"flag must be a boolean, not 'yesyes{'yes' * 11}…",
        ),
    ],
)
def test_misfits(value, told):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(value, Outer, strict=True)
    assert str(mismatch(Outer, value)) == told


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ({"name": "x", "count": "3"}, {"name": "x", "count": 3}),
        ({"name": "x", "count": 3.0}, {"name": "x", "count": 3}),
        ({"name": "1", "share": "0.5"}, {"name": "1", "share": 0.5}),
        ({"name": "x", "flag": "false"}, {"name": "x", "flag": False}),
        ({"name": "x", "flag": 1}, {"name": "x", "flag": True}),
        ({"parts": [{"weights": {"a": "2"}}]}, {"parts": [{"weights": {"a": 2.0}}]}),
        ({"other": "3", "share": "nan"}, {"other": "3", "share": "nan"}),
        ({"count": "x", "share": "inf", "flag": 2}, {"count": "x", "share": "inf", "flag": 2}),
        ({"count": True, "share": [1]}, {"count": True, "share": [1]}),
    ],
)
def test_texts_are_read_where_numbers_are_meant(value, read):
    assert loosened(Outer, value) == read


def test_choices_come_with_it():
    found = mismatch(Outer, {"name": "x", "inner": {"kind": "bag"}})
    assert (found.place, found.value, sorted(found.choices)) == (
        "inner.kind",
        "bag",
        ["big", "small"],
    )


def test_long_values_are_not_searched_one_by_one(monkeypatch):
    monkeypatch.setattr(validation, "_SEARCHED", 2)
    wrong = [{}, {}, {}, {"weights": {"a": "b"}}]
    assert str(mismatch(Outer, {"name": "x", "parts": wrong})) == (
        "parts[3].weights.a must be a number, not 'b'"
    )
    weights = {"a": 1, "b": 2, "c": "d"}
    found = mismatch(Outer, {"name": "x", "inner": {"weights": weights}})
    assert str(found) == "inner.weights does not have the right form"
