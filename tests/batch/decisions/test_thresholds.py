"""The choice of a cascade's threshold: the target is met as often as promised, and calls saved."""

import math
import random

import pytest

from penstock.batch.decisions.thresholds import ALL_TO_LARGE, least_confidence


def recorded(seed, rows=3000, hard=0.2):
    """Confidences of a small model, and whether it agrees with the large one: mostly sure and
    right, in some rows unsure and then right about as often as it says.
    """
    draw = random.Random(seed)
    found = []
    for _ in range(rows):
        if draw.random() < hard:
            sure = draw.uniform(0.4, 0.9)
            found.append((sure, draw.random() < sure - 0.1))
        else:
            found.append((draw.uniform(0.9, 1.0), draw.random() < 0.985))
    return found


def outcome(rows, sample, least):
    """The share of rows with the large model's decision, and the share of its calls saved."""
    left = rows[sample:]
    stand = [same for sure, same in left if sure >= least]
    right = sample + len(left) - len(stand) + sum(stand)
    return right / len(rows), len(stand) / len(rows)


def test_the_target_is_met_in_95_of_100_runs_and_half_the_calls_are_saved():
    reached, saved = 0, []
    for seed in range(100):
        rows = recorded(seed)
        sample = rows[:200]
        sure = [confidence for confidence, _ in sample]
        least = least_confidence(sure, [same for _, same in sample], 0.95, 0.05)
        accuracy, share = outcome(rows, 200, least)
        reached += accuracy >= 0.95
        saved.append(share)
    assert reached >= 95
    assert sorted(saved)[50] >= 0.5


@pytest.mark.parametrize("delta", [0.05, 0.2])
def test_the_risk_is_kept_where_it_is_hardest(delta):
    """All rows equally sure, and a share of them wrong that is just too much."""
    draw = random.Random(1)
    missed = 0
    for _ in range(1000):
        agree = [draw.random() >= 0.051 for _ in range(200)]
        missed += least_confidence([0.9] * 200, agree, 0.95, delta) <= 0.9
    assert missed / 1000 <= delta + 0.02


def test_a_small_model_that_always_agrees_decides_alone():
    assert least_confidence([0.5] * 60, [True] * 60, 0.95, 0.05) < 0.01


@pytest.mark.parametrize(
    ("rows", "target", "delta"),
    [(58, 0.95, 0.05), (0, 0.95, 0.05), (100, 1.0, 0.05), (100, 0.95, 0.0)],
)
def test_too_few_rows_or_too_much_asked_send_all_to_the_large_model(rows, target, delta):
    assert least_confidence([0.9] * rows, [True] * rows, target, delta) == ALL_TO_LARGE


def test_nothing_asked_is_always_reached():
    assert least_confidence([0.9] * 5, [False] * 5, 0.0, 1.0) < 0.9
    assert math.isfinite(least_confidence([0.9], [True], 0.0, 0.05))


def test_wrong_rows_that_are_sure_stop_the_choice_above_the_less_sure():
    confidences = [0.99] * 300 + [0.7] * 100
    agree = [True] * 300 + [False] * 100
    assert 0.7 < least_confidence(confidences, agree, 0.95, 0.05) < 0.99
