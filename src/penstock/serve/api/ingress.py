"""The ingress as an ASGI application: the OpenAI-compatible API in front of one or more models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from penstock.serve.api.middleware import ExchangeMiddleware
from penstock.serve.api.openapi import describe
from penstock.serve.api.routes import CONTROL_ENDPOINTS, ENDPOINTS, Endpoint, as_route
from penstock.serve.api.state import IngressState
from penstock.serve.config.settings import HttpSettings
from penstock.serve.models.handle import ModelCard, ModelHandle
from penstock.serve.models.names import ModelNames
from penstock.serve.replicas.forward import forward
from penstock.serve.replicas.model import RemoteModel


class IngressApp:
    """An ASGI application. Its requests share `ingress`; whoever runs the application drains
    it through `ingress`.

    The application neither starts nor stops models. If the models run elsewhere, it forwards
    requests unchanged. `more` are further endpoints.
    """

    def __init__(self, ingress: IngressState, more: Iterable[Endpoint] = ()) -> None:
        self.ingress = ingress
        settings = ingress.settings
        endpoints = (*ENDPOINTS, *(CONTROL_ENDPOINTS if settings.dev else ()), *more)
        ingress.openapi = describe(endpoints, with_keys=bool(settings.api_keys))
        if any(isinstance(handle, RemoteModel) for handle in ingress.models.handles.values()):
            endpoints = tuple(
                msgspec.structs.replace(endpoint, answer=forward) if endpoint.runs else endpoint
                for endpoint in endpoints
            )
        app: ASGIApp = Router(
            [as_route(endpoint) for endpoint in endpoints], redirect_slashes=False
        )
        app = ExchangeMiddleware(
            app, ingress, frozenset(one.path for one in endpoints if one.public)
        )
        if settings.cors_origins:
            app = CORSMiddleware(
                app,
                allow_origins=settings.cors_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["x-request-id", "retry-after"],
            )
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Starlette's router then raises for an unknown path instead of answering itself.
        scope["app"] = self
        await self._app(scope, receive, send)


class OpenAiIngress(IngressApp):
    """The ingress as a class to derive from, for `ingress_cls_config`. A runtime calls it with
    handles by model id, the known facts about the models, and `ingress_extra_kwargs`.

    `model_cards` holds facts that the handles lack; `lora_paths` names the models with
    adapters on demand.
    """

    def __init__(
        self,
        llm_deployments: Mapping[str, ModelHandle],
        model_cards: Mapping[str, ModelCard] | None = None,
        lora_paths: Mapping[str, str] | None = None,
        *,
        settings: HttpSettings | None = None,
    ) -> None:
        super().__init__(
            IngressState(
                ModelNames(llm_deployments, model_cards, lora_paths), settings or HttpSettings()
            )
        )


def build_app(
    handles: Mapping[str, ModelHandle],
    *,
    model_cards: Mapping[str, ModelCard] | None = None,
    lora_paths: Mapping[str, str] | None = None,
    settings: HttpSettings | None = None,
) -> IngressApp:
    """The application for models by their ids.

    `model_cards` holds facts that the handles lack; `lora_paths` names the models with
    adapters on demand.
    """
    return OpenAiIngress(handles, model_cards, lora_paths, settings=settings)
