"""One replica: a model's server in a process of its own, behind a port for ingresses elsewhere, and
what it answers to them beside the public API.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from penstock.balance.backoff import is_served
from penstock.balance.policies.table import reads_caches
from penstock.engines.base import LLMEngine
from penstock.engines.side_by_side import begin
from penstock.engines.tasks import TASKS, Batches, Task, generated
from penstock.errors import (
    ClientGoneError,
    EngineDeadError,
    NoKeyError,
    PenstockError,
    RequestError,
    ShuttingDownError,
    UnavailableError,
    UnsupportedError,
)
from penstock.kv.cached_blocks import PROMPT_BLOCKS, Change
from penstock.llm_config import LLMConfig
from penstock.observability import request_id, span
from penstock.openai.responses import error_body
from penstock.serve.api.endpoints import control
from penstock.serve.api.exchange import Exchange, IngressState, log_access, note_on_span
from penstock.serve.api.ingress import IngressApp
from penstock.serve.api.interrupt import Interrupt
from penstock.serve.api.limits import too_large
from penstock.serve.api.routes import Endpoint
from penstock.serve.api.sse import StreamUsage
from penstock.serve.config.serving_args import LLMServingArgs
from penstock.serve.config.settings import HttpSettings
from penstock.serve.http_server import HttpServer, listen
from penstock.serve.models.handle import ModelHandle, ModelNames
from penstock.serve.models.local import LocalModel, has_own_server
from penstock.serve.models.pacing import joined
from penstock.serve.replicas.messages import (
    BLOCKS_HEADER,
    CACHED_PATH,
    Call,
    Failure,
    framed,
    names_of,
    pack,
)
from penstock.serve.replicas.pool import LOAD_HEADER
from penstock.serve.replicas.runtime import DesiredState, DesiredStore, ReplicaInfo, engine_digest
from penstock.serve.replicas.server import WireOrHttp
from penstock.types import Delta, Usage
from penstock.validation import mismatch

CALL_PATH = "/penstock/call/"
ENDPOINT = CALL_PATH + "{task}"
"""How logs name a call (with its task), and metrics all calls."""


class CallAnswer:
    """One call and its answer. The messages are those of ASGI."""

    def __init__(self, ingress: IngressState, call: Call, receive: Receive, send: Send) -> None:
        self._ingress = ingress
        self._call = call
        self._receive = receive
        self._send = send
        self._exchange = exchange = Exchange(ingress, call.request_id)
        exchange.endpoint = ENDPOINT
        exchange.runs = exchange.trusted = True

    async def run(self) -> None:
        """Answer. The context variables that this sets are those of the call's own task."""
        exchange, scope = self._exchange, {"method": "CALL", "path": CALL_PATH + self._call.task}
        PROMPT_BLOCKS.set(tuple(self._call.blocks))
        request_id.set(exchange.id)
        is_served.set(True)
        self._ingress.begin()
        try:
            with span("CALL") as current:
                try:
                    await self._answer()
                finally:
                    if current.recording:
                        note_on_span(current, exchange, scope)
        finally:
            self._ingress.end()
            exchange.finish()
            log_access(exchange, scope)

    async def _answer(self) -> None:
        exchange = self._exchange
        try:
            async with Interrupt(None, self._ingress.live) as interrupt:
                await self._run(interrupt)
        except asyncio.CancelledError:
            exchange.status, exchange.error = ClientGoneError.status, ClientGoneError.kind
            raise
        except Exception as caught:
            error = exchange.failed(caught)
            if exchange.status:
                await self._part(pack(Failure(error.kind, str(error), error.param)), more=False)
            else:
                await self._begin(error.status)
                await self._part(msgspec.json.encode(error_body(error)), more=False)

    async def _run(self, interrupt: Interrupt) -> None:
        call, ingress, exchange = self._call, self._ingress, self._exchange
        clock = time.perf_counter
        keys = ingress.settings.admin_keys
        if not any(hmac.compare_digest(call.key.encode(), key.encode()) for key in keys):
            raise NoKeyError("the API key is wrong")
        if ingress.draining:
            raise ShuttingDownError("the server is shutting down")
        task, request = decoded(call.task, await self._body())
        handle = (await exchange.find("")).handle
        asked = clock()
        if not task.streams:
            result = await getattr(handle, call.task)(request)
            exchange.engine_seconds = clock() - asked
            exchange.usage = getattr(result, "usage", Usage())
            interrupt.finished()
            await self._begin()
            await self._part(pack(result), more=False)
            return
        total = StreamUsage(request.n)
        batches = generated(handle, request)
        try:
            async with aclosing(whole(batches) if call.whole else batches) as batches:
                async for batch in batches:
                    now = clock()
                    exchange.engine_seconds += now - asked
                    total.take(batch)
                    if not exchange.status:
                        exchange.first_token_at = None if call.whole else now
                        await self._begin()
                    await self._part(pack(batch))
                    asked = clock()
        finally:
            exchange.usage = total.end()
        interrupt.finished()
        if not exchange.status:
            await self._begin()
        await self._part(b"", more=False)

    async def _body(self) -> bytes:
        most = self._ingress.settings.limits.max_body_bytes
        if self._call.length > most:
            raise too_large(most)
        parts, more = [], True
        while more:
            message = await self._receive()
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        return b"".join(parts)

    async def _begin(self, status: int = 200) -> None:
        self._exchange.status = status
        headers = self._ingress.reply_headers()
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _part(self, part: bytes, *, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": part, "more_body": more})


def decoded(name: str, body: bytes) -> tuple[Task, Any]:
    """A task and its request. Raises `RequestError`, and `UnavailableError` for what only a later
    version of Penstock knows: another replica may have that.
    """
    task = TASKS.get(name)
    if task is None:
        raise UnavailableError(f"this replica's version of Penstock knows no task '{name[:50]}'")
    try:
        return task, msgspec.msgpack.decode(body, type=task.request)
    except msgspec.DecodeError:
        pass
    try:
        fault = mismatch(task.request, msgspec.msgpack.decode(body))
    except msgspec.DecodeError:
        raise RequestError("the request is not of its task's form") from None
    if fault.is_unknown:
        raise UnavailableError(
            f"this replica's version of Penstock does not know '{fault.place}' of the request"
        )
    raise RequestError(f"the request is not of its task's form: {fault}", param=fault.place or None)


async def whole(batches: Batches) -> Batches:
    """The same deltas in one batch at the end, one an answer."""
    answers: dict[int, list[Delta]] = {}
    async with aclosing(batches):
        async for batch in batches:
            for delta in batch:
                answers.setdefault(delta.index, []).append(delta)
    if answers:
        yield [joined(deltas) for deltas in answers.values()]


async def cached(exchange: Exchange) -> Response:
    """What the engine has cached, in the names that requests brought, and what changes of it."""
    target = await exchange.find("")
    # The handle is in this process.
    blocks = target.handle.server.engine.cached_blocks  # type: ignore[attr-defined]
    if blocks is None:
        raise UnsupportedError(
            f"the {target.handle.engine_name} engine does not tell what it has cached"
        )
    return ChangeStream(exchange, blocks.changes())


class ChangeStream(Response):
    """Sends changes until the client leaves or the server goes down."""

    def __init__(self, exchange: Exchange, changes: AsyncGenerator[list[Change], None]) -> None:
        self._exchange = exchange
        self._changes = changes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ingress = self._exchange.ingress
        await send({"type": "http.response.start", "status": 200, "headers": []})
        # Nobody waits for the end of this one: it is the first thing to end when the server drains.
        try:
            async with (
                Interrupt(self._exchange.request.receive, ingress.watchers),
                aclosing(self._changes) as source,
            ):
                async for changes in source:
                    await send(
                        {"type": "http.response.body", "body": framed(changes), "more_body": True}
                    )
        except ClientGoneError:
            pass
        except ShuttingDownError:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


ENDPOINTS = (
    Endpoint("POST", "/penstock/control", control.act_here, control.ReplicaControlBody, admin=True),
    Endpoint("GET", CACHED_PATH, cached),
)


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
        self._applying: set[asyncio.Task[None]] = set()

    @property
    def info(self) -> ReplicaInfo:
        host, port = self._socket.getsockname()[:2]
        reads = self._is_own or self.server.engine.in_rays_form
        return ReplicaInfo(self.id, host, port, self.model.card().context_length, reads)

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
        await asyncio.gather(*self._applying)
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
        for task in self._applying:
            task.cancel()
        await self.model.stop(0.0)

    async def reconcile(self) -> None:
        """Begin to take over the state that replicas are to be in, if it has changed. A sleep waits
        for requests to end, and nobody should wait for it.
        """
        wanted = await self._desired.load()
        if wanted.version != self._state.version:
            self._state = wanted
            begin(self._apply(wanted), self._applying)

    async def _apply(self, wanted: DesiredState) -> None:
        try:
            await wanted.apply(self.server, lambda: self._state is wanted)
        except Exception:
            _log.warning(
                "model '%s' is not yet in the state that was asked for",
                self.config.model_id,
                exc_info=True,
            )
            if self._state is wanted:
                self._state = DesiredState()  # the next look tries again

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
