"""Builds a Ray Serve application of models and their ingress."""

from __future__ import annotations

import inspect
import logging
import secrets
import time
from collections.abc import Mapping
from typing import Any

import ray
from msgspec.structs import asdict, replace
from ray import serve
from ray.serve import Application

from penstock.balance.policies.table import configured_policy
from penstock.config import import_object, parse_options, unknown_key
from penstock.errors import ConfigError
from penstock.llm_config import DeploymentConfig, LLMConfig
from penstock.ray.deployments import LLMIngress, LLMReplica, RayHosts, as_replica
from penstock.ray.router import ModelRequestRouter
from penstock.serve.api.ingress import OpenAiIngress, check_extra, ingress_class
from penstock.serve.compat.server import LLMServer
from penstock.serve.config.placement import (
    UNLIMITED,
    deployment_options,
    ingress_options,
    joined_environments,
    target_requests,
)
from penstock.serve.config.serving_args import LLMServingArgs
from penstock.serve.config.settings import HttpSettings, check_without_engine
from penstock.serve.models.data_parallel import DPServer
from penstock.serve.models.handle import ModelCard
from penstock.serve.models.local import server_class
from penstock.serve.models.server import LLMServer as OwnServer

NAME_PREFIX, GROUP_PREFIX, PREFILL_PREFIX = "LLMServer:", "DPServer:", "PrefillServer:"
_ON_REPLICAS = {"RAY_SERVE_COLLECT_AUTOSCALING_METRICS_ON_HANDLE": "0"}
"""Before 2.60, Ray counts what replicas report only if these say so in their environment."""
_log = logging.getLogger(__name__)
_OVERRIDDEN = frozenset(DeploymentConfig.__struct_fields__) - {
    *("name", "placement_group_bundles", "placement_group_strategy")
}
"""Serve options that `deployment_config` has too, where the replica reads them."""


def build_deployment(
    config: LLMConfig,
    *,
    settings: HttpSettings,
    mark: str | None = None,
    name_prefix: str | None = None,
    bind_kwargs: Mapping[str, Any] | None = None,
    override_serve_options: Mapping[str, Any] | None = None,
    deployment_cls: type | None = None,
    replica_host: str | None = None,
    front: tuple[str, int] | None = None,
) -> Application:
    """One model as a Ray Serve application; its prefill side is a second deployment. Raises
    `ConfigError`.

    Replicas listen on `replica_host`, by default the address of their node in the cluster. With
    `front`, a host and port, they also listen there for clients.
    """
    cls = _class_of(config, deployment_cls)
    if issubclass(cls, LLMServer):
        config = cls.configured(config)
    if issubclass(cls, OwnServer):  # a server, which a replica runs
        config, cls = replace(config, server_cls=cls), LLMReplica
    elif name_prefix is None and cls is not LLMReplica:
        name_prefix = f"{cls.__name__}:"
    if name_prefix is None:
        name_prefix = GROUP_PREFIX if issubclass(server_class(config), DPServer) else NAME_PREFIX
    config, beside = overridden(config, override_serve_options or {})
    if config.llm_engine is None:
        _log.info(
            "model '%s' runs on %s: %s", config.model_id, config.engine_name, config.engine_reason
        )
    chosen = cls if issubclass(cls, LLMServer) and cls is not LLMReplica else None
    options = {**serve_options(config, chosen), **beside}
    name = options.pop("name", None) or config.model_id.replace("/", "--").replace(".", "_")
    options["name"] = beside.get("name") or f"{name_prefix}{name}"
    deployment = _deployment(
        as_replica(cls),
        options,
        "override_serve_options" if beside else "deployment_config",
    )
    mark = mark or secrets.token_hex(8)
    about: dict[str, Any] = {
        "mark": mark,
        "settings": settings,
        "host": replica_host,
        "front": front,
    }
    if config.prefill_config is not None:
        about["prefill"] = build_deployment(
            config.prefill_config,
            settings=settings,
            mark=mark,
            name_prefix=PREFILL_PREFIX,
            replica_host=replica_host,
        )
    return deployment.bind(llm_config=config, **{**about, **(bind_kwargs or {})})


def _class_of(config: LLMConfig, deployment_cls: type | None) -> type:
    """The class of a model's replicas. Raises `ConfigError` for a server of Ray's own."""
    cls: Any = import_object(deployment_cls or config.server_cls, "server_cls")
    if cls is not None and _is_rays(cls):
        raise ConfigError(
            f"{cls.__name__} derives from a server of ray.serve.llm",
            field="deployment_cls" if deployment_cls else "server_cls",
            value=cls,
            hint="Derive it from penstock.serve.LLMServer.",
        )
    if cls is None or (deployment_cls is None and not issubclass(cls, LLMServer)):
        return LLMReplica  # which runs the server of the configuration
    made: type = cls
    return made


def _is_rays(cls: type) -> bool:
    return any(one.__module__.startswith(("ray.llm.", "ray.serve.llm")) for one in cls.__mro__)


def build_application(args: LLMServingArgs, *, replica_host: str | None = None) -> Application:
    """All models behind one ingress. Raises `ConfigError`."""
    check_without_engine(args.http)  # now, rather than in a replica that Ray starts again and again
    mark = secrets.token_hex(8)  # so its parts ignore other applications and earlier deployments
    front = args.listen_address if args.front == "replica" else None
    if args.front == "replica" and front is None:
        raise ConfigError("the replica is the front of a port, and none is given", field="listen")
    deployments: dict[str, Application] = {
        config.model_id: build_deployment(
            config, settings=args.http, mark=mark, replica_host=replica_host, front=front
        )
        for config in args.llm_configs
    }
    cards = {
        config.model_id: ModelCard(
            id=config.model_id, created=int(time.time()), metadata={"engine": config.engine_name}
        )
        for config in args.llm_configs
    }
    ingress = dict(args.ingress_cls_config)
    cls = ingress_class(ingress.get("ingress_cls") or OpenAiIngress)
    check_extra(cls, ingress.get("ingress_extra_kwargs") or {})
    own = getattr(cls, "get_deployment_options", None)
    options = {
        "name": "OpenAiIngress",
        **RayHosts().taken(ingress_options()),
        **_ingress_replicas(args),
        **(own(args.llm_configs) if own is not None else {}),
        **args.ingress_deployment_config,
    }
    return _deployment(LLMIngress, options, "ingress_deployment_config").bind(
        deployments,
        cards,
        args.lora_paths,
        llm_configs=args.llm_configs,
        ingress_cls_config={**ingress, "ingress_cls": cls},
        mark=mark,
        settings=args.http,
        listen=args.listen_address if front is None else None,
    )


def _ingress_replicas(args: LLMServingArgs) -> dict[str, Any]:
    """The replicas of the ingress that the models ask for, unless its deployment says."""
    wanted = max(config.num_ingress_replicas or 0 for config in args.llm_configs)
    given = {"num_replicas", "autoscaling_config"} & args.ingress_deployment_config.keys()
    return {"num_replicas": wanted} if wanted and not given else {}


def overridden(config: LLMConfig, overrides: Mapping[str, Any]) -> tuple[LLMConfig, dict[str, Any]]:
    """Split `overrides` between the model and Ray. Returns the model with its `deployment_config`
    overridden, and the remaining options. Raises `ConfigError`.
    """
    own = {key: value for key, value in overrides.items() if key in _OVERRIDDEN}
    for count, other in (
        ("num_replicas", "autoscaling_config"),
        ("autoscaling_config", "num_replicas"),
    ):
        if count in own:  # Ray accepts only one of them
            own.setdefault(other, None)
    given = {**asdict(config.deployment_config), **own}
    deployment = parse_options(DeploymentConfig, given, "override_serve_options")
    beside = {key: value for key, value in overrides.items() if key not in _OVERRIDDEN}
    return replace(config, deployment_config=deployment), beside


def serve_options(config: LLMConfig, cls: Any = None) -> dict[str, Any]:
    """Options for `serve.deployment` of a class of servers (default: the configuration's). Raises
    `ConfigError` for an unknown routing policy.
    """
    cls = import_object(cls or config.server_cls, "server_cls")
    options: dict[str, Any] = (
        deployment_options(config) if cls is None else cls.get_deployment_options(config)
    )
    if options.get("autoscaling_config") is not None:
        scaling = {
            name: value
            for name, value in options["autoscaling_config"].items()
            if value is not None
        }
        per_replica = scaling.pop("target_num_ongoing_requests_per_replica", None)
        scaling.setdefault("target_ongoing_requests", per_replica or target_requests(config))
        options["autoscaling_config"] = scaling
    elif options.get("num_replicas") == "auto":
        options["autoscaling_config"] = {"target_ongoing_requests": target_requests(config)}
    options["max_ongoing_requests"] = UNLIMITED
    if options.get("autoscaling_config") is not None and _ray_version() < (2, 60):
        _add_environment(options, {"env_vars": _ON_REPLICAS})
    _add_job_environment(options)
    configured_policy(config)  # refuses an unknown policy here rather than in the ingress
    router = dict(options.get("request_router_config") or {})
    router.pop("request_router_kwargs", None)
    options["request_router_config"] = {**router, "request_router_class": ModelRequestRouter}
    return options


def _add_job_environment(options: dict[str, Any]) -> None:
    """The job's runtime environment, below the replica's own: Ray Serve's controller starts the
    replicas, and they would not inherit it.
    """
    job = dict(ray.get_runtime_context().runtime_env) if ray.is_initialized() else {}
    if job:
        _add_environment(options, job)


def _add_environment(options: dict[str, Any], lower: Mapping[str, Any]) -> None:
    """A runtime environment below that of the replica."""
    actor = dict(options.get("ray_actor_options") or {})
    actor["runtime_env"] = joined_environments(lower, actor.get("runtime_env") or {})
    options["ray_actor_options"] = actor


def _ray_version() -> tuple[int, ...]:
    return tuple(map(int, ray.__version__.split(".")[:2]))


def _deployment(cls: type, options: Mapping[str, Any], where: str) -> Any:
    """A deployment with Ray's options. Raises `ConfigError` for an option that Ray refuses."""
    known = [
        name for name in inspect.signature(serve.deployment).parameters if not name.startswith("_")
    ]
    for name in options:
        if name not in known:
            raise unknown_key(name, known, field=where, value=options[name])
    try:
        return serve.deployment(cls, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"Ray refuses these options: {' '.join(str(error).split())}", field=where
        ) from None
