"""Computes the resources of a replica: arithmetic on bundles, without a cluster.

A bundle maps a resource ("CPU", "GPU", "memory" in bytes, or a custom one) to an amount. A replica
is one process for bookkeeping, plus the engine's workers. The first bundle holds this process and
the first worker, so that both land on one machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import ceil
from typing import Any

from msgspec.structs import asdict

from penstock import env
from penstock.errors import ConfigError
from penstock.llm_config import LLMConfig, parallelism
from penstock.llm_config.engine_config import Bundle

DEFAULT_TARGET = 32.0
"""Autoscaling's target of requests a replica, if no other option implies one."""
ONE_MACHINE = frozenset({"sglang"})
"""Engines whose workers are child processes of their replica. They use the devices that it is
shown, so they have one bundle.
"""
UNLIMITED = 1_000_000
"""Ray's limit of requests for a replica: the back-pressure is that of the replica's own queue."""


def engine_bundles(config: LLMConfig) -> list[Bundle]:
    """One bundle a worker. The default is one GPU, or one CPU for an engine without GPUs. Raises
    `ConfigError` for workers that are to be apart, of an engine that has them on one machine.
    """
    engine = config.get_engine_config()
    bundles = engine.placement_bundles
    if config.engine_name not in ONE_MACHINE or len(bundles) == 1:
        return bundles
    if engine.placement_strategy in ("SPREAD", "STRICT_SPREAD"):
        raise ConfigError(
            f"the {config.engine_name} engine has its workers on one machine",
            field="placement_group_config.strategy",
            value=engine.placement_strategy,
        )
    return [merged(bundles)]


def replica_bundle(config: LLMConfig) -> Bundle:
    """Resources of the replica's own process, from `ray_actor_options`; one CPU by default."""
    options = config.deployment_config.ray_actor_options
    named = {
        "CPU": options.get("num_cpus", 1),
        "GPU": options.get("num_gpus"),
        "memory": options.get("memory"),
    }
    bundle = {name: float(amount) for name, amount in named.items() if amount}
    return merged([bundle, options.get("resources") or {}])


def merged(bundles: Iterable[Bundle]) -> Bundle:
    """The sum of bundles, resource by resource."""
    total: Bundle = {}
    for bundle in bundles:
        for name, amount in bundle.items():
            total[name] = total.get(name, 0.0) + amount
    return total


def replica_bundles(config: LLMConfig) -> list[Bundle]:
    """All bundles of a replica; the first holds its process and its first worker."""
    first, *others = engine_bundles(config)
    return [merged([replica_bundle(config), first]), *others]


def target_requests(config: LLMConfig) -> float:
    """Autoscaling's target of requests a replica: the stated one, else three quarters of those that
    it runs at once.
    """
    scaling = config.autoscaling
    given = scaling.target_ongoing_requests or scaling.target_num_ongoing_requests_per_replica
    if given is not None:
        return given
    stated = env.target_ongoing_requests()
    if stated is not None:
        return stated
    most, slots = (
        config.deployment_config.max_ongoing_requests,
        config.engine_kwargs.get("max_num_seqs"),
    )
    if most is None and isinstance(slots, int):
        most = slots * parallelism(config.engine_kwargs).data  # each rank has that many slots
    return DEFAULT_TARGET if most is None else max(1.0, 0.75 * most)


def multiply(bundle: Bundle, count: int) -> Bundle:
    """`count` copies of a bundle, as one."""
    return {name: amount * count for name, amount in bundle.items()} if count else {}


def sides(config: LLMConfig) -> list[LLMConfig]:
    """The placements of a model: its own replicas, and those of its prefill side, if any."""
    return [config] if config.prefill_config is None else [config.prefill_config, config]


def cpus(configs: Iterable[LLMConfig]) -> int:
    """The CPUs that all replicas of all models reserve."""
    total = 0.0
    for config in (side for model in configs for side in sides(model)):
        fewest, most = config.deployment_config.replica_counts
        replicas = max(fewest, 1) if config.deployment_config.is_unbounded else most
        total += replicas * sum(bundle.get("CPU", 0.0) for bundle in replica_bundles(config))
    return ceil(total)


def places_itself(config: LLMConfig) -> bool:
    """Whether the engine reserves its own resources after its replica has started. A TPU slice is
    only available as a whole, not as bundles beside a replica.
    """
    accelerator = config.accelerator_config
    return (
        accelerator is not None and accelerator.kind == "tpu" and accelerator.topology is not None
    )


def deployment_options(config: LLMConfig) -> dict[str, Any]:
    """The options for Ray Serve: the configured fields of `deployment_config`, and the bundles.

    The runtime environment of `LLMConfig` overrides that of `ray_actor_options`, name by name; both
    override the job's.
    """
    given, unset = asdict(config.deployment_config), asdict(type(config.deployment_config)())
    options = {name: value for name, value in given.items() if value != unset[name]}
    if config.deployment_config.autoscaling_config is not None:
        options["autoscaling_config"] = asdict(config.deployment_config.autoscaling_config)
    checks = ("health_check_period_s", "health_check_timeout_s")
    # The environment's default is not Ray Serve's.
    options |= {name: given[name] for name in checks if given[name] is not None}
    if not places_itself(config):
        options["placement_group_bundles"] = replica_bundles(config)
        options["placement_group_strategy"] = config.get_engine_config().placement_strategy
    actor = {**(options.get("ray_actor_options") or {}), **_own_devices(config)}
    lower, upper = actor.get("runtime_env") or {}, config.runtime_env or {}
    if lower or upper:
        actor["runtime_env"] = joined_environments(lower, upper)
    if actor:
        options["ray_actor_options"] = actor
    return options


def ingress_options() -> dict[str, Any]:
    """The options of `serve.deployment` for an ingress. It mostly waits for others, and its
    successor listens before it stops.
    """
    return {
        "max_ongoing_requests": UNLIMITED,
        "ray_actor_options": {"num_cpus": 0},
        "max_surge_percent": 100,
    }


def joined_environments(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Two runtime environments as one: the upper's fields win, and its variables one by one."""
    joined = {**lower, **upper}
    if "env_vars" in lower and "env_vars" in upper:
        joined["env_vars"] = {**lower["env_vars"], **upper["env_vars"]}
    return joined


def _own_devices(config: LLMConfig) -> dict[str, Any]:
    """The replica's own resources if it has only one bundle: its engine is a child process, and
    uses the devices that Ray shows the replica. Otherwise all replicas on a machine would use the
    first device. An engine with several bundles places its workers itself.
    """
    if places_itself(config) or len(bundles := engine_bundles(config)) > 1:
        return {}
    options = config.deployment_config.ray_actor_options
    if options.get("num_gpus") or (options.get("resources") or {}).get("TPU"):
        return {}
    (bundle,) = bundles
    asked: dict[str, Any] = {"num_gpus": bundle["GPU"]} if bundle.get("GPU") else {}
    if bundle.get("TPU"):
        asked["resources"] = {**(options.get("resources") or {}), "TPU": bundle["TPU"]}
    return asked
