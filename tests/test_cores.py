"""Cores, parted among engines."""

import os

import pytest

from penstock.cores import parted, pin, usable_cores


@pytest.mark.parametrize(
    ("cores", "count", "parts"),
    [
        ((0, 1), 1, [(0, 1)]),
        ((0, 1), 2, [(0,), (1,)]),
        ((0, 4, 1, 5), 2, [(0, 4), (1, 5)]),
        ((0, 1, 2), 2, [(0,), (1, 2)]),
        ((0, 1), 3, [(0,), (1,), (0,)]),
    ],
)
def test_parts_differ_by_one_core_at_most(cores, count, parts):
    assert parted(cores, count) == parts


def test_the_usable_cores_are_those_of_this_process():
    assert set(usable_cores()) == os.sched_getaffinity(0)


def test_a_process_that_is_gone_is_not_pinned():
    pin(2**22 + 1, (0,))
