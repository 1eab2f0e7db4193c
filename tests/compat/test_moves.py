"""How bench/ray_moves.py compares the rows of Ray with ours."""

import runpy
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCH)
        yield runpy.run_path(str(BENCH / "ray_moves.py"))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("a", "a", True),
        ([1, 2], [1, 3], False),
        ([1, 2], [1, 2, 3], False),
        ({"1": {"logprob": -0.5}}, {"1": {"logprob": -0.5004}}, True),
        ({"1": {"logprob": -0.5}}, {"1": {"logprob": -0.6}}, False),
        ({"1": {"logprob": -0.5}}, {"2": {"logprob": -0.5}}, False),
        (None, "", False),
        ([None, 1.0], [None, 1.0], True),
    ],
)
def test_what_is_equal(bench, one, other, same):
    assert bench["equal"](one, other) is same


def test_rows_that_differ_are_named_by_column(bench):
    row = dict.fromkeys(bench["COLUMNS"], "a")
    found = bench["compared"]([row, row], [row, {**row, "prompt": "b"}])
    assert found.pop("prompt") == [1]
    assert not any(found.values())
