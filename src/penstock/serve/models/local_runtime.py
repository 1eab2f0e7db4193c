"""The local runtime: models in this process, loaded when they are needed, within one memory budget."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

import msgspec

from penstock.config import import_object
from penstock.errors import ConfigError, EngineStartError
from penstock.llm_config import DeploymentConfig, LLMConfig

if TYPE_CHECKING:
    from penstock.serve.models.handle import ModelHandle

HANDLE = "penstock.serve.models.local:LocalModel"
"""What stands for a model here. Named rather than imported: a runtime places what it is handed, and knows no server."""

_SET_BY_CLUSTERS = ("accelerator_type", "accelerator_config", "placement_group_config", "runtime_env")
_log = logging.getLogger(__name__)


class Resident(Protocol):
    """Something that takes memory while it is loaded."""

    @property
    def idle_since(self) -> float | None:
        """The event loop's time since when nobody has used it; None while it is in use, or must stay."""

    async def unload(self) -> None:
        """Give the memory back."""


class MemoryBudget:
    """How much the loaded models may take together, by estimate. `total` is in bytes; None is no limit."""

    def __init__(self, total: int | None = None) -> None:
        self.total = total
        self._held: dict[Resident, int] = {}
        self._acquiring = asyncio.Lock()
        self._changed = asyncio.Event()

    @property
    def used(self) -> int:
        """Bytes that are taken or promised."""
        return sum(self._held.values())

    async def acquire(self, resident: Resident, size: int) -> None:
        """Make room for `size` bytes: unload the least recently used idle residents, or wait until there is one.

        Raises `EngineStartError` if it does not fit even alone.
        """
        if resident in self._held:  # not behind the lock, whose holder may be waiting for just this one to become idle
            return
        if self.total is not None and size > self.total:
            raise EngineStartError(f"it takes about {size >> 20} MiB, and the memory budget is {self.total >> 20} MiB")
        async with self._acquiring:
            while self.total is not None and self.used + size > self.total:
                idle = [(since, other) for other in self._held if (since := other.idle_since) is not None]
                if idle:
                    await min(idle, key=lambda pair: pair[0])[1].unload()
                else:
                    self._changed.clear()
                    await self._changed.wait()
            self._held[resident] = size

    def release(self, resident: Resident) -> None:
        """The resident has given its memory back."""
        self._held.pop(resident, None)
        self._changed.set()

    def notify(self) -> None:
        """A resident has become idle."""
        self._changed.set()


_READ = frozenset(
    {
        *("autoscaling_config", "max_ongoing_requests", "max_queued_requests"),
        *("graceful_shutdown_timeout_s", "ray_actor_options"),
    }
)
"""What of `deployment_config` has a meaning in one process."""


def passed_over(config: LLMConfig) -> list[str]:
    """The fields that this configuration sets and this runtime cannot honour: it has one replica, where it is."""
    found = [name for name in _SET_BY_CLUSTERS if getattr(config, name) is not None]
    deployment, unset = config.deployment_config, DeploymentConfig()
    for part in msgspec.structs.fields(deployment):
        value = getattr(deployment, part.name)
        if part.name not in _READ and value != getattr(unset, part.name) and (part.name, value) != ("num_replicas", 1):
            found.append(f"deployment_config.{part.name}")
    scaling = config.autoscaling
    for name in ("min_replicas", "max_replicas"):
        if (replicas := getattr(scaling, name)) > 1:
            found.append(f"deployment_config.autoscaling_config.{name} ({replicas})")
    return found


def build_local_handles(
    configs: Iterable[LLMConfig], *, memory_budget_bytes: int | None = None
) -> dict[str, ModelHandle]:
    """A handle for each model, by its id. Checks every configuration, and loads nothing: see `ModelHandle.start`.

    With `memory_budget_bytes`, the least recently used idle model that loads on demand makes room for the next one;
    what a model takes is an estimate (`model_size.memory_estimate`), and nothing is measured. Fields that one process
    cannot honour are named in a warning. Raises `ConfigError`, `MissingExtraError`.
    """
    handle = import_object(HANDLE, "the local runtime's handle")
    budget = MemoryBudget(memory_budget_bytes)
    handles: dict[str, ModelHandle] = {}
    for config in configs:
        if config.model_id in handles:
            raise ConfigError(
                f"two models are called '{config.model_id}'",
                field="model_loading_config.model_id",
                value=config.model_id,
            )
        try:
            handles[config.model_id] = handle(config, budget)
        except ConfigError as error:
            raise ConfigError(f"model '{config.model_id}': {error}", value=error.value) from None
        for side, name in ((config, ""), (config.prefill_config, "the prefill side of ")):
            if side is not None and (ignored := passed_over(side)):
                _log.warning(
                    "%smodel '%s': the local runtime has one replica, in this process; it passes over %s",
                    name,
                    config.model_id,
                    ", ".join(ignored),
                )
    return handles
