"""A model whose replicas run elsewhere, as a handle. Any runtime may have placed them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, closing
from functools import cached_property
from typing import Any

import msgspec

from penstock import env
from penstock.balance.policies.base import RoutingPolicy
from penstock.balance.policies.table import configured_policy
from penstock.engines.base import Capabilities, LLMEngine, Stated
from penstock.engines.tasks import TASKS, Batches, Tasks, task_of
from penstock.errors import (
    EngineDeadError,
    ReplicaLostError,
    ShuttingDownError,
    UnsupportedError,
)
from penstock.llm_config import LLMConfig
from penstock.serve.adapters import RECHECK_S, adapter_store
from penstock.serve.models.control import control_failure, parse_control, undo_of_load
from penstock.serve.models.handle import ModelCard, ModelHandle, ModelState, StateName
from penstock.serve.models.local import has_own_server
from penstock.serve.models.preflight import check_before_load
from penstock.serve.models.server import make_engine
from penstock.serve.replicas.client import Address, Reply
from penstock.serve.replicas.messages import deltas_of, pack
from penstock.serve.replicas.pool import MOST_LOST, ReplicaPool, error_of
from penstock.serve.replicas.runtime import (
    DesiredStore,
    InMemoryStore,
    ReplicaInfo,
    Replicas,
    change_desired,
    engine_digest,
)
from penstock.types import ChatRequest, CompletionRequest

DESCRIBE_S = 5.0
"""Seconds that the first request to a model without a replica waits for what describes it."""
_log = logging.getLogger(__name__)


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
        self._digest = engine_digest(config)
        self._describing: asyncio.Task[Stated] | None = None
        self._looked_at = float("-inf")
        self._wanted_adapters: dict[str, str | None] = {}

    # What it is
    @property
    def engine_name(self) -> str:
        return self.config.engine_name

    @property
    def aliases(self) -> tuple[str, ...]:
        return tuple(self.config.model_loading_config.aliases)

    @property
    def most_replicas(self) -> int:
        return self.config.deployment_config.replica_counts[1]

    async def capabilities(self) -> Capabilities | None:
        return await self._desired.noted(self._digest)

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
        paused = wanted.paused is not None
        return ModelState(
            name, reason, running, pool.waiting, on_demand=not stays, is_paused=paused
        )

    async def adapters(self) -> list[str]:
        now = time.monotonic()
        if now - self._looked_at >= RECHECK_S:  # another ingress may have loaded some
            self._looked_at, self._wanted_adapters = now, (await self._desired.load()).adapters
        wanted = self._wanted_adapters
        names = {name for name in await self._store.names() if wanted.get(name, name) is not None}
        return sorted(names | {name for name, path in wanted.items() if path is not None})

    async def check_adapter(self, name: str) -> None:
        """Raise `ModelNotFoundError` unless the model has that adapter, or the errors of its
        source. Asks no replica.
        """
        if name not in await self.adapters():
            await self._store.check(name)

    async def check_before_load(self, task: str, *requests: Any) -> None:
        """Raise what the engine is known to answer before there is one. Asks no replica."""
        engine = self._idle_engine
        known = await self._desired.noted(self._digest)
        stated = None
        if engine is not None and (known is None or not known.vocabulary):
            if self._describing is None:
                self._describing = asyncio.create_task(asyncio.to_thread(_described, engine))
            await asyncio.wait([self._describing], timeout=DESCRIBE_S)
            stated = self._describing.result() if self._describing.done() else None
            if known is None and not engine.learns:
                known = getattr(engine, "capabilities", None)
        for request in requests:
            check_before_load(request, task, stated=stated, known=known, engine=self.engine_name)

    @cached_property
    def _idle_engine(self) -> LLMEngine | None:
        """An engine as the replicas run, which is never started: it knows what the files that are
        here too say. None for a user's own, which may need a GPU to be made, and behind a user's
        own server, which may answer what its engine does not.
        """
        if env.engine_cls() is not None:
            return None
        try:
            return None if has_own_server(self.config) else make_engine(self.config)
        except Exception as error:  # what its options need may be on the replicas' machines alone
            _log.info("nothing is known of '%s' before it is loaded: %s", self.model_id, error)
            return None

    async def stop(self, drain_timeout_s: float = 30.0) -> None:
        self.pool.close()

    # Requests
    async def generate(self, request: ChatRequest | CompletionRequest) -> Batches:
        try:
            async with await self._call(task_of(request), request) as reply:
                async for deltas in _batches_of(reply):
                    yield deltas
        except ReplicaLostError:
            raise EngineDeadError("the replica that answered this request is gone") from None

    async def answer(self, task: str, request: Any) -> Any:
        try:
            async with await self._call(task, request) as reply:
                return await _result_of(task, reply)
        except ReplicaLostError:
            raise EngineDeadError("the replica that answered this request is gone") from None

    async def complete(self, task: str, request: Any) -> Any:
        """The result of a task; of a generating one the list of its deltas, one an answer.

        A replica that is lost with it, or whose engine is, is replaced by another one, up to
        `MOST_LOST` times: nothing of the answer was given yet.
        """
        for _ in range(MOST_LOST):
            async with await self._call(task, request, whole=True) as reply:
                try:
                    return await _result_of(task, reply)
                except (EngineDeadError, ShuttingDownError):
                    pass
        raise EngineDeadError(f"{MOST_LOST} replicas were lost with this request")

    async def _call(
        self, task: str, request: Any, *, whole: bool = False
    ) -> AbstractAsyncContextManager[Reply]:
        if not self.pool.current():
            await self.check_before_load(task, request)
        route = self.pool.route_of(request)
        id = getattr(request, "request_id", "")
        return self.pool.call(task, pack(request), route, id=id, whole=whole)

    # Control
    async def control(self, method: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        """As `ModelHandle.control`, on every replica at once. May be called in any event loop."""
        parsed = parse_control(method, options)
        of_adapters = method.endswith("_lora_adapter")
        if not of_adapters:  # first, so a replica that starts meanwhile takes it over
            self.pool.wanted = await change_desired(self._desired, method, parsed)
        replicas = self._replicas.current()
        results = list(
            await asyncio.gather(*(self._control_one(info, method, options) for info in replicas))
        )
        if of_adapters and all(one["ok"] for one in results):  # last: a wrong path is not kept
            self.pool.wanted = await change_desired(self._desired, method, parsed)
            self._looked_at = float("-inf")
        elif method == "load_lora_adapter":
            await self._undo_load(
                parsed["lora_name"],
                [info for info, one in zip(replicas, results, strict=True) if one["ok"]],
            )
        return results

    async def _undo_load(self, adapter: str, loaded: Sequence[ReplicaInfo]) -> None:
        """An adapter that one replica cannot load, none has."""
        known = (await self._desired.load()).adapters
        undo = undo_of_load(adapter, known.get(adapter, self._store.given.get(adapter)))
        await asyncio.gather(*(self._control_one(info, *undo) for info in loaded))

    async def _control_one(
        self, info: ReplicaInfo, method: str, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        # Kept connections belong to the event loop of the requests.
        address = Address(info.host, info.port)
        body = msgspec.json.encode({"method": method, "options": options})
        headers = [("authorization", f"Bearer {self._key}"), ("content-type", "application/json")]
        try:
            with closing(
                await address.connected().ask("POST", "/penstock/control", headers, body)
            ) as reply:
                text = await reply.body()
        except ReplicaLostError as lost:
            return control_failure(info.id, "unreachable", str(lost))
        finally:
            address.close()
        if reply.status == 200:
            result: dict[str, Any] = msgspec.json.decode(text)
            return result
        error = error_of(text)
        if isinstance(error, UnsupportedError):
            raise error
        return control_failure(info.id, error.kind, str(error), error.param)


def _described(engine: LLMEngine) -> Stated:
    engine.describe()
    return engine.stated()


class CompleteAnswers(Tasks):
    """A remote model that gives each answer as a whole, for work that can wait for it."""

    def __init__(self, model: RemoteModel) -> None:
        self.model_id = model.model_id
        self.deployment: object = model
        """What has its further methods."""
        self._model = model

    async def answer(self, task: str, request: Any) -> Any:
        return await self._model.complete(task, request)

    async def generate(self, request: ChatRequest | CompletionRequest) -> Batches:
        if deltas := await self.answer(task_of(request), request):
            yield deltas


async def _batches_of(reply: Reply) -> Batches:
    """The deltas of a call's answer. Raises the error that it has instead, or at its end."""
    if reply.status != 200:
        raise error_of(await reply.body())
    while not reply.done:
        deltas, error = deltas_of(await reply.parts())
        if deltas:
            yield deltas
        if error is not None:
            raise error


async def _result_of(task: str, reply: Reply) -> Any:
    parts = []
    while not reply.done:
        parts += await reply.parts()
    if reply.status != 200:
        raise error_of(b"".join(parts))
    if not TASKS[task].streams:
        return msgspec.msgpack.decode(b"".join(parts), type=TASKS[task].result)
    deltas, error = deltas_of(parts)
    if error is not None:
        raise error
    return deltas
