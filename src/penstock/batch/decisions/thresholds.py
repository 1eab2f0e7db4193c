"""Chooses the confidence from which on a cascade takes the small model's decisions without asking
the large one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

ALL_TO_LARGE = math.inf
_GRID = tuple(1 / (1 + math.exp(-place / 10)) for place in range(160, -61, -1))
"""Confidences to try: logistic steps from 0.9999999 down to 0.0025. They are fixed beforehand, not
taken from the sample: the test needs that.
"""


def least_confidence(
    confidences: Sequence[float], agree: Sequence[bool], target: float, delta: float
) -> float:
    """The confidence from which on a small model's decisions may stand: with probability at least
    1 - `delta` over the draw of the sample, at least the share `target` of all rows then has the
    decision that the large model would make. `ALL_TO_LARGE` if no confidence passes the test.

    `confidences` and `agree` are of rows drawn at random: how sure the small model was, and whether
    it decided as the large one. A row is wrong at a tried confidence if the small model's decision
    stands there and does not agree; as the confidence falls, the share of wrong rows can only grow.
    So confidences are tested in a fixed order, the highest first, each at level `delta`, until one
    fails: fixed-sequence testing as in "Learn then Test" (Angelopoulos et al., 2021,
    https://arxiv.org/abs/2110.01052). The exact binomial tail takes the place of its
    Hoeffding-Bentkus bound, as a row is either right or wrong. To judge a small model by a large
    one is the idea of BARGAIN (Zeighami et al., 2025, https://arxiv.org/abs/2509.02896).
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
    """P(X <= most) for X ~ Binomial(rows, chance)."""
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
