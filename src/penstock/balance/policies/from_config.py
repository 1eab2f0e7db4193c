"""The policy that a configuration asks for, by our name or by that of Ray's router of the same
kind.
"""

from __future__ import annotations

from collections.abc import Mapping

from penstock.balance.policies.base import RoutingPolicy
from penstock.balance.policies.table import DEFAULT_POLICY, make_policy
from penstock.errors import ConfigError
from penstock.llm_config import LLMConfig

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
    """Whether the policy wants to be told what engines have cached."""
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
