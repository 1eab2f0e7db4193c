"""The ingress as an ASGI application: the OpenAI-compatible API in front of one model or many."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from penstock.serve.handle import ModelCard, ModelHandle
from penstock.serve.ingress import Ingress
from penstock.serve.middleware import ExchangeMiddleware
from penstock.serve.model_names import ModelNames
from penstock.serve.openapi import describe
from penstock.serve.routes import CONTROL_ENDPOINTS, ENDPOINTS, as_route
from penstock.serve.settings import HttpSettings


class IngressApp:
    """An ASGI application. `ingress` is what its requests share; whoever runs the application drains it through that.

    It starts and stops no model and asks none for anything but its requests.
    """

    def __init__(self, ingress: Ingress) -> None:
        self.ingress = ingress
        settings = ingress.settings
        endpoints = (*ENDPOINTS, *CONTROL_ENDPOINTS) if settings.dev else ENDPOINTS
        ingress.openapi = describe(endpoints, with_keys=bool(settings.api_keys))
        app: ASGIApp = Router([as_route(endpoint) for endpoint in endpoints], redirect_slashes=False)
        app = ExchangeMiddleware(app, ingress)
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
        scope["app"] = self  # tells Starlette's router to raise for an unknown path instead of answering itself
        await self._app(scope, receive, send)


def build_app(
    handles: Mapping[str, ModelHandle],
    *,
    model_cards: Mapping[str, ModelCard] | None = None,
    lora_paths: Mapping[str, str] | None = None,
    settings: HttpSettings | None = None,
) -> IngressApp:
    """The application for these models, by id.

    `model_cards` says more of them than their handles do; `lora_paths` names those whose adapters are found on demand.
    """
    return IngressApp(Ingress(ModelNames(handles, model_cards, lora_paths), settings or HttpSettings()))
