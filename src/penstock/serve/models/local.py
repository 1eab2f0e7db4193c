"""The local runtime: models in this process, each loaded when it is needed and unloaded when it is
idle, within one memory budget.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from msgspec import to_builtins
from msgspec.structs import fields, replace

from penstock.config import import_object
from penstock.cores import usable_cores
from penstock.engines.base import LLMEngine, Room
from penstock.engines.tasks import Batches, generated
from penstock.errors import ConfigError, OverloadedError
from penstock.llm_config import DeploymentConfig, LLMConfig
from penstock.llm_config.engine_config import kind_of_bundles
from penstock.serve.config.placement import engine_bundles
from penstock.serve.models.control import control_result
from penstock.serve.models.handle import ModelCard, ModelHandle, ModelState
from penstock.serve.models.memory import MemoryBudget, copy_estimate, memory_estimate
from penstock.serve.models.server import LLMServer
from penstock.types import ChatRequest, CompletionRequest

REPLICA = "local-0"
"""The name of a model's first or only replica here."""
_SET_BY_CLUSTERS = (
    "accelerator_type",
    "accelerator_config",
    "placement_group_config",
    "runtime_env",
)
_READ = frozenset(
    {
        *("autoscaling_config", "max_ongoing_requests", "max_queued_requests"),
        *("graceful_shutdown_timeout_s", "ray_actor_options", "num_replicas"),
        "request_router_config",  # with one replica there is nothing to choose
    }
)
"""The fields of `deployment_config` that have a meaning on one machine."""
_log = logging.getLogger(__name__)


class LocalModel(ModelHandle):
    """One server in this process.

    A model with `min_replicas` 0 is unloaded after an idle delay, or when another model needs the
    room. `engine` replaces the one that the configuration names; it may run already.
    """

    replica_id = REPLICA

    def __init__(
        self,
        config: LLMConfig,
        budget: MemoryBudget | None = None,
        *,
        engine: LLMEngine | None = None,
    ) -> None:
        scaling = config.autoscaling
        self.model_id = config.model_id
        self.config = config
        self._stays = scaling.min_replicas > 0
        self._starts = self._stays or bool(scaling.initial_replicas)
        delay = scaling.downscale_to_zero_delay_s
        self._idle_delay_s: float | None = scaling.downscale_delay_s if delay is None else delay
        """None: only the owner unloads the model."""
        self._budget = budget or MemoryBudget()
        self._created = int(time.time())
        self._idle_since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._unloading: asyncio.Task[None] | None = None
        self.server: LLMServer = server_class(config)(
            config,
            engine=engine,
            load_on_demand=True,
            make_room=self._make_room,
            free_room=lambda: self._budget.release(self),
            on_idle=self._on_idle,
        )

        if (beside := self.server.engine.beside) is not None:
            beside.room = Room(
                self._make_room_beside, self._budget.notify, lambda: self._budget.release(beside)
            )

    @property
    def engine_name(self) -> str:
        return self.server.engine.name

    @cached_property
    def _stated_context_length(self) -> int | None:
        return self.server.engine.stated_context_length()

    @cached_property
    def _stated_inputs(self) -> tuple[str, ...]:
        return self.server.engine.stated_inputs()

    def card(self) -> ModelCard:
        capabilities = getattr(self.server.engine, "capabilities", None)
        length = capabilities.context_length if capabilities else self._stated_context_length
        return ModelCard(
            id=self.model_id,
            created=self._created,
            context_length=length or None,
            inputs=capabilities.inputs if capabilities else self._stated_inputs,
            metadata={
                "engine": self.engine_name,
                **({"capabilities": to_builtins(capabilities)} if capabilities else {}),
            },
        )

    def state(self) -> ModelState:
        return replace(self.server.state(), on_demand=not self._stays)

    @property
    def aliases(self) -> tuple[str, ...]:
        return tuple(self.config.model_loading_config.aliases)

    async def check_before_load(self, task: str, *requests: Any) -> None:
        if type(self.server).__module__.startswith("penstock."):  # a user's server may answer more
            self.server.check_before_load(task, *requests)

    def engine_app(self) -> Any:
        return self.server.engine.build_asgi_app()

    async def engine_metrics(self) -> dict[str, float]:
        return await self.server.engine_metrics()

    async def adapters(self) -> list[str]:
        return await self.server.store.names()

    # Life
    async def start(self) -> None:
        if self._starts:
            await self.server.start()

    async def stop(self, drain_timeout_s: float = 30.0) -> None:
        if self._unloading is not None:
            await asyncio.wait([self._unloading])
        await self.server.stop(drain_timeout_s)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def idle_since(self) -> float | None:
        """The event loop's time of the last use; None while it is in use, or must stay."""
        server = self.server
        used = self._stays or server.supervisor.in_use or not server.admission.idle
        return None if used or server.supervisor.phase != "ready" else self._idle_since

    async def unload(self) -> None:
        """Free what the model holds. The next request loads it again."""
        with self._budget.unloading():
            await self.server.unload()

    # Requests
    def generate(self, request: ChatRequest | CompletionRequest) -> Batches:
        return generated(self.server, request)

    async def answer(self, task: str, request: Any) -> Any:
        return await getattr(self.server, task)(request)

    async def control(self, method: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [await control_result(self.server, self.replica_id, method, options)]

    # Idleness
    async def _make_room_beside(self) -> None:
        """Make room for what the engine loads beside the model: further copies of it."""
        beside = self.server.engine.beside
        assert beside is not None
        size = await asyncio.to_thread(copy_estimate, self.config)
        own = await asyncio.to_thread(memory_estimate, self.config)
        self._budget.check(own + size)
        if not await self._budget.make_room(beside, size):
            raise OverloadedError(
                f"'{self.model_id}' needs about {size >> 20} MiB more for this request, and the"
                " models that hold the memory are in use"
            )

    async def _make_room(self) -> None:
        await self._budget.acquire(self, await asyncio.to_thread(memory_estimate, self.config))

    def _on_idle(self) -> None:
        if self._stays or self.server.supervisor.phase != "ready":
            return
        loop = asyncio.get_running_loop()
        self._idle_since = loop.time()
        self._budget.notify()
        if self._idle_delay_s is not None and self._timer is None:
            # A timer that is set already will see how long the model has been idle.
            self._timer = loop.call_later(self._idle_delay_s, self._look)

    def _look(self) -> None:
        """The timer went off: unload the model, or set the timer for when that is due."""
        self._timer = None
        since = self.idle_since
        if since is None or self._idle_delay_s is None:
            return  # in use: the timer is set again when that ends
        loop = asyncio.get_running_loop()
        remaining = since + self._idle_delay_s - loop.time()
        if remaining > 0:
            self._timer = loop.call_later(remaining, self._look)
        else:
            self._unloading = asyncio.create_task(self._unload_idle())

    async def _unload_idle(self) -> None:
        if self.idle_since is not None:  # still idle: a request may have come in the same turn
            await self.unload()


def server_class(config: LLMConfig) -> type[LLMServer]:
    """The class of the server that a configuration names. Raises `ConfigError`."""
    given = config.server_cls
    cls = import_object(given, "server_cls") or LLMServer
    cls = getattr(cls, "own_server_cls", cls) or LLMServer  # that of a server in Ray's form
    if not isinstance(cls, type) or not issubclass(cls, LLMServer):
        raise ConfigError(
            "must be a subclass of penstock.serve.LLMServer",
            field="server_cls",
            value=given,
        )
    if config.prefill_config is not None and cls.role != "decode":
        raise ConfigError(
            f"{cls.__name__} has no use for a prefill side",
            field="prefill_config",
            hint="PDServingArgs makes a pair.",
        )
    return cls


def has_own_server(config: LLMConfig) -> bool:
    """Whether a user's class serves the model. It may answer what the engine cannot."""
    cls = import_object(config.server_cls, "server_cls")
    return cls is not None and not cls.__module__.startswith("penstock.")


def faced(config: LLMConfig, model: LocalModel) -> ModelHandle:
    """A replica, behind the user's server in Ray's form if there is one."""
    around = getattr(import_object(config.server_cls, "server_cls"), "around", None)
    return model if around is None else around(model)


def _handle(config: LLMConfig, budget: MemoryBudget) -> ModelHandle:
    fewest, most = local_counts(config)
    if most == 1:
        if config.deployment_config.request_router_config:  # unused, and yet checked
            from penstock.balance.policies.table import configured_policy

            configured_policy(config)
        model = LocalModel(config, budget)
        # A model that starts now says it itself, one on demand only to its first client.
        if fewest == 0 and (lack := model.server.engine.lacks()):
            _log.warning("model '%s' will not start: %s", config.model_id, lack)
        return faced(config, model)
    from penstock.serve.models.replicated import ReplicatedModel  # which is made of `LocalModel`s

    return ReplicatedModel(config, budget)


def local_counts(config: LLMConfig) -> tuple[int, int]:
    """The fewest and the most replicas of a model here. "auto" is up to one for each core.

    A model that takes accelerators, runs elsewhere, or is a side of a prefill/decode pair has one
    replica: this runtime can divide only cores among replicas.
    """
    fewest, most = config.deployment_config.replica_counts
    if config.deployment_config.is_unbounded:
        most = max(len(usable_cores()), fewest, config.autoscaling.initial_replicas or 0)
    if most > 1 and (
        config.engine_name == "remote"
        or kind_of_bundles(engine_bundles(config)) != "cpu"
        or server_class(config).role != "both"
    ):
        return min(fewest, 1), 1
    return fewest, most


def passed_over(config: LLMConfig) -> list[str]:
    """The names of fields that are set, and that this runtime cannot honour."""
    found = [name for name in _SET_BY_CLUSTERS if getattr(config, name) is not None]
    deployment, unset = config.deployment_config, DeploymentConfig()
    for part in fields(deployment):
        value = getattr(deployment, part.name)
        if part.name not in _READ and value != getattr(unset, part.name):
            found.append(f"deployment_config.{part.name}")
    if config.num_ingress_replicas is not None:
        found.append("experimental_configs.num_ingress_replicas")
    if config.autoscaling.policy is not None:
        found.append("deployment_config.autoscaling_config.policy")
    most = deployment.replica_counts[1]
    if most > 1 and local_counts(config)[1] == 1:
        scaled = deployment.autoscaling_config is not None
        name = "autoscaling_config.max_replicas" if scaled else "num_replicas"
        found.append(f"deployment_config.{name} ({most})")
    return found


def build_local_handles(
    configs: Iterable[LLMConfig], *, memory_budget_bytes: int | None = None
) -> dict[str, ModelHandle]:
    """A handle for each model, by its id. Checks every configuration, and loads nothing: see
    `ModelHandle.start`.

    With `memory_budget_bytes`, the least recently used idle model that loads on demand makes room
    for the next one; what a model takes is an estimate (`memory.memory_estimate`). A warning names
    fields that one process cannot honour. Raises `ConfigError`, `MissingExtraError`.
    """
    budget = MemoryBudget(memory_budget_bytes)
    handles: dict[str, ModelHandle] = {}
    for config in configs:
        if config.model_id in handles:
            raise ConfigError(
                f"two models are called '{config.model_id}'",
                field="model_loading_config.model_id",
                value=config.model_id,
            )
        if config.llm_engine is None:
            _log.info(
                "model '%s' runs on %s: %s",
                config.model_id,
                config.engine_name,
                config.engine_reason,
            )
        try:
            handles[config.model_id] = _handle(config, budget)
        except ConfigError as error:
            raise ConfigError(f"model '{config.model_id}': {error}", value=error.value) from None
        for side, name in ((config, ""), (config.prefill_config, "the prefill side of ")):
            if side is not None and (ignored := passed_over(side)):
                _log.warning(
                    "%smodel '%s': the local runtime parts CPU cores and nothing else; it passes"
                    " over %s",
                    name,
                    config.model_id,
                    ", ".join(ignored),
                )
    return handles
