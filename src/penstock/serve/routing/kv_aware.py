"""As prefix-aware, with what the engines tell of their KV caches in the place of guesses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from penstock.serve.routing.base import RouteRequest
from penstock.serve.routing.overlap import Overlap


class KVAware(Overlap):
    """The replica that has most of a prompt cached, unless it is too busy. `capacity` bounds what is kept of events.

    `RouteRequest.blocks` must carry the names that the engines' events use.
    """

    def sent(self, request: RouteRequest, replica_id: str) -> None:
        """Nothing to learn: the engine tells."""

    def stored(self, replica: str, blocks: Sequence[int]) -> None:
        """A replica's engine has cached these blocks of one prompt."""
        self.tree.add(blocks, replica)

    def removed(self, replica: str, blocks: Iterable[int]) -> None:
        """A replica's engine has dropped these blocks."""
        self.tree.remove(blocks, replica)
