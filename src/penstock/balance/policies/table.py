"""The routing policies by name, ours and those of Ray's routers of the same kind."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from penstock.balance.policies.base import R, RouteRequest, RoutingPolicy, two_of
from penstock.balance.policies.load import LeastBusy, LeastLoaded, RoundRobin
from penstock.balance.policies.prefix import BLOCK_BYTES, KVAware, PrefixAware
from penstock.balance.policies.session_affinity import SessionAffinity
from penstock.errors import ConfigError, nearest
from penstock.llm_config import LLMConfig

POLICIES: dict[str, Callable[..., RoutingPolicy]] = {
    "least_loaded": LeastLoaded,
    "least_busy": LeastBusy,
    "round_robin": RoundRobin,
    "session_affinity": SessionAffinity,
    "prefix_aware": PrefixAware,
    "kv_aware": KVAware,
}
DEFAULT_POLICY = "prefix_aware"


def make_policy(
    name: str = DEFAULT_POLICY, field: str = "", arguments: Mapping[str, Any] | None = None
) -> RoutingPolicy:
    """A new policy by its name; all of them prefer replicas that hold the adapter asked for.

    Raises `ConfigError` for `field`.
    """
    try:
        policy = POLICIES[name](**(arguments or {}))
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
    """A new policy, as `request_router_config` says: its `request_router_class`, made with its
    `request_router_kwargs`. Raises `ConfigError`.
    """
    name = _name(config, default)
    given = (config.deployment_config.request_router_config or {}).get("request_router_kwargs")
    return make_policy(name, f"{FIELD}.request_router_class", _arguments(name, given or {}))


def _arguments(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a policy, of Ray's for a router. Raises `ConfigError`."""
    known = _OF_PREFIXES if name in ("prefix_aware", "kv_aware") else frozenset[str]()
    for key, value in given.items():
        where = f"{FIELD}.request_router_kwargs.{key}"
        if key not in known:
            hint = nearest(key, known) or "It takes none"
            raise ConfigError(f"the policy {name} takes no '{key}'", field=where, hint=hint)
        if value is not None and not isinstance(value, (int, float)):
            raise ConfigError(f"must be a number, got {value!r}", field=where, value=value)
    made = {
        key: given[key]
        for key in ("imbalanced_threshold", "match_rate_threshold")
        if given.get(key) is not None
    }
    chars = given.get("eviction_threshold_chars")
    if given.get("do_eviction") and chars is not None:
        made["capacity"] = max(1, int(chars) // BLOCK_BYTES)
    return made


_OF_PREFIXES = frozenset(
    {
        *("imbalanced_threshold", "match_rate_threshold", "do_eviction"),
        *("eviction_threshold_chars", "eviction_target_chars", "eviction_interval_secs"),
    }
)
"""Arguments of Ray's `PrefixCacheAffinityRouter`. What the policy remembers is bounded anyway, and
the oldest leaves at once: no target and no interval.
"""


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
