"""A session's requests go to one replica, whose cache holds what they share.

Replicas stand on a ring of hashes (consistent hashing), so that all routers agree without talking
to each other, and a replica that comes or goes moves only its own share of the sessions. A replica
that is much busier than another is passed over for the next one on the ring (bounded loads,
https://arxiv.org/abs/1608.01350).
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from penstock.balance.policies.base import R, RouteRequest, RoutingPolicy, two_of
from penstock.balance.policies.load import LeastBusy

POINTS = 64
"""Places of each replica on the ring: the more, the more even."""
SLACK = 8
"""Requests that a replica may have beyond twice those of another one before sessions leave it."""
MOST_PASSED = 8
"""Places that are passed over at most."""


class SessionAffinity(RoutingPolicy):
    """Sessions by their hash; requests without a session go to the less busy of two replicas."""

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
