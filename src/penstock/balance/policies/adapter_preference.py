"""Requests for an adapter go to replicas that hold it, where those are not too busy."""

from __future__ import annotations

import random
from collections.abc import Sequence

from penstock.balance.policies.base import R, RouteRequest, RoutingPolicy, two_of

SLACK = 8
"""Requests that a holder may have beyond twice those of another replica: about what loading an
adapter costs.
"""


class AdapterPreference:
    """Takes the choice of `policy`, unless that replica lacks the request's adapter and one that is
    not much busier holds it.
    """

    def __init__(self, policy: RoutingPolicy, seed: int | None = None) -> None:
        self.policy = policy
        self.reads_blocks = policy.reads_blocks
        self._draw = random.Random(seed)

    def choose(self, request: RouteRequest, replicas: Sequence[R]) -> R:
        """The policy's choice, or a holder of the adapter."""
        chosen = self.policy.choose(request, replicas)
        if not request.adapter or request.adapter in chosen.adapters:
            return chosen
        bearable = 2 * chosen.load + SLACK
        holders = [r for r in replicas if request.adapter in r.adapters and r.load <= bearable]
        if not holders:
            return chosen
        one, other = two_of(holders, self._draw)
        return other if other.load < one.load else one

    def sent(self, request: RouteRequest, replica_id: str) -> None:
        self.policy.sent(request, replica_id)

    def gone(self, replica_id: str) -> None:
        self.policy.gone(replica_id)
