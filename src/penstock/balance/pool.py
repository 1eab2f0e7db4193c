"""A pool of equivalent members: replicas, upstream servers, ranks."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from typing import Any, Generic, TypeVar

import msgspec

from penstock.balance.policies.base import ANYWHERE, RouteRequest, RoutingPolicy
from penstock.balance.policies.prefix import byte_blocks
from penstock.types import ChatRequest, CompletionRequest


class Member:
    """A member of a pool. Implements `penstock.balance.policies.base.Replica`.

    `running` counts its running requests. Members get requests in proportion to their `weight`.
    """

    def __init__(self, id: str, weight: float = 1.0) -> None:
        self.id = id
        self.weight = weight
        self.running = 0
        self.adapters: Collection[str] = ()
        self.avoided_until = 0.0

    @property
    def load(self) -> float:
        return self.running / self.weight

    def is_ready(self, now: float) -> bool:
        """Whether requests may go to this member. `now` is a time of the event loop."""
        return self.avoided_until <= now


M = TypeVar("M", bound=Member)


class Pool(Generic[M]):
    """Chooses a member for each request by `policy`. A pool is bound to one event loop."""

    def __init__(self, policy: RoutingPolicy, members: Iterable[M] = ()) -> None:
        self.policy = policy
        self.members = self._ready = tuple(members)
        self._some_away = False

    def route(self, prompt: bytes, *, session: str = "", adapter: str = "") -> RouteRequest:
        """What the policy reads of a request. The prompt's blocks are named if it uses them."""
        blocks = byte_blocks(prompt) if prompt and self.policy.reads_blocks else ()
        if adapter and blocks:
            blocks = [hash((adapter, block)) for block in blocks]
        return RouteRequest(session, adapter, blocks)

    def route_of(self, request: Any, session: str = "") -> RouteRequest:
        """As `route`, for a request in the neutral types."""
        adapter = getattr(request, "adapter", None) or ""
        if self.policy.reads_blocks:
            return self.route(prompt_of(request), session=session, adapter=adapter)
        return RouteRequest(session, adapter) if adapter or session else ANYWHERE

    def choose(self, route: RouteRequest, tried: Collection[str] = ()) -> M | None:
        """The policy's choice among the ready members outside `tried`; None if there is none."""
        ready = self.ready(tried) if tried or self._some_away else self._ready
        if len(ready) < 2:
            return ready[0] if ready else None
        return self.policy.choose(route, ready)

    async def obtain(self, failover: Failover[M]) -> M:
        """Wait for a member after all ready ones have failed. Raises what ends the wait."""
        raise NotImplementedError

    def ready(self, tried: Collection[str] = ()) -> tuple[M, ...]:
        """The members to which requests may go, without those in `tried`.

        The tuple stays the same object until the members change: policies cache by it.
        """
        if self._some_away:
            now = _now()
            ready = tuple([member for member in self.members if member.is_ready(now)])
            self._some_away = len(ready) < len(self.members)
            if ready != self._ready:
                self._ready = ready
        return tuple([one for one in self._ready if one.id not in tried]) if tried else self._ready

    def avoid(self, member: M, seconds: float) -> None:
        """Keep requests away from a member for `seconds`."""
        member.avoided_until = _now() + seconds
        self._some_away = True

    def replace(self, members: Iterable[M]) -> list[M]:
        """Replace the members. Returns the removed ones."""
        before, self.members = self.members, tuple(members)
        self._ready, self._some_away = self.members, True
        left = {member.id for member in self.members}
        gone = [member for member in before if member.id not in left]
        for member in gone:
            self.policy.gone(member.id)
        return gone


class Failover(Generic[M]):
    """One request's failover from member to member. The members in `tried` have failed."""

    def __init__(self, pool: Pool[M], route: RouteRequest) -> None:
        self.route = route
        self.tried: set[str] = set()
        self._pool = pool
        self._waits_since: float | None = None

    async def next(self) -> M:
        """The next member to ask. It counts as tried from now on."""
        member = self._pool.choose(self.route, self.tried) or await self._pool.obtain(self)
        self.tried.add(member.id)
        return member

    @property
    def has_other(self) -> bool:
        """Whether an untried member is ready."""
        return bool(self._pool.ready(self.tried))

    def patience_left(self, seconds: float) -> float:
        """Seconds left of a patience of `seconds`, which starts at the request's first wait."""
        now = _now()
        if self._waits_since is None:
            self._waits_since = now
        return max(self._waits_since + seconds - now, 0.0)


def _now() -> float:
    return asyncio.get_running_loop().time()


def prompt_of(request: Any) -> bytes:
    """A request's prompt as policies read it: JSON, as in a body of OpenAI's API.

    Msgpack will not do: it puts a prompt's length first, so common prefixes would be lost.
    """
    if isinstance(request, ChatRequest):
        return msgspec.json.encode(request.messages)
    return msgspec.json.encode(request.prompt) if isinstance(request, CompletionRequest) else b""
