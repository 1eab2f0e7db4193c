"""The routing policies by name, ours and those of Ray's routers of the same kind."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from penstock.balance.policies.base import R, RouteRequest, RoutingPolicy, two_of
from penstock.balance.policies.load import LeastBusy, LeastLoaded, RoundRobin, SessionAffinity
from penstock.balance.policies.prefix import KVAware, PrefixAware
from penstock.errors import ConfigError, nearest
from penstock.llm_config import LLMConfig

POLICIES: dict[str, Callable[[], RoutingPolicy]] = {
    "least_loaded": LeastLoaded,
    "least_busy": LeastBusy,
    "round_robin": RoundRobin,
    "session_affinity": SessionAffinity,
    "prefix_aware": PrefixAware,
    "kv_aware": KVAware,
}
DEFAULT_POLICY = "prefix_aware"


def make_policy(name: str = DEFAULT_POLICY, field: str = "") -> RoutingPolicy:
    """A new policy by its name; all of them prefer replicas that hold the adapter asked for.

    Raises `ConfigError` for `field`.
    """
    try:
        policy = POLICIES[name]()
    except KeyError:
        raise ConfigError(
            f"unknown routing policy '{name}'",
            field=field,
            value=name,
            hint=nearest(name, POLICIES),
        ) from None
    return AdapterPreference(policy)


RAY_NAMES = {
    "PowerOfTwoChoicesRequestRouter": "least_busy",
    "RoundRobinRouter": "round_robin",
    "ConsistentHashRouter": "session_affinity",
    "PrefixCacheAffinityRouter": "prefix_aware",
    "KVAwareRouter": "kv_aware",
}
FIELD = "deployment_config.request_router_config"


def configured_policy(config: LLMConfig, default: str = DEFAULT_POLICY) -> RoutingPolicy:
    """A new policy, as `request_router_config.request_router_class` says. Raises `ConfigError`."""
    return make_policy(_name(config, default), f"{FIELD}.request_router_class")


def reads_caches(config: LLMConfig) -> bool:
    """Whether the policy wants the events of the engines' caches."""
    return _name(config, DEFAULT_POLICY) == "kv_aware"


def _name(config: LLMConfig, default: str) -> str:
    given = config.deployment_config.request_router_config or {}
    if not isinstance(given, Mapping):
        raise ConfigError("must be a mapping", field=FIELD, value=given)
    name = given.get("request_router_class") or default
    if not isinstance(name, str):
        name = getattr(name, "__name__", repr(name))
    name = name.replace(":", ".").rpartition(".")[2]
    return RAY_NAMES.get(name, name)


SLACK = 8
"""Requests that a holder may have beyond twice those of another: what loading costs."""


class AdapterPreference(RoutingPolicy):
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
