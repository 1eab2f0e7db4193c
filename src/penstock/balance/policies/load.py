"""Policies that look at the replicas alone, not at the request."""

from __future__ import annotations

import random
from collections.abc import Sequence

from penstock.balance.policies.base import R, RouteRequest, RoutingPolicy, two_of


class LeastLoaded(RoutingPolicy):
    """The least loaded; of several, the one whose turn it is. Even among few, and true to weights.

    Turns follow start-time fair queuing (https://doi.org/10.1109/90.649569): each request moves a
    replica's turn back by one over its weight, and one that was away starts level with the others.
    """

    def __init__(self) -> None:
        self._turns: dict[str, float] = {}
        self._now = 0.0

    def choose(self, request: RouteRequest, replicas: Sequence[R]) -> R:
        """The replica with the least to do."""
        chosen, least, first = replicas[0], float("inf"), float("inf")
        for replica in replicas:
            load, turn = replica.load, self._turns.get(replica.id, 0.0)
            if load < least or (load == least and turn < first):
                chosen, least, first = replica, load, turn
        self._now = max(self._now, first)
        self._turns[chosen.id] = self._now + 1 / chosen.weight
        return chosen

    def gone(self, replica_id: str) -> None:
        self._turns.pop(replica_id, None)


class LeastBusy(RoutingPolicy):
    """The power of two choices: the less loaded of two at random. `seed` makes draws repeatable.

    Nearly as even as asking all of them, at a cost that does not grow with their number, and
    without the herd that runs to the one replica which looked idle to every router at once
    (https://doi.org/10.1109/71.963420).
    """

    def __init__(self, seed: int | None = None) -> None:
        self._draw = random.Random(seed)

    def choose(self, request: RouteRequest, replicas: Sequence[R]) -> R:
        """The less loaded of two replicas at random."""
        one, other = two_of(replicas, self._draw)
        return other if other.load < one.load else one


class RoundRobin(RoutingPolicy):
    """Each replica in turn, whatever it has to do."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, request: RouteRequest, replicas: Sequence[R]) -> R:
        """The replica whose turn it is."""
        chosen = replicas[self._next % len(replicas)]
        self._next = (self._next + 1) % len(replicas)
        return chosen
