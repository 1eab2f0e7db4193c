"""The protocol of routing policies."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from typing import Protocol, TypeVar

from msgspec import Struct


class Replica(Protocol):
    """What a policy sees of a replica. `load` is how many requests it has and has not answered, as
    far as is known, for its `weight`; `adapters` are those it holds.
    """

    @property
    def id(self) -> str: ...
    @property
    def weight(self) -> float: ...
    @property
    def load(self) -> float: ...
    @property
    def adapters(self) -> Collection[str]: ...


R = TypeVar("R", bound=Replica)


class RouteRequest(Struct, frozen=True):
    """What a policy sees of a request. `blocks` names the prompt's blocks, each name depending on
    all blocks before it and on the adapter; it is filled for policies that read it.
    """

    session: str = ""
    adapter: str = ""
    blocks: Sequence[int] = ()


ANYWHERE = RouteRequest()
"""A request of which nothing is known."""


class RoutingPolicy(Protocol):
    """Chooses a replica for each request. What it keeps of earlier requests is bounded."""

    reads_blocks: bool = False
    """Whether `RouteRequest.blocks` matters to it."""

    def choose(self, request: RouteRequest, replicas: Sequence[R]) -> R:
        """One of `replicas`, at least one. The sequence is the same object as long as the replicas
        stay the same, so a policy can cache what it derives from it.
        """

    def sent(self, request: RouteRequest, replica_id: str) -> None:
        """The request has gone to this replica, which need not be the one that was chosen."""
        return

    def gone(self, replica_id: str) -> None:
        """The replica is no more."""
        return


def two_of(replicas: Sequence[R], draw: random.Random) -> tuple[R, R]:
    """Two different replicas at random, or the only one twice."""
    count = len(replicas)
    if count == 1:
        return replicas[0], replicas[0]
    first = int(draw.random() * count)
    second = int(draw.random() * (count - 1))
    return replicas[first], replicas[second + (second >= first)]
