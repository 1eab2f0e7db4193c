"""How a caller reaches a model without knowing where it runs: in this process or in replicas
elsewhere.

The ingress sees models through `ModelHandle` alone. What it asks often (`card`, `state`) is
answered from what is known here, at once, and never loads anything.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct, field

from penstock.engines.tasks import Tasks
from penstock.errors import UnsupportedError

StateName = Literal["cold", "loading", "ready", "asleep", "paused", "draining", "failed"]


class ModelCard(Struct, frozen=True, kw_only=True):
    """What `/v1/models` says of a model or adapter.

    `base_model` is the base's id for an adapter, None for a model. `created` is in Unix seconds.
    `context_length` is in tokens; None until the model was loaded once, unless the configuration or
    the model's files state it.
    """

    id: str
    base_model: str | None = None
    created: int = 0
    owned_by: str = "penstock"
    context_length: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


class ModelState(Struct, frozen=True):
    """What a model is doing now.

    `cold`: nothing is in memory, the first request loads it. `loading`: requests wait. `asleep`:
    requests are refused with a 503 until it is woken. `paused`: requests wait. `draining`: it
    finishes what it has and takes no more. `failed`: it could not be loaded, for the `reason`; a
    later request tries again. `running` counts requests under way, `waiting` queued ones. `loads`
    counts the engine's starts since the process began, `restarts` those after a death,
    `adapter_loads` the adapters that it was given, `adapters` those that it holds. `handoffs`
    counts the outcomes of `serve.prefill_decode`, where a prefill side computes prompts.
    `on_demand`: the first request loads the model, so a `cold` one answers too. `adapter_names` are
    those that the engine holds, of `max_adapters` at most (0: it is not known here).
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

    @property
    def can_answer(self) -> bool:
        """Whether a request would be answered, if need be after a load."""
        return self.state == "ready" or (self.on_demand and self.state in ("cold", "loading"))


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

    def engine_app(self) -> Any:
        """The ASGI application of the model's own engine. Raises `UnsupportedError`."""
        raise UnsupportedError(f"the {self.engine_name} engine is not in this process")

    async def engine_metrics(self) -> dict[str, float]:
        """`LLMEngine.metrics`; empty where no engine runs, or `log_engine_metrics` is off."""
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

    @abstractmethod
    async def control(self, method: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Call a control method on every replica; `penstock.serve.models.control` lists the methods
        and their options.

        Gives one result a replica: `{"replica": id, "ok": True, "result": …}` or `{"replica": id,
        "ok": False, "error": {"type": …, "message": …}}`. Raises `RequestError` for a wrong method
        or option, `UnsupportedError` where the engine lacks the ability.
        """
