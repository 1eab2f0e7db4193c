"""The ingress as an ASGI application: the OpenAI-compatible API in front of one model or many."""

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
    """An ASGI application. `ingress` is what its requests share; whoever runs the application
    drains it through that.

    It starts and stops no model and asks none for anything but its requests. Where the models run
    elsewhere, requests are forwarded as they come. `more` are endpoints beside the usual ones.
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
        # Tells Starlette's router to raise for an unknown path instead of answering itself.
        scope["app"] = self
        await self._app(scope, receive, send)


class OpenAiIngress(IngressApp):
    """The ingress as a class to derive from, for `ingress_cls_config`. A runtime calls it with
    handles by model id, with what is known of the models beforehand, and with
    `ingress_extra_kwargs`.

    `model_cards` says more of the models than their handles do; `lora_paths` names those whose
    adapters are found on demand.
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
    """The application for these models, by id.

    `model_cards` says more of them than their handles do; `lora_paths` names those whose adapters
    are found on demand.
    """
    return OpenAiIngress(handles, model_cards, lora_paths, settings=settings)
