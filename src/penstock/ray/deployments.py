"""The two Ray Serve deployments of a model: its replica and its ingress. Ray places, watches and
scales them; requests go from the ingress straight to a replica.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import ray.util
from ray import serve
from ray.serve.handle import DeploymentHandle

from penstock.config import import_object
from penstock.engines.base import Capabilities
from penstock.garbage import collect_seldom_from_now
from penstock.llm_config import LLMConfig
from penstock.ray.replicas import METADATA, ClusterStore, RayReplicas, cluster_secret
from penstock.serve.config.settings import HttpSettings
from penstock.serve.http_server import HttpServer, address, listen as listening_socket
from penstock.serve.models.handle import ModelCard
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


class AtRoot:
    """Mounts an application that knows no route prefix: removes the prefix from its paths. Ray's
    proxy adds the request's id to the response, so the application's own goes.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        prefix = scope.get("root_path", "").rstrip("/")
        if prefix and scope["path"].startswith(f"{prefix}/"):
            scope = {**scope, "path": scope["path"][len(prefix) :], "root_path": ""}

        async def send_without_id(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [(k, v) for k, v in message["headers"] if k.lower() != b"x-request-id"]
                message = {**message, "headers": headers}
            await send(message)

        given = any(name == b"x-request-id" for name, _ in scope.get("headers", ()))
        await self._app(scope, receive, send_without_id if given else send)


@serve.ingress()
class LLMIngress:
    """One replica of the ingress. It starts from the configuration, without calling a model.

    `listen` is a host and port to open: requests there go straight from here to a replica.
    """

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self,
        llm_deployments: Mapping[str, DeploymentHandle[Any]],
        model_cards: Mapping[str, ModelCard],
        lora_paths: Mapping[str, str],
        *,
        llm_configs: list[LLMConfig],
        ingress_cls: Any,
        ingress_extra_kwargs: Mapping[str, Any],
        mark: str,
        settings: HttpSettings,
        listen: tuple[str, int] | None,
    ) -> None:
        secret = await cluster_secret()
        models = {
            config.model_id: RemoteModel(
                config,
                RayReplicas(llm_deployments[config.model_id], config.model_id),
                key=secret,
                desired=ClusterStore(mark, config.model_id),
            )
            for config in llm_configs
        }
        cls: Any = (
            import_object(ingress_cls, "ingress_cls")
            if isinstance(ingress_cls, str)
            else ingress_cls
        )
        self._own_app = cls(
            models, model_cards, lora_paths, settings=settings, **ingress_extra_kwargs
        )
        self._front: HttpServer | None = None
        self._serving: asyncio.Task[None] | None = None
        self._url = ""
        if listen is not None:
            listening = listening_socket(*listen, shared=True)
            self._url = address(listening)
            self._front = HttpServer(self._own_app, listening)
            self._serving = asyncio.create_task(self._front.run([], signals=False))
        collect_seldom_from_now()

    def __serve_build_asgi_app__(self) -> Any:
        return AtRoot(self._own_app)

    async def url(self) -> str:
        """The URL of the ingress's own port; empty without one."""
        return self._url

    async def __del__(self) -> None:
        """Ray awaits this when it stops the ingress."""
        serving, self._serving = getattr(self, "_serving", None), None
        if serving is not None and self._front is not None:
            self._front.stop()
            await asyncio.wait([serving])
