"""The ingress as a Ray Serve deployment. Clients reach it through Ray's proxy and, optionally, on a
port of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from penstock.config import import_object
from penstock.garbage import collect_seldom_from_now
from penstock.llm_config import LLMConfig
from penstock.ray.replicas import RayReplicas
from penstock.ray.state import ClusterStore, cluster_secret
from penstock.serve.config.settings import HttpSettings
from penstock.serve.http_server import HttpServer, address, listen as listening_socket
from penstock.serve.models.handle import ModelCard
from penstock.serve.replicas.model import RemoteModel


class AtRoot:
    """Mounts an application that knows no route prefix: removes the prefix from its paths."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        prefix = scope.get("root_path", "").rstrip("/")
        if prefix and scope["path"].startswith(f"{prefix}/"):
            scope = {**scope, "path": scope["path"][len(prefix) :], "root_path": ""}
        await self._app(scope, receive, send)


@serve.ingress()
class LLMIngress:
    """One replica of the ingress. It needs the configuration only, and contacts no model at its
    start.

    `listen` is a host and port to open: requests there pass no other process on their way to a
    replica.
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
