"""As prefix-aware, corrected by what the engines tell of their KV caches: what they hold and what they dropped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from penstock.serve.routing.base import R, RouteRequest, RoutingPolicy
from penstock.serve.routing.overlap import Overlap
from penstock.serve.routing.prefix_tree import PrefixTree


class KVAware:
    """The replica that has most of a prompt cached, unless it is too busy. `capacity` bounds what is kept of events."""

    reads_blocks = True

    def __init__(self, capacity: int = 1_000_000, seed: int | None = None) -> None:
        self._overlap = Overlap(PrefixTree(capacity), seed)

    def choose(self, request: RouteRequest, replicas: Sequence[R]) -> R:
        """The cheapest replica. `request.blocks` must carry the names that the engines' events use."""
        return self._overlap.choose(request, replicas)

    def sent(self, request: RouteRequest, replica_id: str) -> None:
        """The replica is about to hold the prompt: until its engine tells, requests alike should follow this one."""
        self._overlap.tree.add(request.blocks, replica_id)

    def gone(self, replica_id: str) -> None:
        """Forget what it held."""
        self._overlap.tree.forget(replica_id)

    def stored(self, replica: str, blocks: Sequence[int]) -> None:
        """A replica's engine has cached these blocks of one prompt."""
        self._overlap.tree.add(blocks, replica)

    def removed(self, replica: str, blocks: Iterable[int]) -> None:
        """A replica's engine has dropped these blocks."""
        self._overlap.tree.remove(blocks, replica)


def kv_aware_in(policy: RoutingPolicy) -> KVAware | None:
    """The KV-aware policy itself, where that is what `policy` is, or what it goes by."""
    inner = getattr(policy, "policy", policy)
    return inner if isinstance(inner, KVAware) else None
