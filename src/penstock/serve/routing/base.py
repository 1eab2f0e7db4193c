"""The protocol of routing policies, and their table."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from importlib import import_module
from typing import Any, Protocol, TypeVar

from msgspec import Struct

from penstock.errors import ConfigError, nearest


class Replica(Protocol):
    """What a policy sees of a replica. `load` is how many requests it has and has not answered, as far as is known;
    `adapters` are those it holds.
    """

    @property
    def id(self) -> str: ...
    @property
    def load(self) -> int: ...
    @property
    def adapters(self) -> Collection[str]: ...


R = TypeVar("R", bound=Replica)


class RouteRequest(Struct, frozen=True):
    """What a policy sees of a request. `blocks` names the prompt's blocks, each name depending on all blocks before it
    and on the adapter; it is filled for policies that read it.
    """

    session: str = ""
    adapter: str = ""
    blocks: Sequence[int] = ()


class RoutingPolicy(Protocol):
    """Chooses a replica for each request. What it keeps of earlier requests is bounded."""

    @property
    def reads_blocks(self) -> bool:
        """Whether `RouteRequest.blocks` matters to it."""

    def choose(self, request: RouteRequest, replicas: Sequence[R]) -> R:
        """One of `replicas`, of which there is at least one. As long as they stay the same, so must the sequence: what
        a policy derives from them it derives once.
        """

    def sent(self, request: RouteRequest, replica_id: str) -> None:
        """The request has gone to this replica, which need not be the one that was chosen."""

    def gone(self, replica_id: str) -> None:
        """The replica is no more."""


POLICIES: dict[str, str] = {
    "least_busy": "penstock.serve.routing.least_busy:LeastBusy",
    "round_robin": "penstock.serve.routing.round_robin:RoundRobin",
    "session_affinity": "penstock.serve.routing.session_affinity:SessionAffinity",
    "prefix_aware": "penstock.serve.routing.prefix_aware:PrefixAware",
    "kv_aware": "penstock.serve.routing.kv_aware:KVAware",
}
DEFAULT_POLICY = "prefix_aware"


def make_policy(name: str = DEFAULT_POLICY) -> RoutingPolicy:
    """A new policy by its name; all of them prefer replicas that hold the adapter asked for. Raises `ConfigError`."""
    try:
        module, _, attribute = POLICIES[name].partition(":")
    except KeyError:
        raise ConfigError(f"unknown routing policy '{name}'", value=name, hint=nearest(name, POLICIES)) from None
    policy: RoutingPolicy = getattr(import_module(module), attribute)()
    preference: Any = import_module("penstock.serve.routing.adapter_preference")
    preferring: RoutingPolicy = preference.AdapterPreference(policy)
    return preferring


def two_of(replicas: Sequence[R], draw: random.Random) -> tuple[R, R]:
    """Two different replicas at random, or the only one twice."""
    count = len(replicas)
    if count == 1:
        return replicas[0], replicas[0]
    first = int(draw.random() * count)
    second = int(draw.random() * (count - 1))
    return replicas[first], replicas[second + (second >= first)]
