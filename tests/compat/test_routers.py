"""Routers by Ray's names, and users' own."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.balance.policies.base import RoutingPolicy
from penstock.balance.policies.load import RoundRobin
from penstock.balance.policies.prefix import KVAware, PrefixAware
from penstock.balance.policies.table import AdapterPreference, configured_policy, reads_caches
from penstock.errors import ConfigError
from penstock.serve import LLMConfig
from penstock.serve.request_router import KVAwareRouter, PrefixCacheAffinityRouter


class Last(RoutingPolicy):
    """A policy of a user's own: the last replica."""

    def __init__(self, back: int = 1) -> None:
        self.back = back

    def choose(self, request, replicas):
        return replicas[-self.back]


class RoundRobinRouter:
    """A router of a user's own, in Ray's form and with the name of one of Ray's."""


def routed(cls: Any, **kwargs: Any) -> LLMConfig:
    router = {"request_router_class": cls, **({"request_router_kwargs": kwargs} if kwargs else {})}
    return LLMConfig.from_dict(
        {
            "model_loading_config": {"model_id": "m"},
            "deployment_config": {"request_router_config": router},
        }
    )


def policy(config: LLMConfig) -> Any:
    made = configured_policy(config)
    assert isinstance(made, AdapterPreference)
    return made.policy


@pytest.mark.parametrize(
    ("cls", "ours"),
    [
        (PrefixCacheAffinityRouter, PrefixAware),
        (KVAwareRouter, KVAware),
        ("ray.serve.llm.request_router:PrefixCacheAffinityRouter", PrefixAware),
        ("ray.serve.experimental.round_robin_router.RoundRobinRouter", RoundRobin),
        ("penstock.serve.request_router:KVAwareRouter", KVAware),
        ("round_robin", RoundRobin),
    ],
)
def test_rays_names_stand_for_our_policies(cls, ours):
    assert type(policy(routed(cls))) is ours
    assert reads_caches(routed(cls)) is (ours is KVAware)


def test_a_policy_of_ones_own_is_asked():
    made = policy(routed(Last, back=2))
    assert made.choose(None, ["a", "b", "c"]) == "b"
    assert not reads_caches(routed(Last))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (routed(RoundRobinRouter), "nothing would call the router RoundRobinRouter"),
        (routed("no.such:Router"), "no module"),
        (routed("prefix_awar"), "prefix_aware"),
        (routed("prefix_aware", match_rate=0.1), "match_rate"),
        (routed(Last, bakc=1), "back"),
    ],
)
def test_what_would_be_ignored_is_refused_by_name(config, told):
    with pytest.raises(ConfigError, match=told):
        configured_policy(config)
