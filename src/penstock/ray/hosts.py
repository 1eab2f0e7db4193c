"""What servers and ingresses in Ray's form need of Ray: `penstock.serve.compat.hosts.Hosts`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import ray.util
from ray import serve
from ray.serve._private.utils import ensure_serialization_context
from ray.serve.context import _get_serve_request_context
from ray.serve.exceptions import RayServeException

from penstock.engines.base import LLMEngine
from penstock.llm_config import LLMConfig
from penstock.ray.replicas import (
    METADATA,
    ClusterStore,
    RayReplicas,
    cluster_secret,
    remote_model,
)
from penstock.serve.compat.hosts import Outside, settings_of
from penstock.serve.models.handle import ModelHandle
from penstock.serve.prefill_decode import DecodeServer
from penstock.serve.replicas.model import RemoteModel
from penstock.serve.replicas.replica import ReplicaServer

ONGOING = "running_requests"
"""The metric by which Ray Serve scales. The replica reports it, in place of Ray's own count."""


class RayReplica(ReplicaServer):
    """A replica that Ray Serve placed. `mark` identifies its deployment of the application."""

    mark: str

    async def record_replica_metadata(self) -> dict[str, Any]:
        """The replica's address and context length, for every handle's router."""
        info = self.info
        return {
            METADATA: {"host": info.host, "port": info.port, "context_length": info.context_length}
        }

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """The number of running and queued requests."""
        return {ONGOING: float(self.ongoing)}


class RayHosts:
    """Ray Serve, where this process has loaded Ray."""

    async def replica(
        self,
        config: LLMConfig,
        engine: LLMEngine | None,
        outside: Outside,
        about: Mapping[str, Any],
    ) -> RayReplica | None:
        """The host of a server that is a replica of Ray Serve; else None."""
        try:
            context = serve.get_replica_context()
        except RayServeException:
            return None
        mark = about.get("mark") or mark_of(context.app_name, context.deployment)
        secret, store = await cluster_secret(), ClusterStore(mark, config.model_id)
        host = RayReplica(
            config,
            replica_id=context.replica_tag,
            host=about.get("host") or ray.util.get_node_ip_address(),
            key=secret,
            settings=settings_of(about),
            desired=store,
            front=about.get("front"),
            engine=engine,
            outside=outside,
        )
        host.mark = mark
        decode, prefill = host.server, about.get("prefill")
        if prefill is not None and isinstance(decode, DecodeServer):
            # Both sides are one model to operators, so they share one desired state.
            side = config.prefill_config or config
            replicas = RayReplicas(prefill, config.model_id)
            decode.prefill = RemoteModel(side, replicas, key=secret, desired=store)
        return host

    def options(self, cls: Any, config: LLMConfig) -> dict[str, Any]:
        """The options of `serve.deployment` for a server of Penstock's."""
        from penstock.ray.application import serve_options  # which imports this module

        return serve_options(config, cls)

    def taken(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options that `serve.deployment` of this version of Ray takes: before 2.60 there was
        no `max_surge_percent`.
        """
        known = inspect.signature(serve.deployment).parameters
        return {name: value for name, value in options.items() if name in known}

    async def models(
        self, deployments: Mapping[str, Any], configs: Mapping[str, LLMConfig]
    ) -> dict[str, ModelHandle]:
        """The models behind Ray's handles, by their ids."""
        secret = await cluster_secret()
        return {
            model_id: remote_model(
                configs[model_id], handle, mark_of(handle.app_name, handle.deployment_name), secret
            )
            for model_id, handle in deployments.items()
        }

    def deployable(self, cls: type) -> type:
        """The class of an ingress as Ray Serve deploys it; the replica makes its application."""
        ensure_serialization_context()  # a FastAPI application travels with its class
        made: type = serve.ingress()(cls)
        return made

    def request_id(self) -> str:
        """Ray Serve's id of the request under way; empty outside of one."""
        return _get_serve_request_context().request_id or ""

    def adapter(self) -> str:
        """The `multiplexed_model_id` of a handle's options."""
        return serve.get_multiplexed_model_id() or ""

    def at_root(self, app: Any) -> Any:
        """The application behind Ray's proxy."""
        from penstock.ray.deployments import AtRoot  # which imports this module

        return AtRoot(app)


def mark_of(app: str, deployment: str) -> str:
    """The mark of a deployment that nobody gave one."""
    return f"{app}/{deployment}"
