"""Each replica in turn."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.balance.policies.base import R, RouteRequest


class RoundRobin:
    """Each replica in turn, whatever it has to do."""

    reads_blocks = False

    def __init__(self) -> None:
        self._next = 0

    def choose(self, request: RouteRequest, replicas: Sequence[R]) -> R:
        """The replica whose turn it is."""
        chosen = replicas[self._next % len(replicas)]
        self._next = (self._next + 1) % len(replicas)
        return chosen

    def sent(self, request: RouteRequest, replica_id: str) -> None: ...

    def gone(self, replica_id: str) -> None: ...
