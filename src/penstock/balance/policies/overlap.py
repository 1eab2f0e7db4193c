"""Chooses between what a replica has cached and what it has to do. The policies that do so
differ in how they learn what is cached.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import islice
from typing import Any

from penstock.balance.policies.base import R, RouteRequest, two_of
from penstock.balance.policies.prefix_tree import PrefixTree

BLOCKS_A_REQUEST = 2.0
"""What one more request on a replica costs a newcomer, in blocks that it must compute."""
MOST_HOLDERS = 4
"""Holders of the longest prefix that are looked at."""


class Overlap:
    """Takes the replica where a prompt costs least: blocks to compute, plus the requests that are
    before it.

    `tree` is what the replicas hold, as far as is known; `capacity` bounds it. Looked at are some
    holders of the longest prefix, and two replicas at random, so that the cost of choosing does not
    grow with the number of replicas, and a hot prefix spreads when its holders are busy.
    """

    reads_blocks = True

    def __init__(self, capacity: int = 1_000_000, seed: int | None = None) -> None:
        self.tree = PrefixTree(capacity)
        self._draw = random.Random(seed)
        self._seen: Sequence[Any] = ()
        self._by_id: dict[str, Any] = {}

    def choose(self, request: RouteRequest, replicas: Sequence[R]) -> R:
        """The cheapest of those looked at."""
        if replicas is not self._seen:
            self._notice(replicas)
        path = self.tree.path(request.blocks)
        candidates = list(two_of(replicas, self._draw))
        depth = len(path)
        while depth:
            # Few hold a long prefix, and all may hold a short one: then some, from a place drawn
            # anew.
            holders = path[depth - 1]
            start = int(self._draw.random() * len(holders)) if len(holders) > MOST_HOLDERS else 0
            near = [*islice(holders, start, start + MOST_HOLDERS)] or [
                *islice(holders, MOST_HOLDERS)
            ]
            found = [self._by_id[holder] for holder in near if holder in self._by_id]
            if found:
                candidates += found
                break
            depth -= 1  # they are all gone
        blocks = len(request.blocks)
        best = candidates[0]
        least = float("inf")
        for replica in candidates:
            cost = blocks - _held(path, replica.id) + BLOCKS_A_REQUEST * replica.load
            if cost < least:
                best, least = replica, cost
        return best

    def gone(self, replica_id: str) -> None:
        self.tree.forget(replica_id)

    def _notice(self, replicas: Sequence[Any]) -> None:
        self._by_id = {replica.id: replica for replica in replicas}
        self._seen = replicas


def _held(path: list[dict[str, None]], holder: str) -> int:
    """How many of the path's leading blocks `holder` has: whoever has a block has those before
    it.
    """
    low, high = 0, len(path)
    while low < high:
        middle = (low + high) // 2
        if holder in path[middle]:
            low = middle + 1
        else:
            high = middle
    return low
