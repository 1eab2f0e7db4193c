"""Which requests are read side by side."""

import random
from types import SimpleNamespace
from typing import Any

from penstock.engines.openvino.logits.trees import beginning, begins, side_by_side

MODEL: Any = SimpleNamespace(batch=100, asked=8, rows=lambda length: 1000 // length)
LONG = list(range(100, 120))


def sized(*sizes, asks=1):
    return [SimpleNamespace(size=size, asks=asks) for size in sizes]


def test_the_first_is_read_with_others_of_its_length():
    small = sized(20, 50, 19, 48, 21, 20)
    assert [one.size for one in side_by_side(small, MODEL, 0)] == [21, 20, 20, 19]
    assert [one.size for one in side_by_side(small[1:], MODEL, 0)] == [50, 48]


def test_all_are_read_with_little_filling():
    numbers = random.Random(3)
    waiting = sized(*(numbers.randint(10, 30) for _ in range(200)))
    slots = tokens = 0
    while waiting:
        group = side_by_side(waiting, MODEL, 0)
        assert waiting[0] in group
        longest = max(one.size for one in group)
        assert longest * len(group) <= MODEL.batch
        slots += longest * len(group)
        tokens += sum(one.size for one in group)
        waiting = [one for one in waiting if one not in group]
    assert slots < 1.06 * tokens


def test_what_is_read_before_leaves_room_for_more_of_them():
    small = sized(*[50] * 30)
    assert len(side_by_side(small, MODEL, 0)) == 2
    assert len(side_by_side(small, MODEL, 40)) == 8  # as many places may be asked for
    assert len(side_by_side(sized(*[250] * 9), MODEL, 240)) == 4  # as many have KV caches


def test_one_that_asks_for_more_is_read_alone():
    assert len(side_by_side(sized(10, 10, asks=5), MODEL, 0)) == 1


def test_the_beginning_is_kept_until_another_is_worth_it():
    heads = [[*LONG, 1, 5], [*LONG, 1, 6], [*LONG, 2]]
    assert beginning(heads, []) == LONG
    assert beginning(heads[:2], LONG) == LONG
    assert beginning([[*LONG, 3]], LONG) == LONG
    assert beginning([[7, 8], [*LONG, 3]], LONG) == LONG
    longer = [*LONG, *range(8)]
    assert beginning([[*longer, 1], [*longer, 2]], LONG) == longer
    assert beginning([LONG, LONG], []) == LONG[:-1]  # a token is left to read
    assert not begins(LONG, LONG)
    assert begins(LONG, LONG[:-1])
