"""How a caller reaches a model without knowing where it runs: in this process or in replicas
elsewhere.

The ingress sees models through `ModelHandle` alone. `card` and `state`, which it asks often, answer
at once from what is known here, and never load anything. `ModelNames` finds the handle and the
adapter that a request's `model` means.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from penstock.engines.base import Capabilities
from penstock.engines.tasks import Batches, Tasks, generated
from penstock.errors import ConfigError, ModelNotFoundError, RequestError, UnsupportedError, nearest
from penstock.types import ChatRequest, CompletionRequest

SESSION_HEADER = "x-session-id"
"""The header of a request with the name of its session, for policies that read it."""
CLIENT_HEADER = "x-penstock-client-"
"""The prefix of headers that pass a client's headers on to users' own servers and engines."""
CLIENT_HEADERS: ContextVar[Callable[[], dict[str, str]]] = ContextVar(
    "client_headers", default=dict
)
"""Returns the headers of the HTTP request under way, if there is one."""
StateName = Literal["cold", "loading", "ready", "asleep", "paused", "draining", "failed"]


class ModelCard(Struct, frozen=True, kw_only=True):
    """What `/v1/models` says of a model or adapter.

    `base_model` is the base's id for an adapter, None for a model. `created` is in Unix seconds.
    `context_length` is in tokens. `inputs` is what messages may hold ("text", "image"). Until the
    model was loaded once they are None and empty, unless the configuration or the model's files
    state them.
    """

    id: str
    base_model: str | None = None
    created: int = 0
    owned_by: str = "penstock"
    context_length: int | None = None
    inputs: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)


class ModelState(Struct, frozen=True):
    """What a model is doing now.

    `cold`: nothing is in memory, the first request loads it. `loading`: requests wait. `asleep`:
    requests are refused with a 503 until it is woken. `paused`: requests wait. `draining`: the
    model finishes its requests and takes no more. `failed`: it could not be loaded, for the
    `reason`; a later request tries again.

    `running` counts requests under way, `waiting` queued ones. `loads` counts the engine's starts
    since the process began, `restarts` those after a death, `adapter_loads` the loads of adapters,
    `adapters` the adapters that the engine holds now. `adapter_names` are their names, at most
    `max_adapters` (0: unknown here). `handoffs` counts the outcomes of `serve.prefill_decode` if a
    prefill side computes prompts. `on_demand`: the first request loads the model, so a `cold` model
    answers too. `replicas` are the states of a model's replicas by name, if it has several in this
    process; the counts are then sums over them. `is_paused`: requests wait until the model is
    resumed, whatever its `state` is.
    """

    state: StateName
    reason: str = ""
    running: int = 0
    waiting: int = 0
    loads: int = 0
    restarts: int = 0
    adapter_loads: int = 0
    adapters: int = 0
    handoffs: dict[str, int] = field(default_factory=dict)
    on_demand: bool = False
    adapter_names: tuple[str, ...] = ()
    max_adapters: int = 0
    replicas: dict[str, ModelState] = field(default_factory=dict)
    is_paused: bool = False

    @property
    def can_answer(self) -> bool:
        """Whether a request would be answered, perhaps after a load."""
        loads = self.on_demand and self.state in ("cold", "loading")
        return not self.is_paused and (loads or self.state == "ready")


class ModelHandle(Tasks, ABC):
    """One model, wherever it runs. Errors are those of `penstock.errors`.

    Requests carry an adapter's plain name; the handle finds and loads it, and raises
    `ModelNotFoundError` if there is none. A request that finds the queue full raises
    `OverloadedError` with `retry_after`; one for a model that cannot be loaded raises
    `EngineStartError` with the reason.
    """

    model_id: str
    """The name that requests use."""

    @property
    @abstractmethod
    def engine_name(self) -> str:
        """The engine's name, for messages."""

    @abstractmethod
    def card(self) -> ModelCard:
        """Static facts, known without loading the model."""

    @abstractmethod
    def state(self) -> ModelState:
        """What the model is doing now. Never loads."""

    @property
    def aliases(self) -> tuple[str, ...]:
        """Further names that requests may use."""
        return ()

    @property
    def most_replicas(self) -> int:
        """The largest number of replicas that it may have."""
        return 1

    async def capabilities(self) -> Capabilities | None:
        """What the engine of one replica can do; None while that is unknown. Loads nothing."""
        given = self.card().metadata.get("capabilities")
        return None if given is None else msgspec.convert(given, Capabilities)

    async def check_before_load(self, task: str, *requests: Any) -> None:
        """Raise the error that the engine is known to answer one of the requests with. Does nothing
        if the engine runs. Loads nothing.
        """

    def engine_app(self) -> Any:
        """The ASGI application of the model's own engine. Raises `UnsupportedError`."""
        raise UnsupportedError(f"the {self.engine_name} engine is not in this process")

    async def engine_metrics(self) -> dict[str, float]:
        """`LLMEngine.metrics`; empty if no engine runs, or `log_engine_metrics` is off."""
        return {}

    @abstractmethod
    async def adapters(self) -> list[str]:
        """Names of the adapters that requests may use, sorted. Loads none of them."""

    async def start(self) -> None:
        """Load the model if it is to be loaded at the start, and return when it is ready.

        Returns at once for a model that loads on demand. Raises `EngineStartError` or
        `EngineTimeoutError`; the model is then `failed`, and a later request tries again.
        """

    @abstractmethod
    async def stop(self, drain_timeout_s: float = 30.0) -> None:
        """Take no more requests, wait this many seconds at most for those under way, and free
        everything.

        Requests still under way after that end with `EngineDeadError`.
        """

    def for_batch(self) -> ModelHandle:
        """A view of the model for work that can wait: its requests are of the batch class. They use
        what online requests leave free, and yield to them.
        """
        return BatchHandle(self)

    def for_session(self, session: str) -> ModelHandle:
        """A view of the model for one session, whose requests a policy may keep on one replica."""
        return self

    @abstractmethod
    async def control(self, method: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Call a control method on every replica; `penstock.serve.models.control` lists the methods
        and their options.

        Returns one result for each replica: `{"replica": id, "ok": True, "result": …}` or
        `{"replica": id, "ok": False, "error": {"type": …, "message": …}}`. Raises `RequestError`
        for a wrong method or option, `UnsupportedError` if the engine lacks the ability.
        """


class ModelView(ModelHandle):
    """Passes everything on to `handle`. Subclasses change a part of it."""

    def __init__(self, handle: ModelHandle) -> None:
        self.model_id = handle.model_id
        self._handle = handle

    @property
    def engine_name(self) -> str:
        return self._handle.engine_name

    @property
    def aliases(self) -> tuple[str, ...]:
        return self._handle.aliases

    def card(self) -> ModelCard:
        return self._handle.card()

    def state(self) -> ModelState:
        return self._handle.state()

    @property
    def most_replicas(self) -> int:
        return self._handle.most_replicas

    async def capabilities(self) -> Capabilities | None:
        return await self._handle.capabilities()

    async def check_before_load(self, task: str, *requests: Any) -> None:
        await self._handle.check_before_load(task, *requests)

    def engine_app(self) -> Any:
        return self._handle.engine_app()

    async def engine_metrics(self) -> dict[str, float]:
        return await self._handle.engine_metrics()

    async def adapters(self) -> list[str]:
        return await self._handle.adapters()

    async def start(self) -> None:
        await self._handle.start()

    async def stop(self, drain_timeout_s: float = 30.0) -> None:
        await self._handle.stop(drain_timeout_s)

    async def control(self, method: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        return await self._handle.control(method, options)


class BatchHandle(ModelView):
    """A view whose requests are of the batch class."""

    def for_batch(self) -> ModelHandle:
        return self

    def for_session(self, session: str) -> ModelHandle:
        return BatchHandle(self._handle.for_session(session))

    def generate(self, request: ChatRequest | CompletionRequest) -> Batches:
        return generated(self._handle, replace(request, batch=True))

    async def answer(self, task: str, request: Any) -> Any:
        if hasattr(request, "batch"):
            request = replace(request, batch=True)
        return await getattr(self._handle, task)(request)


_ADAPTER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")
"""Names of adapters become names of folders, so a name must not lead to another folder."""
_GENERATING = frozenset({"chat", "completions"})


class Target(NamedTuple):
    """The model, and perhaps adapter, that answers a request. `name` is its name in responses."""

    handle: ModelHandle
    adapter: str | None
    name: str


class ModelNames:
    """The models of one ingress, by id. Models in `lora_paths` find adapters on demand."""

    def __init__(
        self,
        handles: Mapping[str, ModelHandle],
        cards: Mapping[str, ModelCard] | None = None,
        lora_paths: Mapping[str, str] | None = None,
    ) -> None:
        self.handles = dict(handles)
        self._aliases: dict[str, str] = {}
        for model_id, handle in self.handles.items():
            for alias in getattr(handle, "aliases", ()):  # a user's handle may lack them
                if self._aliases.setdefault(alias, model_id) != model_id or alias in self.handles:
                    raise ConfigError(
                        f"two models are called '{alias}'",
                        field="model_loading_config.aliases",
                        value=alias,
                    )
        self._cards = dict(cards or {})
        self._lora_paths = dict(lora_paths or {})

    async def find(self, name: str) -> Target:
        """The target of "base", of "base:adapter", or of "adapter" if only one model has it.

        An empty name means the only model, or the only one that generates. Raises
        `ModelNotFoundError` with the nearest name.
        """
        if not name:
            named = list(self.handles)
            if len(named) > 1:
                named = [model_id for model_id in named if _generates(self.handles[model_id])]
            if len(named) == 1:
                return Target(self.handles[named[0]], None, named[0])
            raise RequestError(
                f"model is missing. {nearest('', self.handles)}".rstrip(), param="model"
            )
        name = self._aliases.get(name, name)
        if name in self.handles:
            return Target(self.handles[name], None, name)
        base, colon, adapter = name.rpartition(":")
        if base in self._aliases:
            base = self._aliases[base]
            name = f"{base}:{adapter}"
        if colon and base in self.handles:
            return await self._with_adapter(base, self.handles[base], adapter, name)
        return await self._adapter_alone(name)

    async def cards(self) -> list[dict[str, Any]]:
        """Every model, each followed by its adapters, in the form of `/v1/models`."""
        cards = []
        for model_id, handle in self.handles.items():
            cards.append(self._card(model_id, handle))
            cards += [
                {**cards[-1], "id": alias, "parent": model_id}
                for alias, named in self._aliases.items()
                if named == model_id
            ]
            cards += [self._card(model_id, handle, adapter) for adapter in await handle.adapters()]
        return cards

    async def card(self, name: str) -> dict[str, Any]:
        """The card of one model or adapter."""
        handle, adapter, _ = await self.find(name)
        if adapter is not None and adapter not in (known := await handle.adapters()):
            raise _unknown_adapter(handle.model_id, adapter, known)
        return self._card(handle.model_id, handle, adapter)

    async def _with_adapter(
        self, base: str, handle: ModelHandle, adapter: str, name: str
    ) -> Target:
        if not _ADAPTER.fullmatch(adapter):
            raise ModelNotFoundError(f"'{adapter[:130]}' is no name of an adapter", param="model")
        # If adapters are found on demand, the list may be older than the adapter: its server
        # decides.
        if base not in self._lora_paths and adapter not in (known := await handle.adapters()):
            raise _unknown_adapter(base, adapter, known)
        return Target(handle, adapter, name)

    async def _adapter_alone(self, name: str) -> Target:
        adapters = {model_id: await handle.adapters() for model_id, handle in self.handles.items()}
        owners = [model_id for model_id, names in adapters.items() if name in names]
        if len(owners) == 1:
            return Target(self.handles[owners[0]], name, name)
        if owners:
            ways = ", ".join(f"'{owner}:{name}'" for owner in owners)
            raise ModelNotFoundError(
                f"several models have an adapter '{name}': ask for one of {ways}", param="model"
            )
        known = [
            *self.handles,
            *(f"{model_id}:{adapter}" for model_id, names in adapters.items() for adapter in names),
        ]
        raise ModelNotFoundError(
            f"no model '{name[:200]}'. {nearest(name[:200], known)}".rstrip(), param="model"
        )

    def _card(
        self, model_id: str, handle: ModelHandle, adapter: str | None = None
    ) -> dict[str, Any]:
        now = handle.card()  # it may know more than when the other card was given
        card = self._cards.get(model_id) or now
        known, inputs = now.context_length, now.inputs or card.inputs
        state = handle.state()
        return {
            "id": model_id if adapter is None else f"{model_id}:{adapter}",
            "object": "model",
            "created": card.created,
            "owned_by": card.owned_by,
            "parent": card.base_model if adapter is None else model_id,
            "engine": handle.engine_name,
            "state": state.state,
            "reason": state.reason or None,
            "max_model_len": known if known is not None else card.context_length,
            "input_modalities": list(inputs) or None,
            "metadata": card.metadata,
        }


def _generates(handle: ModelHandle) -> bool:
    """Whether a model generates text, or may do so because it was never loaded."""
    capabilities = handle.card().metadata.get("capabilities")
    return capabilities is None or not _GENERATING.isdisjoint(capabilities["tasks"])


def _unknown_adapter(base: str, adapter: str, known: list[str]) -> ModelNotFoundError:
    hint = nearest(adapter, known) or "It has none."
    return ModelNotFoundError(f"model '{base}' has no adapter '{adapter}'. {hint}", param="model")
