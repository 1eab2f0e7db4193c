"""Plans what a serving configuration places where, as the runtimes would. It loads nothing."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Literal

from msgspec import Struct

from penstock.balance.policies.table import configured_policy
from penstock.config import masked
from penstock.cores import parted, usable_cores
from penstock.engines.base import LLMEngine
from penstock.errors import MissingExtraError
from penstock.kv.base import Role, configured_connector
from penstock.llm_config import LLMConfig, Parallelism, parallelism
from penstock.llm_config.engine_config import Bundle
from penstock.llm_config.model import NOT_NEEDED
from penstock.serve.config.placement import (
    engine_bundles,
    merged,
    multiply,
    places_itself,
    replica_bundle,
    replica_bundles,
    sides,
)
from penstock.serve.config.serving_args import LLMServingArgs
from penstock.serve.models.local import local_counts, passed_over, server_class
from penstock.serve.models.memory import ModelSize, kv_cache_bytes, model_size
from penstock.serve.models.server import engine_site

Runtime = Literal["local", "ray"]


class Rank(Struct, frozen=True):
    """One worker of an engine: its place in each kind of parallelism, and its bundle."""

    data: int
    pipeline: int
    tensor: int
    bundle: int | None


class Memory(Struct, frozen=True):
    """Bytes of one replica, summed over its workers; None if unknown. `kv_token` is one token's
    part of the cache, and `kv_tokens` the capacity of the cache.
    """

    weights: int | None
    kv_cache: int | None
    kv_token: int | None
    kv_tokens: int | None


class Port(Struct, frozen=True):
    """A listening port; None is a free port, which the system chooses."""

    what: str
    port: int | None


class ModelPlan(Struct, frozen=True, kw_only=True):
    """One model, or one side of a model with prefill engines of its own: `role` names the side.

    `bundles` are those of one replica, the first with the replica's own process; empty if the
    engine reserves its own resources. `needs` is their sum. `connector` exchanges KV caches with
    other engines; None without transfers. `cores` are the CPUs of each replica, where several part
    this machine's. `deterministic`: the same request gets the same answer,
    whatever runs beside it. `inputs`: what messages may hold, empty where nothing states it.
    """

    model: str
    role: Role
    source: str
    engine: str
    engine_reason: str
    server: str
    context_length: int | None
    inputs: tuple[str, ...]
    max_num_seqs: int | None
    adapters: int
    deterministic: bool
    connector: str | None
    min_replicas: int
    max_replicas: int
    cores: list[list[int]]
    parallelism: Parallelism
    ranks: list[Rank]
    bundles: list[Bundle]
    strategy: str
    needs: Bundle
    memory: Memory
    ports: list[Port]
    warnings: list[str]


class Explanation(Struct, frozen=True):
    """All models, and their total resources with the fewest and with the most replicas."""

    runtime: Runtime
    models: list[ModelPlan]
    least: Bundle
    most: Bundle


def explain(args: LLMServingArgs, runtime: Runtime = "local", port: int = 8000) -> Explanation:
    """Plan the models of `args` on a runtime. Raises `ConfigError` as `penstock serve` would."""
    where = args.listen_address
    ingress = Port("ingress", where[1] if where is not None else port)
    models = [
        _model(side, runtime, ingress) for config in args.llm_configs for side in sides(config)
    ]
    return Explanation(
        runtime,
        models,
        merged(multiply(model.needs, model.min_replicas) for model in models),
        merged(multiply(model.needs, model.max_replicas) for model in models),
    )


def _model(config: LLMConfig, runtime: Runtime, ingress: Port) -> ModelPlan:
    server = server_class(config)
    configured_policy(config)  # refuses an unknown one
    engine, warnings = _engine(config)
    size, sizes = model_size(config), parallelism(config.engine_kwargs)
    fewest, most = config.deployment_config.replica_counts
    if runtime == "local":
        if engine is not None and (lack := engine.lacks()):
            warnings.append(lack)
        fewest, most = local_counts(config)
        if ignored := passed_over(config):
            warnings.append(
                "the local runtime parts CPU cores and nothing else; it passes over"
                f" {', '.join(ignored)}"
            )
    own = places_itself(config)
    bundles = [] if own else replica_bundles(config)
    options = server.get_deployment_options(config)
    context = (
        engine.stated_context_length() if engine is not None else None
    ) or size.context_length
    memory = _memory(config, size, sizes)
    slots = config.engine_kwargs.get(
        "max_num_seqs", config.engine_kwargs.get("max_running_requests")
    )
    lora, connector = config.lora_config, configured_connector(config.engine_kwargs)
    plan = ModelPlan(
        model=config.model_id,
        role=server.role,
        source=masked(config.model_source),
        engine=config.engine_name,
        engine_reason=config.engine_reason,
        server=server.__name__,
        context_length=context,
        inputs=engine.stated_inputs() if engine is not None else (),
        max_num_seqs=slots if isinstance(slots, int) else None,
        adapters=0 if lora is None else lora.max_num_adapters_per_replica,
        deterministic=engine.deterministic if engine is not None else config.deterministic,
        connector=None if connector is None else connector.name,
        min_replicas=fewest,
        max_replicas=most,
        cores=(
            [list(part) for part in parted(usable_cores(), most)]
            if runtime == "local" and most > 1
            else []
        ),
        parallelism=sizes,
        ranks=_ranks(sizes, len(bundles)),
        bundles=bundles,
        strategy="" if own else options.get("placement_group_strategy", "PACK"),
        needs=(
            merged(bundles)
            if bundles
            else merged([replica_bundle(config), *engine_bundles(config)])
        ),
        memory=memory,
        ports=list(_ports(config, server.role, runtime, ingress)),
        warnings=warnings,
    )
    warnings.extend(_doubts(config, plan, size))
    return plan


def _engine(config: LLMConfig) -> tuple[LLMEngine | None, list[str]]:
    """The engine, which checks its options; None and a warning if its package is missing."""
    try:
        return server_class(config).make_engine(config), []
    except MissingExtraError as error:
        return None, [f"engine_kwargs were not checked: {error}"]


def _ranks(sizes: Parallelism, bundles: int) -> list[Rank]:
    # With fewer configured bundles than workers, the engine decides which workers share one.
    known = bundles == sizes.workers
    places = product(range(sizes.data), range(sizes.pipeline), range(sizes.tensor))
    return [Rank(*place, bundle=number if known else None) for number, place in enumerate(places)]


def _memory(config: LLMConfig, size: ModelSize, sizes: Parallelism) -> Memory:
    cache = kv_cache_bytes(config)
    # The shards of a rank divide a token's keys and values between them; the pipeline's stages do
    # too.
    tokens = cache // size.token if cache and size.token else None
    weights = None if size.weights is None else size.weights * sizes.data
    return Memory(weights, cache, size.token, tokens)


def _connector_ports(config: LLMConfig, role: Role) -> dict[str, int]:
    connector = configured_connector(config.engine_kwargs)
    return {} if connector is None else connector.ports(engine_site(config, role))


def _ports(config: LLMConfig, role: Role, runtime: Runtime, ingress: Port) -> Iterator[Port]:
    if role != "prefill":
        yield ingress
    if runtime == "ray":
        yield Port(
            f"each replica, for the {'decode side' if role == 'prefill' else 'ingress'}", None
        )
    ranks = parallelism(config.engine_kwargs).data
    for name, base in _connector_ports(config, role).items():
        yield Port(f"{name}, {ranks} a replica, the first free from", base)
    rpc = config.engine_kwargs.get("data_parallel_rpc_port")
    if isinstance(rpc, int):
        yield Port("data-parallel ranks among themselves", rpc)


def _doubts(config: LLMConfig, plan: ModelPlan, size: ModelSize) -> Iterator[str]:
    """Warnings about settings that are valid, but probably not meant."""
    sizes, most = plan.parallelism, config.deployment_config.max_ongoing_requests
    slots = plan.max_num_seqs and plan.max_num_seqs * sizes.data
    if most is not None and slots and most < slots:
        yield (
            f"max_ongoing_requests ({most}) is less than the engine works on at once ({slots}), so"
            " it is never full"
        )
    held = [core for part in plan.cores for core in part]
    if len(set(held)) < len(held):
        yield f"{len(plan.cores)} replicas share {len(set(held))} cores: fewer would do as much"
    scaling = config.deployment_config.autoscaling_config
    target = scaling and (
        scaling.target_ongoing_requests or scaling.target_num_ongoing_requests_per_replica
    )
    if target and slots and target > 2 * slots:
        yield (
            f"target_ongoing_requests ({target:g}) is far above the {slots} that a replica works"
            " on: it scales late"
        )
    if scaling is not None and config.deployment_config.num_replicas not in (None, "auto"):
        yield "num_replicas and autoscaling_config are both given; the latter counts"
    for name in (
        engine_site(config, plan.role).port_bases.keys()
        - _connector_ports(config, plan.role).keys()
    ):
        yield f"experimental_configs.{name} is set, and no KV connector takes ports from there"
    for name in NOT_NEEDED.keys() & config.experimental_configs.keys():
        yield f"experimental_configs.{name} changes nothing here: {NOT_NEEDED[name]}"
    given = config.placement_group_config and config.placement_group_config.bundles
    if given and len(given) != sizes.workers:
        yield f"{len(given)} bundles are given for {sizes.workers} workers"
    if plan.memory.weights is None:
        yield f"what '{plan.source}' takes is not known: its files are not on this machine"
    if size.heads and size.heads % sizes.tensor:
        yield (
            f"the model's {size.heads} attention heads cannot be shared by {sizes.tensor}"
            " tensor-parallel workers"
        )
    tokens, length = plan.memory.kv_tokens, plan.context_length
    if tokens is not None and length and tokens // sizes.data < length:
        yield (
            f"the KV cache of a rank holds {tokens // sizes.data:,} tokens, and the context has"
            f" {length:,}"
        )
    slots_given = config.engine_kwargs.get("max_loras")
    if isinstance(slots_given, int) and plan.adapters > slots_given:
        yield (
            f"lora_config allows {plan.adapters} adapters, and engine_kwargs.max_loras"
            f" {slots_given} at once"
        )
