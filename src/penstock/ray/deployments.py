"""The two Ray Serve deployments of a model: its replica and its ingress. Ray places, watches and
scales them; requests go from the ingress straight to a replica.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from penstock.garbage import collect_seldom_from_now
from penstock.llm_config import LLMConfig
from penstock.ray.replicas import cluster_secret, remote_model
from penstock.serve.api.ingress import made_ingress
from penstock.serve.compat.server import LLMServer
from penstock.serve.config.settings import HttpSettings
from penstock.serve.http_server import HttpServer, address, listen as listening_socket
from penstock.serve.models.handle import ModelCard
from penstock.service.routes import add_batches


class LLMReplica(LLMServer):
    """One replica of a model: a server in Ray's form, which knows its application.

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
        **kwargs: Any,
    ) -> None:
        self._about = {
            "mark": mark,
            "settings": settings,
            "host": host,
            "front": front,
            "prefill": prefill,
        }
        await super().__init__(llm_config, **kwargs)
        collect_seldom_from_now()


def as_replica(cls: type) -> type:
    """A user's class of servers as a replica, which knows its application."""
    if not issubclass(cls, LLMServer) or issubclass(cls, LLMReplica):
        return cls
    return type(cls.__name__, (LLMReplica, cls), {"__doc__": cls.__doc__})


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
        ingress_cls_config: Mapping[str, Any],
        mark: str,
        settings: HttpSettings,
        listen: tuple[str, int] | None,
    ) -> None:
        secret = await cluster_secret()
        models = {
            config.model_id: remote_model(config, llm_deployments[config.model_id], mark, secret)
            for config in llm_configs
        }
        self._own_app = made_ingress(
            ingress_cls_config,
            models,
            llm_configs,
            model_cards,
            lora_paths,
            settings=settings,
            deployments=llm_deployments,
        )
        self._batches = add_batches(self._own_app)
        if self._batches is not None:
            await self._batches.start()
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
        batches, self._batches = getattr(self, "_batches", None), None
        if batches is not None:
            await batches.stop(0.0)
            batches.close()
