"""The replicas of one model as an ingress sees them: choice, failover, what they have cached."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing

import msgspec

from penstock.balance.policies.base import RouteRequest, RoutingPolicy
from penstock.balance.policies.prefix import KVAware, kv_aware_in, shared_blocks
from penstock.balance.pool import Failover, Member, Pool
from penstock.errors import (
    EngineDeadError,
    EngineTimeoutError,
    PenstockError,
    ReplicaLostError,
    UnavailableError,
    by_kind,
)
from penstock.llm_config import LLMConfig, LoraConfig
from penstock.serve.models.handle import CLIENT_HEADER
from penstock.serve.replicas.client import Address, Headers, Reply
from penstock.serve.replicas.messages import (
    BLOCKS_HEADER,
    CACHED_PATH,
    Call,
    ChangeReader,
    header_of,
)
from penstock.serve.replicas.runtime import DesiredState, DesiredStore, ReplicaInfo, Replicas

LOAD_HEADER = "x-penstock-load"
"""A reply's header: how many requests the replica had when it began to answer."""
MOST_LOST = 3
"""Replicas that one request may lose before it is given up: it may be what ends them."""
AVOIDED_S = 5.0
"""Seconds without new requests for an unreachable replica that its runtime still lists."""
STILL_LISTED_S = 0.05
"""Seconds before a runtime is asked again that may still list a replica which is gone."""
START_GRACE_S = 60.0
"""Seconds that a runtime may take for a replica, beside loading its model."""
AGAIN_S = 1.0
"""Seconds before a replica is asked again whose stream of changes has ended."""
_log = logging.getLogger(__name__)


class _Replica(Member):
    """One replica. `others` is how many requests it last reported of other ingresses."""

    def __init__(self, info: ReplicaInfo, most_adapters: int) -> None:
        super().__init__(info.id)
        self.info = info
        self.address = Address(info.host, info.port)
        self.others = 0
        self.adapters: OrderedDict[str, None] = OrderedDict()
        self._most_adapters = most_adapters

    @property
    def load(self) -> int:
        return self.running + self.others

    def note(self, reply: Reply, adapter: str) -> None:
        total = reply.header(LOAD_HEADER)
        if total is not None:
            self.others = max(0, int(total) - self.running)
        if adapter and reply.status == 200:
            self.adapters[adapter] = None
            self.adapters.move_to_end(adapter)
            if len(self.adapters) > self._most_adapters:
                self.adapters.popitem(last=False)


class CacheFollower:
    """Follows until `stop`. Belongs to one event loop."""

    def __init__(self, info: ReplicaInfo, key: str, policy: KVAware) -> None:
        self._id = info.id
        self._address = Address(info.host, info.port)
        self._headers = [("authorization", f"Bearer {key}")]
        self._policy = policy
        self._following = asyncio.create_task(self._follow())

    def stop(self) -> None:
        self._following.cancel()
        self._address.close()

    async def _follow(self) -> None:
        while True:
            try:
                if not await self._read():
                    _log.warning(
                        "replica '%s' does not tell what it has cached: it is chosen by its load",
                        self._id,
                    )
                    return
            except ReplicaLostError:
                pass
            self._policy.gone(self._id)
            await asyncio.sleep(AGAIN_S)

    async def _read(self) -> bool:
        """Take over the replica's changes; False where it has none to report."""
        reader = ChangeReader()
        with closing(
            await self._address.connected().ask("GET", CACHED_PATH, self._headers, b"")
        ) as reply:
            if reply.status >= 400:
                return reply.status >= 500
            while part := await reply.read():
                for change in reader.changes_of(part):
                    if change.anew:
                        self._policy.gone(self._id)
                    self._policy.removed(self._id, change.removed)
                    self._policy.stored(self._id, change.stored)
        return True


class ReplicaPool(Pool[_Replica]):
    """Puts requests to replicas. Belongs to one event loop.

    `waiting` counts requests that wait for a replica, `failure` is why the model could not be
    loaded last time, and `wanted` the state that was last seen to be asked for.
    """

    def __init__(
        self,
        config: LLMConfig,
        replicas: Replicas,
        *,
        key: str,
        policy: RoutingPolicy,
        desired: DesiredStore,
    ) -> None:
        super().__init__(policy)
        self.config = config
        self.waiting = 0
        self.failure = ""
        self.wanted = DesiredState()
        self._replicas = replicas
        self._key = key
        self._kv_aware = kv_aware_in(policy)
        self._followers: dict[str, CacheFollower] = {}
        self._desired = desired
        self._most_adapters = (config.lora_config or LoraConfig()).max_num_adapters_per_replica
        self._seen: tuple[ReplicaInfo, ...] = ()

    def current(self) -> tuple[_Replica, ...]:
        """The replicas that the runtime lists now."""
        self._look()
        return self.members

    def close(self) -> None:
        for replica in self.members:
            replica.address.close()
        for follower in self._followers.values():
            follower.stop()
        self._followers.clear()

    def route(self, prompt: bytes, *, session: str = "", adapter: str = "") -> RouteRequest:
        if self._kv_aware is not None:
            return RouteRequest(session, adapter, shared_blocks(prompt, adapter))
        return super().route(prompt, session=session, adapter=adapter)

    def forward(
        self,
        path: str,
        headers: Headers,
        body: bytes,
        route: RouteRequest,
        method: str = "POST",
        *,
        client: Callable[[], Mapping[str, str]] = dict,
    ) -> AbstractAsyncContextManager[Reply]:
        """Put a client's request to a replica; see `_ask`. `client` gives the client's headers."""
        headers = self._with_own(headers, route)

        def put(replica: _Replica) -> Awaitable[Reply]:
            more = client().items() if replica.info.reads_headers else ()
            sent = [*headers, *((CLIENT_HEADER + name, value) for name, value in more)]
            return replica.address.connected().ask(method, path, sent, body)

        return self._ask(put, route)

    def call(
        self, task: str, body: bytes, route: RouteRequest, *, id: str = "", whole: bool = False
    ) -> AbstractAsyncContextManager[Reply]:
        """Call a task of the model; see `_ask`. `id` is the request's, `whole` as in `Call`."""
        blocks = route.blocks if self._kv_aware is not None else ()
        call = Call(self._key, task, len(body), id, blocks, whole)
        return self._ask(lambda replica: replica.address.connected().call(call, body), route)

    def _with_own(self, headers: Headers, route: RouteRequest) -> list[tuple[str, str]]:
        headers = [*headers, ("authorization", f"Bearer {self._key}")]
        if self._kv_aware is not None and route.blocks:
            headers.append((BLOCKS_HEADER, header_of(route.blocks)))
        return headers

    @asynccontextmanager
    async def _ask(
        self, put: Callable[[_Replica], Awaitable[Reply]], route: RouteRequest
    ) -> AsyncIterator[Reply]:
        """Let a replica answer. The reply's head is here when the context begins.

        Before that another replica takes over from one that is lost, and from one that has no room
        or goes down, if there is another. Later, reading may raise `ReplicaLostError`.
        """
        failover, lost = Failover(self, route), 0
        while True:
            replica = await failover.next()
            replica.running += 1
            try:
                try:
                    reply = await put(replica)
                except ReplicaLostError:
                    self._leave(replica)
                    lost += 1
                    if lost == MOST_LOST:
                        raise EngineDeadError(
                            f"{lost} replicas were lost with this request"
                        ) from None
                    continue
                with closing(reply):
                    if reply.status == 503 and await self._elsewhere(reply, replica, failover):
                        continue
                    replica.note(reply, route.adapter)
                    self.policy.sent(route, replica.id)
                    if reply.status < 400:
                        self.failure = ""
                    yield reply
                    return
            finally:
                replica.running -= 1

    def choose(self, route: RouteRequest, tried: Collection[str] = ()) -> _Replica | None:
        self._look()
        return super().choose(route, tried)

    async def obtain(self, failover: Failover[_Replica]) -> _Replica:
        """A replica from the runtime, which starts one if it must."""
        self.wanted = await self._desired.load()
        if self.wanted.asleep is not None:
            raise UnavailableError(f"'{self.config.model_id}' is asleep until it is woken")
        patience = self.config.start_timeout_s + START_GRACE_S
        self.waiting += 1
        try:
            async with asyncio.timeout(failover.patience_left(patience)):
                if failover.tried:
                    # So that the runtime may notice what we have.
                    await asyncio.sleep(STILL_LISTED_S)
                info = await self._replicas.obtain()
        except TimeoutError:
            raise EngineTimeoutError(
                f"no replica of '{self.config.model_id}' was ready in {patience:g} s"
            ) from None
        finally:
            self.waiting -= 1
        failover.tried.clear()
        self._look()
        for replica in self.members:
            if replica.id == info.id:
                return replica
        return _Replica(info, self._most_adapters)  # the runtime will list it soon

    def _look(self) -> None:
        """Take over what the runtime knows."""
        current = self._replicas.current()
        if current is self._seen:
            return
        self._seen = current
        known = {replica.id: replica for replica in self.members}
        for gone in self.replace(
            known.get(info.id) or _Replica(info, self._most_adapters) for info in current
        ):
            gone.address.close()
            if follower := self._followers.pop(gone.id, None):
                follower.stop()
        if self._kv_aware is not None:
            for replica in self.members:
                if replica.id not in self._followers:
                    self._followers[replica.id] = CacheFollower(
                        replica.info, self._key, self._kv_aware
                    )

    def _leave(self, replica: _Replica) -> None:
        self.avoid(replica, AVOIDED_S)
        replica.address.close()

    async def _elsewhere(
        self, reply: Reply, replica: _Replica, failover: Failover[_Replica]
    ) -> bool:
        """Whether another replica is to take a refused request. If not, the reply is readable."""
        try:
            text = await reply.body()
        except ReplicaLostError:
            text = b""
        error = error_of(text)
        if not text or error.kind == "shutting_down":
            self._leave(replica)
            return True
        if error.kind == "engine_start_failed":
            self.failure = str(error)
        self._look()
        if failover.has_other:
            return True
        reply.unread(text)
        return False


def error_of(body: bytes) -> PenstockError:
    """The error in a reply's body."""
    try:
        about = msgspec.json.decode(body)["error"]
        kind = about.get("code") or about.get("type")
        return by_kind(str(kind), str(about["message"]), about.get("param"))
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        return PenstockError("the replica failed to answer this request")
