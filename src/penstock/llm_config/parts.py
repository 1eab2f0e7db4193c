"""Parts of `LLMConfig` that are checked by themselves: names, and mappings that stay mappings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from msgspec import Meta, Struct

from penstock.config import Count, Pause, Seconds, parse_options
from penstock.errors import ConfigError

MOST_REPLICAS = 10_000
"""Each is an object here, so a slip of the pen must not ask for a billion."""
Replicas = Annotated[int, Meta(ge=1, le=MOST_REPLICAS)]
_Amount = Annotated[float, Meta(ge=0)]


class _ActorOptions(Struct, kw_only=True):
    memory: _Amount | None = None
    num_cpus: _Amount | None = None
    num_gpus: _Amount | None = None
    object_store_memory: _Amount | None = None
    resources: dict[str, _Amount] | None = None
    accelerator_type: Any = None
    runtime_env: Any = None
    label_selector: Any = None
    fallback_strategy: Any = None


class Experiments(Struct, kw_only=True):
    """The numbers of `experimental_configs`; None where they leave one out."""

    stream_batching_interval_ms: Pause | None = None
    start_timeout_s: Seconds | None = None
    prefill_timeout_s: Pause | None = None
    prefill_min_tokens: Pause | None = None
    num_ingress_replicas: Count | None = None


class _RouterOptions(Struct, kw_only=True):
    request_router_class: Any = None
    request_router_kwargs: dict[str, Any] | None = None
    request_routing_stats_period_s: Any = None
    request_routing_stats_timeout_s: Any = None
    initial_backoff_s: Any = None
    backoff_multiplier: Any = None
    max_backoff_s: Any = None


def check_names(names: Iterable[str]) -> None:
    """Raise `ConfigError` for a model's name that has line breaks or other control characters."""
    for name in names:
        if not name.isprintable():
            raise ConfigError(
                f"must be printable characters alone, got {name[:200]!r}",
                field="model_loading_config.model_id",
                value=name,
            )


def check_mappings(ray_actor_options: Mapping[str, Any], request_router_config: Any) -> None:
    """Raise `ConfigError` for an unknown key, and for an amount that is none. A router that is no
    mapping is refused where it is used.
    """
    parse_options(_ActorOptions, ray_actor_options, "deployment_config.ray_actor_options")
    if isinstance(request_router_config, Mapping):
        parse_options(
            _RouterOptions, request_router_config, "deployment_config.request_router_config"
        )
