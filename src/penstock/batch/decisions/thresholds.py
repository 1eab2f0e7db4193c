"""Chooses how sure a small model must be for its decisions to stand without the large one's."""

from __future__ import annotations

import math
from collections.abc import Sequence

ALL_TO_LARGE = math.inf
_GRID = tuple(1 / (1 + math.exp(-place / 10)) for place in range(160, -61, -1))
"""Confidences to try, the highest first. They are fixed, so no choice among them needs data."""


def least_confidence(
    confidences: Sequence[float], agree: Sequence[bool], target: float, delta: float
) -> float:
    """The confidence from which on a small model's decisions may stand: with probability at least
    1 - `delta` over the draw of the sample, at least the share `target` of all rows then has the
    decision that the large model would make. `ALL_TO_LARGE` where the sample shows no such.

    `confidences` and `agree` are of rows drawn at random: how sure the small model was, and whether
    it decided as the large one. A row is wrong at a confidence where it stands and does not agree;
    the share of such rows only grows as the confidence falls. So confidences are tested in a fixed
    order, the highest first, each at level `delta`, until one fails: fixed-sequence testing as in
    "Learn then Test" (Angelopoulos et al., 2021, https://arxiv.org/abs/2110.01052), with the exact
    binomial tail in the place of its Hoeffding-Bentkus bound, as a row is right or wrong. The use
    of it, a large model as the judge of a small one, is that of BARGAIN (Zeighami et al., 2025,
    https://arxiv.org/abs/2509.02896).
    """
    wrong = [c for c, same in zip(confidences, agree, strict=True) if not same]
    chosen = ALL_TO_LARGE
    for tried in _GRID:
        mistakes = sum(confidence >= tried for confidence in wrong)
        if binomial_at_most(mistakes, len(confidences), 1 - target) > delta:
            break
        chosen = tried
    return chosen


def binomial_at_most(most: int, rows: int, chance: float) -> float:
    """The probability that at most so many of `rows` have what each has with this chance."""
    if not 0 < chance < 1:
        return float(chance <= 0 or most >= rows)
    logs = math.log(chance), math.log1p(-chance)
    return math.fsum(
        math.exp(
            math.lgamma(rows + 1)
            - math.lgamma(each + 1)
            - math.lgamma(rows - each + 1)
            + each * logs[0]
            + (rows - each) * logs[1]
        )
        for each in range(most + 1)
    )
