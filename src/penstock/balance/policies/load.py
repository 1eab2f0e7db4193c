"""Policies that look at the load of replicas, and at nothing of a request but its session."""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

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


POINTS = 64
"""Places of each replica on the ring: the more, the more even."""
SLACK = 8
"""By how many requests a replica's load may exceed twice that of another before sessions leave
it.
"""
MOST_PASSED = 8
"""Places that are passed over at most."""


class SessionAffinity(RoutingPolicy):
    """A session's requests go to one replica, whose cache holds what they share. Requests without
    a session go to the less busy of two.

    Replicas stand on a ring of hashes (consistent hashing), so that all routers agree without
    talking to each other, and a replica that comes or goes moves only its own share of the
    sessions. A replica that is much busier than another is passed over for the next one on the ring
    (bounded loads, https://arxiv.org/abs/1608.01350).
    """

    def __init__(self, seed: int | None = None) -> None:
        self._draw = random.Random(seed)
        self._sessionless = LeastBusy(seed)
        self._seen: Sequence[Any] = ()
        self._ring: list[int] = []
        self._owners: list[int] = []

    def choose(self, request: RouteRequest, replicas: Sequence[R]) -> R:
        """The session's replica, or the first behind it that is not much busier than others."""
        if not request.session:
            return self._sessionless.choose(request, replicas)
        if replicas is not self._seen:
            self._place(replicas)
        place = bisect(self._ring, _hash(request.session))
        one, other = two_of(replicas, self._draw)
        bearable = 2 * min(one.load, other.load) + SLACK
        for passed in range(MOST_PASSED):
            chosen = replicas[self._owners[(place + passed) % len(self._owners)]]
            if chosen.load <= bearable:
                return chosen
        return other if other.load < one.load else one

    def _place(self, replicas: Sequence[Any]) -> None:
        points = sorted(
            (_hash(f"{replica.id}/{point}"), number)
            for number, replica in enumerate(replicas)
            for point in range(POINTS)
        )
        self._ring = [point for point, _ in points]
        self._owners = [number for _, number in points]
        self._seen = replicas


def _hash(text: str) -> int:
    """The same in every process, which Python's own is not."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
