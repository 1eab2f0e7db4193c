"""Ways to choose a replica, with the names of `ray.serve.llm.request_router`. Each of Ray's routers
stands for one of Penstock's policies.
"""

from penstock import lazy

TYPE_CHECKING = False  # known to type checkers
if TYPE_CHECKING:
    from penstock.balance.policies.base import (
        RouteRequest as RouteRequest,
        RoutingPolicy as RoutingPolicy,
    )
else:
    __getattr__, __dir__, __all__ = lazy.attach(
        __name__,
        {
            "penstock.balance.policies.base": (
                "RouteRequest",
                "RoutingPolicy",
            ),
        },
        eager=(
            "ConsistentHashRouter",
            "KVAwareRouter",
            "PowerOfTwoChoicesRequestRouter",
            "PrefixCacheAffinityRouter",
            "RoundRobinRouter",
        ),
    )


class PrefixCacheAffinityRouter:
    """`prefix_aware`: the replica that probably has most of the prompt cached."""


class KVAwareRouter:
    """`kv_aware`: the replica that has most of the prompt cached, by its engine's events."""


class PowerOfTwoChoicesRequestRouter:
    """`least_busy`: the less busy of two at random."""


class RoundRobinRouter:
    """`round_robin`: one replica after the other."""


class ConsistentHashRouter:
    """`session_affinity`: the replica of the session that `x-session-id` names."""
