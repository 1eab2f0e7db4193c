"""Ray's routers by their names. A class stands for one of Penstock's policies."""

from __future__ import annotations


class PrefixCacheAffinityRouter:
    """`prefix_aware`: the replica that probably has most of the prompt cached."""


class KVAwareRouter:
    """`kv_aware`: the replica that has most of the prompt cached, by its engine's events."""


class PowerOfTwoChoicesRequestRouter:
    """`least_busy`: the less busy of two at random."""


class RoundRobinRouter:
    """`round_robin`: the next one."""


class ConsistentHashRouter:
    """`session_affinity`: the replica of the session that `x-session-id` names."""
