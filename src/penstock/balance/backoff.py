"""How long to wait before something that has failed is tried again."""

from __future__ import annotations

import random

_DOUBLINGS = 60


def backoff(failures: int, *, first: float, longest: float) -> float:
    """Seconds to wait after so many failures in a row (1 or more): `first`, doubled with each, up to `longest`.

    Up to half of it is taken off at random, so that those who have failed together do not come back together.
    """
    whole: float = min(first * 2.0 ** min(failures - 1, _DOUBLINGS), longest)
    return whole * random.uniform(0.5, 1.0)
