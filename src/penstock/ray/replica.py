"""A model's replica as a Ray Serve deployment. Ray places, watches and scales it; requests bypass
Ray.
"""

from __future__ import annotations

from typing import Any

import ray.util
from ray import serve
from ray.serve.handle import DeploymentHandle

from penstock.engines.base import Capabilities
from penstock.garbage import collect_seldom_from_now
from penstock.llm_config import LLMConfig
from penstock.ray.replicas import METADATA, RayReplicas
from penstock.ray.state import ClusterStore, cluster_secret
from penstock.serve.config.settings import HttpSettings
from penstock.serve.prefill_decode import DecodeServer
from penstock.serve.replicas.model import RemoteModel
from penstock.serve.replicas.replica import ReplicaServer

ONGOING = "running_requests"
"""The metric by which Ray Serve scales. The replica reports it, in place of Ray's own count."""


class LLMReplica:
    """One replica of a model.

    `mark` identifies this deployment of the application. `settings` are the ingress's. `host` is
    the address to listen on (default: the node's), `front` a host and port for clients without an
    ingress. `prefill` is the deployment of the model's prefill side.
    """

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self,
        llm_config: LLMConfig,
        *,
        mark: str,
        settings: HttpSettings,
        host: str | None = None,
        front: tuple[str, int] | None = None,
        prefill: DeploymentHandle[Any] | None = None,
    ) -> None:
        self._llm_config, self._mark = llm_config, mark
        secret = await cluster_secret()
        self._server = ReplicaServer(
            llm_config,
            replica_id=serve.get_replica_context().replica_tag,
            host=host or ray.util.get_node_ip_address(),
            key=secret,
            settings=settings,
            desired=ClusterStore(mark, llm_config.model_id),
            front=front,
        )
        if prefill is not None:
            replicas = RayReplicas(prefill, llm_config.model_id)
            # Both sides are one model to operators, so they share one desired state.
            store = ClusterStore(mark, llm_config.model_id)
            decode, config = self._server.server, llm_config.prefill_config
            assert isinstance(decode, DecodeServer)
            assert config is not None
            decode.prefill = RemoteModel(config, replicas, key=secret, desired=store)
        await self._server.start()
        collect_seldom_from_now()

    async def record_replica_metadata(self) -> dict[str, Any]:
        """The replica's address and context length, for every handle's router."""
        info = self._server.info
        return {
            METADATA: {"host": info.host, "port": info.port, "context_length": info.context_length}
        }

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """The number of running and queued requests."""
        return {ONGOING: float(self._server.ongoing)}

    async def connection(self) -> tuple[LLMConfig, str]:
        """What a handle elsewhere in the cluster needs to send requests directly: the model, and
        the mark of its deployment.
        """
        return self._llm_config, self._mark

    async def capabilities(self) -> Capabilities:
        """The capabilities of the running engine."""
        return self._server.server.engine.capabilities

    async def check_health(self) -> None:
        """Raise if Ray should replace the replica."""
        await self._server.check_health()

    async def __del__(self) -> None:
        """Ray awaits this when it stops the replica, for `graceful_shutdown_timeout_s` at most."""
        if hasattr(self, "_server"):
            await self._server.stop()
