"""Prompts that begin alike go where their beginning was computed before, unless that replica is too busy.

What the replicas have cached is guessed from what was sent to them.
"""

from __future__ import annotations

from collections.abc import Sequence

from penstock.serve.routing.base import R, RouteRequest
from penstock.serve.routing.overlap import Overlap
from penstock.serve.routing.prefix_tree import PrefixTree


class PrefixAware:
    """The replica that is probably done with a prompt first. `capacity` bounds the memory of what was sent where."""

    reads_blocks = True

    def __init__(self, capacity: int = 1_000_000, seed: int | None = None) -> None:
        self._overlap = Overlap(PrefixTree(capacity), seed)

    def choose(self, request: RouteRequest, replicas: Sequence[R]) -> R:
        """The cheapest replica."""
        return self._overlap.choose(request, replicas)

    def sent(self, request: RouteRequest, replica_id: str) -> None:
        """The replica is taken to hold the prompt from now on."""
        self._overlap.tree.add(request.blocks, replica_id)

    def gone(self, replica_id: str) -> None:
        """Forget what it held."""
        self._overlap.tree.forget(replica_id)
