"""A model whose replicas run elsewhere, as a handle. Requests reach them over HTTP, whatever runtime placed them."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from typing import Any

import msgspec

from penstock.engines.deltas import BatchedDeltas, Deltas
from penstock.errors import (
    EngineDeadError,
    EngineTimeoutError,
    PenstockError,
    ReplicaLostError,
    UnavailableError,
    UnsupportedError,
    by_kind,
)
from penstock.llm_config import LLMConfig, LoraConfig
from penstock.serve import calls
from penstock.serve.adapter_store import adapter_store
from penstock.serve.control import parse_control
from penstock.serve.desired import DesiredState, DesiredStore, InMemoryStore
from penstock.serve.handle import ModelCard, ModelState
from penstock.serve.replicas import ReplicaInfo, Replicas
from penstock.serve.routing.base import RouteRequest, RoutingPolicy
from penstock.serve.routing.configured import configured_policy
from penstock.serve.routing.prefix_tree import byte_blocks
from penstock.serve.wire import Address, Headers, Reply
from penstock.types import (
    ChatRequest,
    CompletionRequest,
    Delta,
    EmbeddingRequest,
    Embeddings,
    RerankRequest,
    Scores,
    Transcription,
    TranscriptionRequest,
)

LOAD_HEADER = "x-penstock-load"
"""A reply's header: how many requests the replica had when it began to answer."""
MOST_LOST = 3
"""Replicas that one request may lose before it is given up: it may be what ends them."""
AVOIDED_S = 5.0
"""Seconds without new requests for a replica that could not be reached, while its runtime still lists it."""
STILL_LISTED_S = 0.05
"""Seconds before a runtime is asked again that may still list a replica which is gone."""
START_GRACE_S = 60.0
"""Seconds that a runtime may take for a replica, beside loading its model."""


class _Replica:
    """What is known here of one replica. Keeps `penstock.serve.routing.base.Replica`."""

    def __init__(self, info: ReplicaInfo, most_adapters: int) -> None:
        self.id = info.id
        self.info = info
        self.address = Address(info.host, info.port)
        self.sent = 0
        self.others = 0
        self.adapters: OrderedDict[str, None] = OrderedDict()
        self.avoided_until = 0.0
        self._most_adapters = most_adapters

    @property
    def load(self) -> int:
        """Requests that it has: ours, and what it told of others."""
        return self.sent + self.others

    def note(self, reply: Reply, adapter: str) -> None:
        """Learn from a reply."""
        total = reply.header(LOAD_HEADER)
        if total is not None:
            self.others = max(0, int(total) - self.sent)
        if adapter and reply.status == 200:
            self.adapters[adapter] = None
            self.adapters.move_to_end(adapter)
            if len(self.adapters) > self._most_adapters:
                self.adapters.popitem(last=False)


class Patience:
    """How long a request waits for replicas, in all."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._until: float | None = None

    def left(self) -> float:
        """Seconds that are left, of those that begin with the first wait."""
        now = time.monotonic()
        if self._until is None:
            self._until = now + self.seconds
        return max(self._until - now, 0.0)


class RemoteModel:
    """Keeps `penstock.serve.handle.ModelHandle`. Belongs to one event loop, but for `control`, which any may call.

    `key` is what the replicas want to be shown. What its runtime must do (start replicas, stop them) it does itself.
    """

    def __init__(
        self,
        config: LLMConfig,
        replicas: Replicas,
        *,
        key: str,
        policy: RoutingPolicy | None = None,
        desired: DesiredStore | None = None,
    ) -> None:
        self.model_id = config.model_id
        self.engine_name = config.engine_name
        self.config = config
        self._replicas = replicas
        self._key = key
        self._policy = policy or configured_policy(config)
        self._desired = desired or InMemoryStore()
        self._store = adapter_store(config, config.model_source)
        self._created = int(time.time())
        self._most_adapters = (config.lora_config or LoraConfig()).max_num_adapters_per_replica
        self._seen: tuple[ReplicaInfo, ...] = ()
        self._pool: tuple[_Replica, ...] = ()
        self._avoided = False
        self._waiting = 0
        self._failure = ""
        self._wanted = DesiredState()

    # What it is
    def card(self) -> ModelCard:
        lengths = [info.context_length for info in self._replicas.current() if info.context_length is not None]
        given = self.config.engine_kwargs.get("max_model_len")
        return ModelCard(
            id=self.model_id,
            created=self._created,
            context_length=lengths[0] if lengths else given if isinstance(given, int) else None,
            metadata={"engine": self.engine_name},
        )

    def state(self) -> ModelState:
        self._look()
        running = sum(replica.sent for replica in self._pool)
        if self._wanted.asleep is not None:
            return ModelState("asleep", "", running, self._waiting)
        if self._wanted.paused is not None:
            return ModelState("paused", "", running, self._waiting)
        if self._failure:
            return ModelState("failed", self._failure, running, self._waiting)
        if self._pool:
            return ModelState("ready", "", running, self._waiting)
        starting = self._waiting or self.config.autoscaling.min_replicas
        return ModelState("loading" if starting else "cold", "", running, self._waiting)

    async def engine_metrics(self) -> dict[str, float]:
        """Nothing: each replica counts for itself, on a page of its own."""
        return {}

    async def adapters(self) -> list[str]:
        return await self._store.names()

    async def start(self) -> None:
        """Nothing: the runtime starts what is to be started."""

    async def stop(self, drain_timeout_s: float = 30.0) -> None:
        for replica in self._pool:
            replica.address.close()

    # Requests
    def route(self, prompt: bytes, *, session: str = "", adapter: str = "") -> RouteRequest:
        """What the policy needs to know of a request."""
        blocks = byte_blocks(prompt) if self._policy.reads_blocks and prompt else ()
        if adapter:
            blocks = [hash((adapter, block)) for block in blocks]
        return RouteRequest(session, adapter, blocks)

    @asynccontextmanager
    async def ask(self, path: str, headers: Headers, body: bytes, route: RouteRequest) -> AsyncIterator[Reply]:
        """Put a request to a replica. The reply's head is here when the context begins.

        A replica that is lost before that is replaced by another one, and so is one that has no room or goes down, as
        long as there is another. Within the context `ReplicaLostError` may come from reading.
        """
        headers = [*headers, ("authorization", f"Bearer {self._key}")]
        patience = Patience(self.config.start_timeout_s + START_GRACE_S)
        tried: set[str] = set()
        lost = 0
        while True:
            replica = self._choose(route, tried) or await self._obtain(tried, patience)
            replica.sent += 1
            try:
                try:
                    reply = await replica.address.request("POST", path, headers, body)
                except ReplicaLostError:
                    self._avoid(replica)
                    tried.add(replica.id)
                    lost += 1
                    if lost == MOST_LOST:
                        raise EngineDeadError(f"{lost} replicas were lost with this request") from None
                    continue
                with closing(reply):
                    if reply.status == 503 and await self._elsewhere(reply, replica, tried):
                        continue
                    replica.note(reply, route.adapter)
                    self._policy.sent(route, replica.id)
                    if reply.status < 400:
                        self._failure = ""
                    yield reply
                    return
            finally:
                replica.sent -= 1

    def chat(self, request: ChatRequest) -> Deltas:
        return BatchedDeltas(self._generate("chat", request))

    def completions(self, request: CompletionRequest) -> Deltas:
        return BatchedDeltas(self._generate("completions", request))

    async def embeddings(self, request: EmbeddingRequest) -> Embeddings:
        return await self._call("embeddings", request)  # type: ignore[no-any-return]

    async def score(self, request: RerankRequest) -> Scores:
        return await self._call("score", request)  # type: ignore[no-any-return]

    async def rerank(self, request: RerankRequest) -> Scores:
        return await self._call("rerank", request)  # type: ignore[no-any-return]

    async def transcriptions(self, request: TranscriptionRequest) -> Transcription:
        return await self._call("transcriptions", request)  # type: ignore[no-any-return]

    async def tokenize(self, text: str) -> list[int]:
        return await self._call("tokenize", text)  # type: ignore[no-any-return]

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return await self._call("detokenize", list(token_ids))  # type: ignore[no-any-return]

    # Control
    async def control(self, method: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        """As `ModelHandle.control`, on every replica at once. May be called in any event loop."""
        parsed = parse_control(method, options)
        wanted = await self._desired.load()
        changed = wanted.after(method, parsed)
        if changed is not wanted:
            await self._desired.save(changed)  # first, so that a replica that starts meanwhile is told
        self._wanted = changed
        replicas = self._replicas.current()
        return list(await asyncio.gather(*(self._control_one(info, method, options) for info in replicas)))

    async def _control_one(self, info: ReplicaInfo, method: str, options: Mapping[str, Any]) -> dict[str, Any]:
        # Over a connection of its own: those that are kept belong to the event loop of the requests.
        address = Address(info.host, info.port)
        body = msgspec.json.encode({"method": method, "options": options})
        headers = [("authorization", f"Bearer {self._key}"), ("content-type", "application/json")]
        try:
            with closing(await address.request("POST", "/penstock/control", headers, body)) as reply:
                text = await reply.body()
        except ReplicaLostError as error:
            return {"replica": info.id, "ok": False, "error": {"type": "unreachable", "message": str(error)}}
        finally:
            address.close()
        if reply.status != 200:
            told = told_error(text)
            if isinstance(told, UnsupportedError):
                raise told
            return {"replica": info.id, "ok": False, "error": {"type": told.kind, "message": str(told)}}
        result: dict[str, Any] = msgspec.json.decode(text)
        return result

    # Calls
    async def _generate(self, task: str, request: ChatRequest | CompletionRequest) -> AsyncGenerator[list[Delta], None]:
        body = calls.pack(request)
        route = self.route(body, adapter=request.adapter or "")
        frames = calls.FrameReader()
        try:
            async with self.ask(calls.PATH + task, [("x-request-id", request.request_id)], body, route) as reply:
                if reply.status != 200:
                    raise told_error(await reply.body())
                while part := await reply.read():
                    deltas, error = frames.feed(part)
                    if deltas:
                        yield deltas
                    if error is not None:
                        raise error
        except ReplicaLostError:
            raise EngineDeadError("the replica that answered this request is gone") from None

    async def _call(self, task: str, request: Any) -> Any:
        _, form = calls.RETURNING[task]
        body = calls.pack(request)
        try:
            async with self.ask(calls.PATH + task, [], body, self.route(b"")) as reply:
                text = await reply.body()
        except ReplicaLostError:
            raise EngineDeadError("the replica that answered this request is gone") from None
        if reply.status != 200:
            raise told_error(text)
        return msgspec.msgpack.decode(text, type=form)

    # Replicas
    def _look(self) -> None:
        """Take over what the runtime knows."""
        current = self._replicas.current()
        if current is self._seen:
            return
        known = {replica.id: replica for replica in self._pool}
        self._pool = tuple(
            known.pop(info.id) if info.id in known else _Replica(info, self._most_adapters) for info in current
        )
        self._seen = current
        for gone in known.values():
            gone.address.close()
            self._policy.gone(gone.id)

    def _choose(self, route: RouteRequest, tried: set[str]) -> _Replica | None:
        """The policy's choice, if there is any."""
        self._look()
        pool = self._candidates(tried)
        return self._policy.choose(route, pool) if pool else None

    def _candidates(self, tried: set[str]) -> tuple[_Replica, ...]:
        pool = self._pool
        if tried or self._avoided:
            now = time.monotonic()
            self._avoided = any(replica.avoided_until > now for replica in pool)
            pool = tuple(r for r in pool if r.id not in tried and r.avoided_until <= now)
        return pool

    def _avoid(self, replica: _Replica) -> None:
        replica.avoided_until = time.monotonic() + AVOIDED_S
        replica.address.close()
        self._avoided = True

    async def _obtain(self, tried: set[str], patience: Patience) -> _Replica:
        """A replica where there is none that could be chosen: the runtime says which, and starts it if it must."""
        self._wanted = await self._desired.load()
        if self._wanted.asleep is not None:
            raise UnavailableError(f"'{self.model_id}' is asleep until it is woken")
        self._waiting += 1
        try:
            async with asyncio.timeout(patience.left()):
                if tried:
                    await asyncio.sleep(STILL_LISTED_S)  # so that the runtime may notice what we have
                info = await self._replicas.obtain()
        except TimeoutError:
            raise EngineTimeoutError(f"no replica of '{self.model_id}' was ready in {patience.seconds:g} s") from None
        finally:
            self._waiting -= 1
        tried.clear()
        self._look()
        for replica in self._pool:
            if replica.id == info.id:
                return replica
        return _Replica(info, self._most_adapters)  # the runtime will list it soon

    async def _elsewhere(self, reply: Reply, replica: _Replica, tried: set[str]) -> bool:
        """Whether a refused request is to be put to another replica. If not, the reply can be read."""
        try:
            text = await reply.body()
        except ReplicaLostError:
            text = b""
        error = told_error(text)
        tried.add(replica.id)
        if not text or error.kind == "shutting_down":
            self._avoid(replica)
            return True
        if error.kind == "engine_start_failed":
            self._failure = str(error)
        self._look()
        if self._candidates(tried):
            return True
        reply.unread(text)
        return False


def told_error(body: bytes) -> PenstockError:
    """The error that a reply's body tells of."""
    try:
        about = msgspec.json.decode(body)["error"]
        return by_kind(str(about.get("code") or about.get("type")), str(about["message"]))
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        return PenstockError("the replica failed to answer this request")
