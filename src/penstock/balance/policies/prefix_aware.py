"""Prompts that begin alike go where their beginning was computed before, unless that replica is too
busy.

What the replicas have cached is guessed from what was sent to them.
"""

from __future__ import annotations

from penstock.balance.policies.base import RouteRequest
from penstock.balance.policies.overlap import Overlap


class PrefixAware(Overlap):
    """The replica that is probably done with a prompt first. `capacity` bounds the memory of what
    was sent where.
    """

    def sent(self, request: RouteRequest, replica_id: str) -> None:
        """The replica is taken to hold the prompt from now on."""
        self.tree.add(request.blocks, replica_id)
