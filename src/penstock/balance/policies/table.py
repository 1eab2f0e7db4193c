"""The table of routing policies."""

from __future__ import annotations

from importlib import import_module

from penstock.balance.policies.adapter_preference import AdapterPreference
from penstock.balance.policies.base import RoutingPolicy
from penstock.errors import ConfigError, nearest

POLICIES: dict[str, str] = {
    "least_loaded": "penstock.balance.policies.least_loaded:LeastLoaded",
    "least_busy": "penstock.balance.policies.least_busy:LeastBusy",
    "round_robin": "penstock.balance.policies.round_robin:RoundRobin",
    "session_affinity": "penstock.balance.policies.session_affinity:SessionAffinity",
    "prefix_aware": "penstock.balance.policies.prefix_aware:PrefixAware",
    "kv_aware": "penstock.balance.policies.kv_aware:KVAware",
}
DEFAULT_POLICY = "prefix_aware"


def make_policy(name: str = DEFAULT_POLICY, field: str = "") -> RoutingPolicy:
    """A new policy by its name; all of them prefer replicas that hold the adapter asked for.

    Raises `ConfigError` for `field`.
    """
    try:
        module, _, attribute = POLICIES[name].partition(":")
    except KeyError:
        raise ConfigError(
            f"unknown routing policy '{name}'",
            field=field,
            value=name,
            hint=nearest(name, POLICIES),
        ) from None
    policy: RoutingPolicy = getattr(import_module(module), attribute)()
    return AdapterPreference(policy)
