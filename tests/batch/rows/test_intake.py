import itertools
import random

from penstock.batch.rows.intake import by_prefix, shared
from penstock.batch.rows.row import Row


def row(index, prefix):
    made = Row(index, {})
    made.prefix = prefix
    return made


def test_shared_counts_equal_characters_at_the_start():
    draw = random.Random(2)
    for _ in range(200):
        first, second = ("".join(draw.choices("ab", k=draw.randrange(9))) for _ in range(2))
        expected = 0
        while expected < min(len(first), len(second)) and first[expected] == second[expected]:
            expected += 1
        assert shared(first, second) == expected


def test_rows_with_a_long_common_beginning_come_together():
    documents = [f"document {number} ".ljust(300, ".") for number in range(8)]
    rows = [row(index, documents[index % 8] + f"question {index}") for index in range(64)]
    arranged = by_prefix(rows)
    assert sorted(r.index for r in arranged) == list(range(64))
    changes = sum(a.prefix[:300] != b.prefix[:300] for a, b in itertools.pairwise(arranged))
    assert changes == 7


def test_what_all_prompts_share_is_no_reason_to_leave_the_order():
    rows = [
        row(index, "You are a helpful clerk. " * 40 + f"{index * 7919 % 997}")
        for index in range(100)
    ]
    assert by_prefix(rows) == rows


def test_short_beginnings_are_no_reason_either():
    rows = [row(index, f"{index * 7 % 10} " + str(index) * 60) for index in range(50)]
    assert by_prefix(rows) == rows


def test_few_rows_stay_as_they_are():
    rows = [row(0, "b" * 500), row(1, "a" * 500)]
    assert by_prefix(rows) == rows
    assert by_prefix([]) == []
