"""The routing policies by name, ours and those of Ray's routers of the same kind."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from penstock.balance.policies.base import R, RouteRequest, RoutingPolicy, two_of
from penstock.balance.policies.load import LeastBusy, LeastLoaded, RoundRobin, SessionAffinity
from penstock.balance.policies.prefix import KVAware, PrefixAware
from penstock.config import import_object
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
    """A new policy, as `request_router_config` says: one of ours or of Ray's by its name, or a
    user's own class derived from `RoutingPolicy`. Raises `ConfigError`.
    """
    name, cls, kwargs = _chosen(config, default)
    where = f"{FIELD}.request_router_class"
    if cls is None and (not kwargs or name not in POLICIES):
        return make_policy(name, where)
    made = cls or POLICIES[name]
    known = inspect.signature(made).parameters
    for key, value in kwargs.items():
        if key not in known:
            raise ConfigError(
                f"the policy {name} has no option '{key}'",
                field=f"{FIELD}.request_router_kwargs",
                value=value,
                hint=nearest(key, known),
            )
    return AdapterPreference(made(**kwargs))


def reads_caches(config: LLMConfig) -> bool:
    """Whether the policy wants the events of the engines' caches."""
    return _chosen(config, DEFAULT_POLICY)[0] == "kv_aware"


def _chosen(config: LLMConfig, default: str) -> tuple[str, Any, Mapping[str, Any]]:
    """The policy's name, its class if it is a user's, and its options."""
    given = config.deployment_config.request_router_config or {}
    if not isinstance(given, Mapping):
        raise ConfigError("must be a mapping", field=FIELD, value=given)
    kwargs = given.get("request_router_kwargs") or {}
    cls = given.get("request_router_class") or default
    where = f"{FIELD}.request_router_class"
    if isinstance(cls, str):
        module, _, name = cls.replace(":", ".").rpartition(".")
        if not module or module.partition(".")[0] in ("ray", "penstock"):
            return RAY_NAMES.get(name, name), None, kwargs
        cls = import_object(cls, where)
    name = getattr(cls, "__name__", repr(cls))
    if RoutingPolicy in getattr(cls, "__mro__", ()):
        return name, cls, kwargs
    if getattr(cls, "__module__", "").partition(".")[0] in ("ray", "penstock"):
        return RAY_NAMES.get(name, name), None, kwargs
    raise ConfigError(
        f"nothing would call the router {name}",
        field=where,
        value=cls,
        hint="Derive it from penstock.serve.request_router.RoutingPolicy.",
    )


SLACK = 8
"""By how many requests the load of a replica with the adapter may exceed twice the load of the
chosen one: that is what loading the adapter costs.
"""


class AdapterPreference(RoutingPolicy):
    """Takes the choice of `policy`, unless the chosen replica lacks the request's adapter and one
    that is not much busier has it.
    """

    def __init__(self, policy: RoutingPolicy) -> None:
        self.policy = policy
        self.reads_blocks = policy.reads_blocks
        self._draw = random.Random()

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
