"""The least loaded of all: even where there are few, and true to their weights."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.balance.policies.base import R, RouteRequest


class LeastLoaded:
    """The least loaded; of several, the one whose turn it is.

    Turns follow start-time fair queuing (https://doi.org/10.1109/90.649569): each request moves a
    replica's turn back by one over its weight, and one that was away starts level with the others.
    """

    reads_blocks = False

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

    def sent(self, request: RouteRequest, replica_id: str) -> None: ...

    def gone(self, replica_id: str) -> None:
        self._turns.pop(replica_id, None)
