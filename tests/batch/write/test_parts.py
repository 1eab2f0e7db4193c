import random

from penstock.batch.write.parts import RowSet, in_order, size, union, without


def rows_of(runs):
    return [row for start, stop in runs for row in range(start, stop)]


def test_in_order_keeps_the_order_and_joins_what_follows():
    assert in_order([3, 4, 5, 1, 2, 9]) == [(3, 6), (1, 3), (9, 10)]
    assert in_order([]) == []


def test_union_joins_runs_that_touch_or_overlap():
    assert union([(5, 7), (0, 2)], [(2, 3), (6, 9)]) == [(0, 3), (5, 9)]


def test_set_operations_agree_with_python_sets():
    draw = random.Random(1)
    for _ in range(300):
        first = in_order(draw.sample(range(40), draw.randrange(20)))
        second = union(in_order(draw.sample(range(40), draw.randrange(20))))
        assert rows_of(union(first, second)) == sorted({*rows_of(first), *rows_of(second)})
        removed = set(rows_of(second))
        assert rows_of(without(first, second)) == [
            row for row in rows_of(first) if row not in removed
        ]


def test_row_set_knows_its_rows_and_gaps():
    rows = RowSet([(4, 6), (0, 2), (6, 8)])
    assert [row for row in range(10) if row in rows] == [0, 1, 4, 5, 6, 7]
    assert len(rows) == size(rows.runs) == 6
    assert [rows.first_missing(start) for start in (0, 2, 3, 4, 7, 8)] == [2, 2, 3, 8, 8, 8]
    assert RowSet().first_missing() == 0
