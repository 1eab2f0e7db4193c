"""An engine's own HTTP application under a path of the ingress, for operators."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from penstock.errors import ConfigError, UnsupportedError
from penstock.serve.api.auth import check_admin
from penstock.serve.api.exchange import Exchange
from penstock.serve.models.names import ModelNames


class EngineApp:
    """The application of the only model's engine. It knows nothing of queues, limits and adapters
    here, so only admins may use it. Raises `ConfigError` where there is none.
    """

    def __init__(self, models: ModelNames, path: str) -> None:
        if len(models.handles) != 1:
            raise ConfigError("needs exactly one model", field="engine_app", value=path)
        (self._handle,) = models.handles.values()
        self._path = path
        try:
            self._app: ASGIApp = self._handle.engine_app()
        except UnsupportedError:
            raise ConfigError(
                f"the {self._handle.engine_name} engine has no application of its own here",
                field="engine_app",
                value=path,
            ) from None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope["penstock.exchange"]
        exchange.endpoint = self._path
        exchange.model = self._handle.model_id
        exchange.request = Request(scope, receive)
        check_admin(exchange.rank, exchange.request.headers)
        await self._app(scope, receive, send)
