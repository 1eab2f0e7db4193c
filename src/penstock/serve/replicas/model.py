"""A model whose replicas run elsewhere, as a handle. Requests reach them over HTTP, whatever
runtime placed them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import msgspec

from penstock.balance.policies.base import RoutingPolicy
from penstock.balance.policies.from_config import configured_policy
from penstock.engines.deltas import Batches
from penstock.engines.tasks import TASKS, task_of
from penstock.errors import EngineDeadError, ReplicaLostError, UnsupportedError
from penstock.llm_config import LLMConfig
from penstock.serve.adapters.store import adapter_store
from penstock.serve.models.control import parse_control
from penstock.serve.models.handle import ModelCard, ModelHandle, ModelState, StateName
from penstock.serve.replicas import calls
from penstock.serve.replicas.client import Address
from penstock.serve.replicas.desired_state import DesiredStore, InMemoryStore, change_desired
from penstock.serve.replicas.info import ReplicaInfo, Replicas
from penstock.serve.replicas.pool import ReplicaPool, error_of
from penstock.types import ChatRequest, CompletionRequest


class RemoteModel(ModelHandle):
    """Belongs to one event loop, but for `control`, which any may call.

    `key` is what the replicas want to be shown. What its runtime must do (start replicas, stop
    them) it does itself.
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
        self.config = config
        self._replicas = replicas
        self._key = key
        self._desired = desired or InMemoryStore()
        self.pool = ReplicaPool(
            config,
            replicas,
            key=key,
            policy=policy or configured_policy(config),
            desired=self._desired,
        )
        self._store = adapter_store(config, config.model_source)
        self._created = int(time.time())

    # What it is
    @property
    def engine_name(self) -> str:
        return self.config.engine_name

    def card(self) -> ModelCard:
        lengths = [
            info.context_length
            for info in self._replicas.current()
            if info.context_length is not None
        ]
        given = self.config.engine_kwargs.get("max_model_len")
        return ModelCard(
            id=self.model_id,
            created=self._created,
            context_length=lengths[0] if lengths else given if isinstance(given, int) else None,
            metadata={"engine": self.engine_name},
        )

    def state(self) -> ModelState:
        pool, wanted = self.pool, self.pool.wanted
        replicas = pool.current()
        stays = self.config.autoscaling.min_replicas > 0
        reason = ""
        name: StateName
        if wanted.asleep is not None:
            name = "asleep"
        elif wanted.paused is not None:
            name = "paused"
        elif pool.failure:
            name, reason = "failed", pool.failure
        elif replicas:
            name = "ready"
        else:
            name = "loading" if pool.waiting or stays else "cold"
        running = sum(replica.running for replica in replicas)
        return ModelState(name, reason, running, pool.waiting, on_demand=not stays)

    async def engine_metrics(self) -> dict[str, float]:
        """Nothing: each replica counts for itself, on a page of its own."""
        return {}

    async def adapters(self) -> list[str]:
        return await self._store.names()

    async def start(self) -> None:
        """Nothing: the runtime starts what is to be started."""

    async def stop(self, drain_timeout_s: float = 30.0) -> None:
        self.pool.close()

    # Requests
    async def generate(self, request: ChatRequest | CompletionRequest) -> Batches:
        body = calls.pack(request)
        route = self.pool.route_of(request)
        frames = calls.FrameReader()
        path = calls.PATH + task_of(request)
        try:
            async with self.pool.ask(
                path, [("x-request-id", request.request_id)], body, route
            ) as reply:
                if reply.status != 200:
                    raise error_of(await reply.body())
                while part := await reply.read():
                    deltas, error = frames.feed(part)
                    if deltas:
                        yield deltas
                    if error is not None:
                        raise error
        except ReplicaLostError:
            raise EngineDeadError("the replica that answered this request is gone") from None

    async def answer(self, task: str, request: Any) -> Any:
        body = calls.pack(request)
        try:
            async with self.pool.ask(calls.PATH + task, [], body, self.pool.route(b"")) as reply:
                text = await reply.body()
        except ReplicaLostError:
            raise EngineDeadError("the replica that answered this request is gone") from None
        if reply.status != 200:
            raise error_of(text)
        return msgspec.msgpack.decode(text, type=TASKS[task].result)

    # Control
    async def control(self, method: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        """As `ModelHandle.control`, on every replica at once. May be called in any event loop."""
        parsed = parse_control(method, options)
        # First, so that a replica that starts meanwhile is told.
        self.pool.wanted = await change_desired(self._desired, method, parsed)
        replicas = self._replicas.current()
        return list(
            await asyncio.gather(*(self._control_one(info, method, options) for info in replicas))
        )

    async def _control_one(
        self, info: ReplicaInfo, method: str, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        # Over a connection of its own: those that are kept belong to the event loop of the
        # requests.
        address = Address(info.host, info.port)
        body = msgspec.json.encode({"method": method, "options": options})
        headers = [("authorization", f"Bearer {self._key}"), ("content-type", "application/json")]
        try:
            with closing(
                await address.request("POST", "/penstock/control", headers, body)
            ) as reply:
                text = await reply.body()
        except ReplicaLostError as error:
            return {
                "replica": info.id,
                "ok": False,
                "error": {"type": "unreachable", "message": str(error)},
            }
        finally:
            address.close()
        if reply.status != 200:
            told = error_of(text)
            if isinstance(told, UnsupportedError):
                raise told
            return {
                "replica": info.id,
                "ok": False,
                "error": {"type": told.kind, "message": str(told)},
            }
        result: dict[str, Any] = msgspec.json.decode(text)
        return result
