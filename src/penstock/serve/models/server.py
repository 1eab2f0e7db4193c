"""`LLMServer`: one replica, one engine, and what a request meets between ingress and engine."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from typing import Any, ClassVar

import msgspec

from penstock import env
from penstock.config import import_object
from penstock.engines.base import LLMEngine, Stated, engine_class, with_deterministic
from penstock.engines.disk.sources import copy_files
from penstock.engines.quarantine import digest_of
from penstock.engines.sampling import check_vectors
from penstock.engines.supervisor import Policy, Supervisor
from penstock.engines.tasks import Batches, Tasks, generated, task_of
from penstock.errors import (
    ConfigError,
    EngineDeadError,
    ModelNotFoundError,
    PenstockError,
    RequestError,
    UnavailableError,
)
from penstock.kv.base import Role, Site
from penstock.llm_config import LLMConfig, LoraConfig
from penstock.observability import note_queue_time
from penstock.serve.adapters import Adapters, AdapterVersion, adapter_store
from penstock.serve.config.placement import deployment_options
from penstock.serve.models.admission import Admission, Kind
from penstock.serve.models.callbacks import Callbacks
from penstock.serve.models.control import ControlPlane
from penstock.serve.models.handle import ModelState, StateName
from penstock.serve.models.pacing import DeltaStream
from penstock.serve.models.preflight import check_before_load, check_task
from penstock.types import ChatRequest, CompletionRequest, EmbeddingRequest

SLOTLESS = frozenset({"tokenize", "detokenize", "tokens", "tokenizer_info"})
"""Tasks that need no slot of the engine, so that they do not wait behind generation."""
EXTRA_IN_FLIGHT = 1.1
"""Requests in an engine, relative to its concurrency: when one ends, the next one is there."""
RESTART_DELAYS_S = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Waits before the successive restarts of an engine that dies without finishing a request in
between; when they are used up it has failed.
"""
RETRY_DELAYS_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Waits before a failed engine may be tried again, after the first failure, the second, and so on.
"""
Request = ChatRequest | CompletionRequest
_log = logging.getLogger(__name__)


class LLMServer(Tasks, ControlPlane):
    """Serves one model. Construct it (cheap, checks the configuration), `await start()`, use it,
    `await stop()`.

    `engine` replaces the one that the configuration names. `load_on_demand`: a request to a server
    that is not loaded loads it, and waits. `make_room` is awaited before the engine takes memory,
    `free_room` is called after the engine has given it back. `on_idle` is called when the last
    request has left. Raises `ConfigError` or `MissingExtraError`.
    """

    role: ClassVar[Role] = "both"

    def __init__(
        self,
        llm_config: LLMConfig,
        *,
        engine: LLMEngine | None = None,
        load_on_demand: bool = False,
        make_room: Callable[[], Awaitable[None]] = Policy.make_room,
        free_room: Callable[[], None] = lambda: None,
        on_idle: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self.llm_config = llm_config
        self.engine = engine if engine is not None else self.make_engine(llm_config)
        self.engine.site = engine_site(llm_config, self.role)
        self.engine.sharing = llm_config.batch
        self.engine.served = True
        self._stream_interval_s = llm_config.stream_batching_interval_s
        self._callbacks = Callbacks(llm_config)
        self._made_of = llm_config.model_source, dict(llm_config.engine_kwargs)
        self.admission = Admission(llm_config.max_waiting, on_idle)
        policy = Policy(
            restart_delays_s=RESTART_DELAYS_S,
            probe_after=1,
            start_retries=True,
            retry_delays_s=RETRY_DELAYS_S,
            start_timeout_s=llm_config.start_timeout_s,
            make_room=make_room,
            free_room=free_room,
            before_start=self._before_start,
            on_ready=self._on_ready,
            restore=self.reapply,
            on_change=self._on_change,
        )
        self.supervisor = Supervisor(self.engine, policy)
        lora = llm_config.lora_config or LoraConfig()
        self.store = adapter_store(llm_config, self.engine.model_source)
        self._adapters = Adapters(self.engine, lora.max_num_adapters_per_replica)
        self._load_on_demand = load_on_demand
        self._on_idle = on_idle
        self._stated: Stated | None = None  # read once in each phase
        self._stopping = False
        self.hands_on: Callable[[], bool] = lambda: False
        """Whether another replica takes over requests without a token after the engine has died."""

    @classmethod
    def make_engine(cls, llm_config: LLMConfig) -> LLMEngine:
        """The engine of a configuration, not started. Raises as `make_engine`."""
        return make_engine(llm_config)

    @classmethod
    def get_deployment_options(cls, llm_config: LLMConfig) -> dict[str, Any]:
        """Options for a runtime that deploys this server: bundles, environment, limits."""
        return deployment_options(llm_config)

    # Life
    async def start(self) -> None:
        """Load the model, and return when it is ready. Raises `EngineStartError` or
        `EngineTimeoutError`.
        """
        self._stopping = False
        if self.asleep:
            return
        self.supervisor.load()
        await self.supervisor.ready()

    async def stop(self, drain_timeout_s: float = 0.0) -> None:
        """Take no more requests, wait for those that are here, for at most `drain_timeout_s`, and
        free everything.

        Requests under way after that end with `EngineDeadError`.
        """
        self._stopping = True
        if self.paused is not None or self.asleep or self.supervisor.phase != "ready":
            self.admission.refuse_waiting(self._stopping_error)  # else they would wait for ever
        try:
            async with asyncio.timeout(drain_timeout_s):
                await self.admission.emptied()
        except TimeoutError:
            self.admission.refuse_waiting(self._stopping_error)
        await self.unload()
        for stream in self.streams:  # a pause may hold them, and nobody will resume it
            stream.release()

    async def unload(self) -> None:
        """Free everything that the model holds; a request or `start` loads it again."""
        self.admission.close()
        await self.supervisor.unload()
        if self.supervisor.phase == "cold":  # no job or other owner has the engine
            self._adapters.forget()

    def state(self) -> ModelState:
        """What the server is doing now."""
        phase, admission = self.supervisor.phase, self.admission
        name: StateName
        if self._stopping and (phase != "cold" or not admission.idle):
            name = "draining"
        elif phase in ("failed", "loading"):
            name = phase
        elif self.asleep:
            name = "draining" if phase == "ready" and admission.running else "asleep"
        else:
            name = phase if self.paused is None else "paused"
        return ModelState(
            name,
            self.supervisor.reason,
            admission.running,
            admission.waiting,
            loads=self.supervisor.generation,
            restarts=self.supervisor.restarts,
            adapter_loads=self._adapters.loads,
            adapters=len(self._adapters.names),
            adapter_names=tuple(self._adapters.plain_names),
            max_adapters=self._adapters.limit if self.llm_config.lora_config else 0,
            is_paused=self.paused is not None,
        )

    async def engine_metrics(self) -> dict[str, float]:
        """The engine's metrics; empty unless it runs and `log_engine_metrics` is on."""
        if not self.llm_config.log_engine_metrics or self.supervisor.phase != "ready":
            return {}
        return await self.engine.metrics()

    async def check_health(self) -> None:
        """Raise unless the server answers, or would answer after a wake-up or a load on demand."""
        if self.asleep or (self.supervisor.phase == "cold" and self._load_on_demand):
            return
        await self.supervisor.ready()
        await self.engine.check_health()

    # Requests
    def generate(self, request: Request) -> Batches:
        stream = DeltaStream(interval_s=self._stream_interval_s, answers=request.n)
        return stream.batches(self._let_in(request, stream))

    @asynccontextmanager
    async def _let_in(self, request: Request, stream: DeltaStream) -> AsyncIterator[Batches]:
        """Admit the request, with its adapter ready. Yields the engine's batches for the stream."""
        request_id = request.request_id or uuid.uuid4().hex
        try:
            # Before the queue, so that a slow download takes no slot, and an unknown name loads no
            # model.
            version = await self.store.fetch(request.adapter) if request.adapter else None
            task = task_of(request)
            self._check_open(task, request)
            kind: Kind = "batch" if request.batch else "online"
            await self._enter(request.priority, kind)
            try:
                self._check_task(task)
                adapter = version.loaded_as if version else None
                request = msgspec.structs.replace(request, adapter=adapter, request_id=request_id)
                async with AsyncExitStack() as held:
                    if self.paused == "keep":
                        stream.hold()
                    self.streams.add(stream)
                    held.callback(self.streams.discard, stream)
                    ask = partial(self._adapted, version) if version else self._batches
                    yield await held.enter_async_context(aclosing(self._attempts(request, ask)))
            finally:
                self.admission.leave(kind)
        except PenstockError as error:
            error.add_note(f"request {request_id}")
            raise

    async def _attempts(self, request: Request, ask: Callable[[Request], Batches]) -> Batches:
        with self.supervisor.quarantine.visit(
            partial(digest_of, request), self._asks_again
        ) as visit:
            while not visit.answered:
                async with visit, aclosing(ask(request)) as batches:
                    async for batch in batches:
                        visit.begun = True
                        yield batch

    def _asks_again(self) -> bool:
        """Whether a request without a token goes to the restarted engine after a death."""
        return not self.hands_on()

    async def _adapted(self, version: AdapterVersion, request: Request) -> Batches:
        """The batches with the adapter loaded. Inside the visit, so that an engine which dies over
        the adapter is revived too.
        """
        async with self._adapters.use(version), aclosing(self._batches(request)) as batches:
            async for batch in batches:
                yield batch

    def _batches(self, request: Request) -> Batches:
        return generated(self.engine, request)

    async def _enter(self, priority: int = 0, kind: Kind = "online") -> None:
        began = time.perf_counter()
        await self.admission.enter(priority, kind)
        note_queue_time(time.perf_counter() - began)

    async def answer(self, task: str, request: Any) -> Any:
        self._check_open(task, request)
        # Engines share their steps only between requests that generate text.
        kind: Kind = "idle" if getattr(request, "batch", False) else "online"
        if task not in SLOTLESS or self.supervisor.phase != "ready":
            await self._enter(kind=kind)
        else:
            kind = "slotless"
            self.admission.enter_at_once()
        try:
            self._check_task(task)
            if isinstance(request, EmbeddingRequest):
                check_vectors(request.vectors, self.engine.capabilities, self.engine.name)
            with self.supervisor.quarantine.visit(
                partial(digest_of, (task, request)), self._asks_again
            ) as visit:
                while not visit.answered:
                    async with visit:
                        return await getattr(self.engine, task)(request)
        finally:
            self.admission.leave(kind)

    # Adapters
    async def load_lora_adapter(
        self, lora_name: str, lora_path: str, load_inplace: bool = False
    ) -> None:
        before = self.store.given.get(lora_name)
        known = before is not None or lora_name in await self.store.names()
        if known and not load_inplace:
            raise RequestError(
                f"the adapter '{lora_name}' is known already; load_inplace replaces it",
                param="lora_name",
            )
        self.store.put(lora_name, lora_path)
        try:
            try:
                version = await self.store.fetch(lora_name)
            except ModelNotFoundError:
                raise ModelNotFoundError(
                    f"there is no adapter at '{lora_path}'", param="lora_path"
                ) from None
            if self.supervisor.phase == "ready":
                generation = self.supervisor.generation
                try:
                    async with self._adapters.use(version):
                        pass
                except EngineDeadError:
                    self.supervisor.revive(generation)
                    raise
        except BaseException:
            self.store.put(lora_name, before)
            raise

    async def unload_lora_adapter(self, lora_name: str) -> None:
        if lora_name not in self.store.given:
            raise await self.store.unknown(lora_name)
        self.store.put(lora_name, None)
        await self._adapters.drop(lora_name)

    async def set_adapters(self, wanted: Mapping[str, str | None]) -> None:
        for name, path in wanted.items():
            if self.store.given.get(name) != path:
                self.store.put(name, path)
                if path is None:
                    await self._adapters.drop(name)

    # What requests meet
    def _check_open(self, task: str, request: Any) -> None:
        """Refuse a request that cannot be answered. Load the model if that is needed, unless no
        engine would answer the request.
        """
        if self._stopping:
            raise self._stopping_error()
        if self.asleep:
            raise self.asleep_error()
        supervisor = self.supervisor
        if supervisor.stays and supervisor.phase in ("ready", "loading"):
            return
        if not self._load_on_demand or (supervisor.phase == "failed" and not supervisor.may_retry):
            raise supervisor.failure()
        self.check_before_load(task, request)
        supervisor.load()

    def check_before_load(self, task: str, *requests: Any) -> None:
        """Raise the error that the engine is known to answer with, unless it runs."""
        engine = self.engine
        if self.supervisor.phase != "ready":
            known = None if engine.learns else getattr(engine, "capabilities", None)
            stated = self._stated = self._stated or engine.stated()
            for request in requests:
                check_before_load(request, task, stated=stated, known=known, engine=engine.name)

    def _check_task(self, task: str) -> None:
        check_task(task, self.engine.capabilities.tasks, self.engine.name)

    def _stopping_error(self) -> UnavailableError:
        return UnavailableError(f"'{self.llm_config.model_id}' is shutting down")

    # For the supervisor
    async def _before_start(self) -> None:
        if self.supervisor.deaths:
            _log.warning(
                "'%s': the engine died; restart %d",
                self.engine.model_source,
                self.supervisor.deaths,
            )
        self._adapters.forget_missing()
        await self._callbacks.run("on_before_node_init")
        if self._callbacks.run_init_node:
            await self._callbacks.run("on_before_download_model_files_distributed")
            mirror = self.llm_config.model_loading_config.mirror
            for part in mirror.extra_files if mirror is not None else ():
                await asyncio.to_thread(copy_files, part.bucket_uri, part.destination_path)
        await self._callbacks.run("on_after_node_init")
        if self._callbacks.given:
            self._take_changes()

    def _take_changes(self) -> None:
        """Take over what callbacks have changed. Raises `ConfigError` for a change that is too
        late.
        """
        source, options = self._made_of
        if self.llm_config.model_source != source:
            self.engine.model_source = self.llm_config.model_source
        if self.llm_config.engine_kwargs != options and not self.engine.in_rays_form:
            raise ConfigError(
                "a callback has changed them, but the engine has read them already",
                field="engine_kwargs",
                hint="Set them in the configuration.",
            )

    async def _on_ready(self) -> None:
        limit = self.llm_config.deployment_config.max_ongoing_requests
        self.admission.max_running = limit or math.ceil(
            self.engine.capabilities.max_concurrency * EXTRA_IN_FLIGHT
        )
        self.admission.engine_shares_steps = self.engine.shares_steps
        await self._adapters.reapply()

    def _on_change(self) -> None:
        supervisor, self._stated = self.supervisor, None  # as the files may have changed
        if supervisor.phase == "ready":
            self.reopen()
            if self.admission.idle:  # no request waits for it
                self._on_idle()
            return
        self.admission.close()
        if supervisor.phase == "failed":
            known = isinstance(supervisor.error, PenstockError)
            _log.error("%s", supervisor.reason, exc_info=None if known else supervisor.error)
            self.admission.refuse_waiting(supervisor.failure)


def engine_site(config: LLMConfig, role: Role) -> Site:
    """The configured site of an engine. Names of ports end as in Ray Serve LLM."""
    bases = {
        name: port
        for name, port in config.experimental_configs.items()
        if name.endswith("_PORT_BASE")
    }
    return Site(role=role, port_bases=bases)


def engine_type(config: LLMConfig) -> type[LLMEngine]:
    """The class of a configuration's engine. Raises `ConfigError`, `MissingExtraError`."""
    replacement = env.engine_cls()
    if replacement is None:
        return engine_class(config.engine_name)
    variable, path = replacement
    cls: type[LLMEngine] = import_object(path, variable)
    return cls


def make_engine(config: LLMConfig, cls: Any = None) -> LLMEngine:
    """The engine of a configuration, not started. `cls` is its class, if given, and may be in the
    form of Ray's engines. Raises `ConfigError`, `MissingExtraError`.
    """
    cls = cls or engine_type(config)
    if not (isinstance(cls, type) and issubclass(cls, LLMEngine)):
        from penstock.serve.compat.engine import FormEngine  # imported only for such a class

        return FormEngine(config, cls)
    lora = config.lora_config
    needed = cls.adapter_options(lora.max_num_adapters_per_replica) if lora is not None else {}
    options = {**needed, **config.engine_kwargs}
    if config.deterministic:
        options = with_deterministic(cls, options)
    tokenizer = config.model_loading_config.tokenizer_source
    if tokenizer is None or tokenizer == config.model_source:
        return cls(config.model_source, engine_kwargs=options)
    try:
        return cls(config.model_source, engine_kwargs={"tokenizer": tokenizer, **options})
    except ConfigError as error:
        if error.field != "engine_kwargs.tokenizer":
            raise
        raise ConfigError(
            f"the {cls.name} engine takes no tokenizer but the model's own",
            field="model_loading_config.tokenizer_source",
            value=tokenizer,
        ) from None
