"""As prefix-aware, corrected by what the engines tell of their KV caches: what they hold and what
they dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from penstock.balance.policies.base import RouteRequest, RoutingPolicy
from penstock.balance.policies.overlap import Overlap


class KVAware(Overlap):
    """The replica that has most of a prompt cached, unless it is too busy. `capacity` bounds what
    is kept of events.

    `RouteRequest.blocks` must carry the names that the engines' events use.
    """

    def sent(self, request: RouteRequest, replica_id: str) -> None:
        """The replica is about to hold the prompt: until its engine tells, requests alike should
        follow this one.
        """
        self.tree.add(request.blocks, replica_id)

    def stored(self, replica: str, blocks: Sequence[int]) -> None:
        """A replica's engine has cached these blocks of one prompt."""
        self.tree.add(blocks, replica)

    def removed(self, replica: str, blocks: Iterable[int]) -> None:
        """A replica's engine has dropped these blocks."""
        self.tree.remove(blocks, replica)


def kv_aware_in(policy: RoutingPolicy) -> KVAware | None:
    """The KV-aware policy itself, where that is what `policy` is, or what it goes by."""
    inner = getattr(policy, "policy", policy)
    return inner if isinstance(inner, KVAware) else None
