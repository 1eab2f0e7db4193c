"""One replica: a model's server in a process of its own, behind a port for ingresses elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

import msgspec
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from penstock.balance.policies.table import reads_caches
from penstock.engines.base import LLMEngine
from penstock.errors import EngineDeadError, PenstockError
from penstock.kv.cached_blocks import PROMPT_BLOCKS
from penstock.llm_config import LLMConfig
from penstock.serve.api.exchange import IngressState
from penstock.serve.api.ingress import IngressApp
from penstock.serve.config.serving_args import LLMServingArgs
from penstock.serve.config.settings import HttpSettings
from penstock.serve.http_server import HttpServer, listen
from penstock.serve.models.handle import ModelHandle, ModelNames
from penstock.serve.models.local import LocalModel, has_own_server
from penstock.serve.replicas.answering import ENDPOINTS, CallAnswer
from penstock.serve.replicas.messages import BLOCKS_HEADER, names_of
from penstock.serve.replicas.pool import LOAD_HEADER
from penstock.serve.replicas.runtime import DesiredState, DesiredStore, ReplicaInfo, engine_digest
from penstock.serve.replicas.server import WireOrHttp

_log = logging.getLogger("penstock.serve")


class ReplicaModel(LocalModel):
    """The model of one replica. It stays until its runtime ends the replica."""

    def __init__(self, config: LLMConfig, replica_id: str, engine: LLMEngine | None = None) -> None:
        deployment = config.deployment_config
        staying = msgspec.structs.replace(
            config.autoscaling, min_replicas=1, max_replicas=1, initial_replicas=None
        )
        deployment = msgspec.structs.replace(deployment, autoscaling_config=staying)
        staying_config = msgspec.structs.replace(config, deployment_config=deployment)
        super().__init__(staying_config, engine=engine)
        self.replica_id = replica_id


class ReplicaApp(IngressApp):
    """The replica's application: the public API of its one model, and what its ingresses ask
    beside. Every reply reports how many requests the replica has.
    """

    def __init__(self, model: ReplicaModel, names: ModelNames, settings: HttpSettings) -> None:
        super().__init__(IngressState(names, settings), ENDPOINTS)
        self.ingress.is_replica = True
        self._admission = model.server.admission
        self.ingress.reply_headers = self._load

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "penstock.call":
            await CallAnswer(self.ingress, scope["call"], receive, send).run()
            return
        if scope["type"] == "http" and (blocks := Headers(scope=scope).get(BLOCKS_HEADER)):
            PROMPT_BLOCKS.set(names_of(blocks))  # of this request's task
        scope["app"] = self
        await self._app(scope, receive, send)

    def _load(self) -> list[tuple[bytes, bytes]]:
        return [(LOAD_HEADER.encode(), str(self._admission.load).encode())]


class ReplicaServer:
    """`await start()`, then `info` says where it is; `await stop()`. Belongs to one event loop.

    `key` is what ingresses show; `settings` are theirs, `desired` the state to be in. `front` is
    the host and port where it is an ingress of its own as well. `engine` replaces the one that the
    configuration names; `outside` gives what requests see in place of the model.
    """

    def __init__(
        self,
        config: LLMConfig,
        *,
        replica_id: str,
        host: str,
        key: str,
        settings: HttpSettings,
        desired: DesiredStore,
        front: tuple[str, int] | None = None,
        engine: LLMEngine | None = None,
        outside: Callable[[LocalModel], ModelHandle] | None = None,
    ) -> None:
        self.config = config
        self.id = replica_id
        self.model = ReplicaModel(config, replica_id, engine)
        self.server = self.model.server
        made = self.server.engine
        made.site = msgspec.structs.replace(made.site, host=host)
        if reads_caches(config):
            made.tell_cached_blocks()
        self._desired = desired
        self._state = DesiredState()
        args = LLMServingArgs(llm_configs=[config])
        seen = self.model if outside is None else outside(self.model)
        self._is_own = seen is not self.model
        names = ModelNames({config.model_id: seen}, None, args.lora_paths)
        limits = msgspec.structs.replace(settings.limits, max_inflight=None)
        inner = HttpSettings(
            admin_keys=frozenset({key}),
            api_keys=frozenset({key}),
            limits=limits,
            trust_request_chat_template=settings.trust_request_chat_template,
            vllm_metrics=settings.vllm_metrics,
            console=False,
            drain_timeout_s=max(config.deployment_config.graceful_shutdown_timeout_s - 2.0, 0.0),
        )
        self._socket = listen(host, 0)
        self._http = HttpServer(
            ReplicaApp(self.model, names, inner), self._socket, protocol=WireOrHttp
        )
        self._listening = [self._http]
        # Shared, as the replica that this one replaces may not have left it yet.
        if front is not None:
            public = msgspec.structs.replace(settings, drain_timeout_s=inner.drain_timeout_s)
            self._listening.append(
                HttpServer(IngressApp(IngressState(names, public)), listen(*front, shared=True))
            )
        self._serving: list[asyncio.Task[None]] = []

    @property
    def info(self) -> ReplicaInfo:
        host, port = self._socket.getsockname()[:2]
        return ReplicaInfo(self.id, host, port, self.model.card().context_length)

    @property
    def ongoing(self) -> int:
        """Requests that it has: those being answered, and those that wait."""
        return self.server.admission.load

    async def start(self) -> None:
        """Load the model and listen.

        A model that may be absent (`min_replicas` 0) may also fail: its requests get the reason.
        Raises what kept any other one from loading.
        """
        await self.reconcile()
        try:
            await self.model.start()
        except PenstockError as error:
            if self.config.autoscaling.min_replicas:
                self._socket.close()
                raise
            _log.error("model '%s' could not be started: %s", self.config.model_id, error)
        else:
            await self._note()
        self._serving = [
            asyncio.create_task(http.run([], signals=False)) for http in self._listening
        ]

    async def _note(self) -> None:
        """Keep what the engine can do for the time without a replica, unless that is no rule: a
        server elsewhere decides, or a user's own server in front of it. One asleep is not known.
        """
        engine = self.server.engine
        known = getattr(engine, "capabilities", None)
        if known is None or engine.learns or self._is_own or has_own_server(self.config):
            return
        try:
            await self._desired.note(engine_digest(self.config), known)
        except Exception:  # the replica serves all the same
            _log.warning(
                "what the engine of model '%s' can do could not be kept",
                self.config.model_id,
                exc_info=True,
            )

    async def stop(self) -> None:
        """Take no more requests, let those under way finish, and free everything."""
        serving, self._serving = self._serving, []
        if serving:
            for http in self._listening:
                http.stop()
            await asyncio.wait(serving)
        with contextlib.suppress(OSError):
            self._socket.close()
        await self.model.stop(0.0)

    async def reconcile(self) -> None:
        """Take over the state that replicas are to be in, if it has changed."""
        wanted = await self._desired.load()
        if wanted.version != self._state.version:
            self._state = wanted
            await wanted.apply(self.server)

    async def check_health(self) -> None:
        """Raise if the replica should be replaced. A dead engine is started again first."""
        await self.reconcile()
        supervisor = self.server.supervisor
        if supervisor.phase == "ready":
            generation = supervisor.generation
            try:
                await self.server.engine.check_health()
            except EngineDeadError:
                supervisor.revive(generation)
        if supervisor.phase == "failed" and self.config.autoscaling.min_replicas:
            raise supervisor.failure()
