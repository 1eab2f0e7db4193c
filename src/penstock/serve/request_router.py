"""Ways to choose a replica, with the names of `ray.serve.llm.request_router`."""

from penstock import lazy

TYPE_CHECKING = False  # known to type checkers
if TYPE_CHECKING:
    from penstock.balance.policies.base import (
        RouteRequest as RouteRequest,
        RoutingPolicy as RoutingPolicy,
    )
    from penstock.serve.compat.routers import (
        ConsistentHashRouter as ConsistentHashRouter,
        KVAwareRouter as KVAwareRouter,
        PowerOfTwoChoicesRequestRouter as PowerOfTwoChoicesRequestRouter,
        PrefixCacheAffinityRouter as PrefixCacheAffinityRouter,
        RoundRobinRouter as RoundRobinRouter,
    )
else:
    __getattr__, __dir__, __all__ = lazy.attach(
        __name__,
        {
            "penstock.balance.policies.base": (
                "RouteRequest",
                "RoutingPolicy",
            ),
            "penstock.serve.compat.routers": (
                "ConsistentHashRouter",
                "KVAwareRouter",
                "PowerOfTwoChoicesRequestRouter",
                "PrefixCacheAffinityRouter",
                "RoundRobinRouter",
            ),
        },
    )
