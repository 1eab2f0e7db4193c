"""When requests of an open loop arrive, in seconds from the start of a run."""

from __future__ import annotations

import math
import random


def poisson(rate: float, count: int, seed: int) -> list[float]:
    """So many arrivals of a Poisson process of `rate` requests a second."""
    chance = random.Random(f"{seed} arrivals")
    now = 0.0
    times = []
    for _ in range(count):
        now += chance.expovariate(rate)
        times.append(now)
    return times


def ramp(first: float, last: float, seconds: float, seed: int) -> list[float]:
    """All arrivals of a Poisson process whose rate goes evenly from `first` to `last` requests a
    second within `seconds`.

    A unit process is stretched by the inverse of the integrated rate (Çinlar, 1975).
    """
    chance = random.Random(f"{seed} arrivals")
    growth = (last - first) / seconds
    whole = (first + last) / 2 * seconds
    times = []
    passed = chance.expovariate(1)
    while passed < whole:
        # The root of first * t + growth * t² / 2 = passed that does not cancel digits.
        root = math.sqrt(max(first * first + 2 * growth * passed, 0.0))
        times.append(2 * passed / (first + root))
        passed += chance.expovariate(1)
    return times
