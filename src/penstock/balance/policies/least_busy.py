"""The power of two choices: of two replicas at random, the one with less to do.

Nearly as even as asking all of them, at a cost that does not grow with their number, and without
the herd that runs to the one replica which looked idle to every router at once
(https://doi.org/10.1109/71.963420).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from penstock.balance.policies.base import R, RouteRequest, two_of


class LeastBusy:
    """The less loaded of two at random. `seed` makes the draws repeatable."""

    reads_blocks = False

    def __init__(self, seed: int | None = None) -> None:
        self._draw = random.Random(seed)

    def choose(self, request: RouteRequest, replicas: Sequence[R]) -> R:
        """The less loaded of two replicas at random."""
        one, other = two_of(replicas, self._draw)
        return other if other.load < one.load else one

    def sent(self, request: RouteRequest, replica_id: str) -> None: ...

    def gone(self, replica_id: str) -> None: ...
