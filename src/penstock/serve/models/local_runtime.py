"""The local runtime: models in this process, loaded when they are needed, within one memory
budget.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import msgspec

from penstock.errors import ConfigError
from penstock.llm_config import DeploymentConfig, LLMConfig
from penstock.serve.models.handle import ModelHandle
from penstock.serve.models.local import LocalModel
from penstock.serve.models.memory import MemoryBudget

_SET_BY_CLUSTERS = (
    "accelerator_type",
    "accelerator_config",
    "placement_group_config",
    "runtime_env",
)
_log = logging.getLogger(__name__)


_READ = frozenset(
    {
        *("autoscaling_config", "max_ongoing_requests", "max_queued_requests"),
        *("graceful_shutdown_timeout_s", "ray_actor_options"),
    }
)
"""What of `deployment_config` has a meaning in one process."""


def passed_over(config: LLMConfig) -> list[str]:
    """The fields that this configuration sets and this runtime cannot honour: it has one replica,
    where it is.
    """
    found = [name for name in _SET_BY_CLUSTERS if getattr(config, name) is not None]
    deployment, unset = config.deployment_config, DeploymentConfig()
    for part in msgspec.structs.fields(deployment):
        value = getattr(deployment, part.name)
        if (
            part.name not in _READ
            and value != getattr(unset, part.name)
            and (part.name, value) != ("num_replicas", 1)
        ):
            found.append(f"deployment_config.{part.name}")
    scaling = config.autoscaling
    for name in ("min_replicas", "max_replicas"):
        if (replicas := getattr(scaling, name)) > 1:
            found.append(f"deployment_config.autoscaling_config.{name} ({replicas})")
    return found


def build_local_handles(
    configs: Iterable[LLMConfig], *, memory_budget_bytes: int | None = None
) -> dict[str, ModelHandle]:
    """A handle for each model, by its id. Checks every configuration, and loads nothing: see
    `ModelHandle.start`.

    With `memory_budget_bytes`, the least recently used idle model that loads on demand makes room
    for the next one; what a model takes is an estimate (`model_size.memory_estimate`), and nothing
    is measured. Fields that one process cannot honour are named in a warning. Raises `ConfigError`,
    `MissingExtraError`.
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
        try:
            handles[config.model_id] = LocalModel(config, budget)
        except ConfigError as error:
            raise ConfigError(f"model '{config.model_id}': {error}", value=error.value) from None
        for side, name in ((config, ""), (config.prefill_config, "the prefill side of ")):
            if side is not None and (ignored := passed_over(side)):
                _log.warning(
                    "%smodel '%s': the local runtime has one replica, in this process; it passes"
                    " over %s",
                    name,
                    config.model_id,
                    ", ".join(ignored),
                )
    return handles
