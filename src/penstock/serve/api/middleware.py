"""Wraps every request: assigns an id, admits or refuses it, counts and logs it."""

from __future__ import annotations

import logging

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock.balance.pauses import is_served
from penstock.errors import RequestError, ShuttingDownError
from penstock.observability import Span, request_id, span
from penstock.serve.api.auth import check_user, rank_of
from penstock.serve.api.cross_site import check_not_cross_site
from penstock.serve.api.errors import error_response
from penstock.serve.api.exchange import UNKNOWN_ENDPOINT, UNTRUSTED, Exchange
from penstock.serve.api.state import IngressState

_access = logging.getLogger("penstock.access")


class ExchangeMiddleware:
    """The outermost layer: makes the `Exchange`, and turns every error inside into a response.

    The `public` paths are open to everybody, and stay open during a shutdown. Routes for operators
    check the caller's rank themselves.
    """

    def __init__(self, app: ASGIApp, ingress: IngressState, public: frozenset[str]) -> None:
        self._app = app
        self._ingress = ingress
        self._public = public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        exchange = scope["penstock.exchange"] = Exchange(self._ingress, headers.get("x-request-id"))

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", exchange.id.encode()),
                    *self._ingress.reply_headers(),
                ]
            await send(message)

        self._ingress.begin()
        token = request_id.set(exchange.id)
        served = is_served.set(True)
        try:
            with span(scope["method"], headers) as current:
                try:
                    await self._answer(exchange, headers, scope, receive, send_with_id)
                finally:
                    if current.recording:
                        describe(current, exchange, scope)
        finally:
            self._ingress.end()
            exchange.finish()
            log_access(exchange, scope)
            is_served.reset(served)
            request_id.reset(token)

    async def _answer(
        self, exchange: Exchange, headers: Headers, scope: Scope, receive: Receive, send: Send
    ) -> None:
        settings = self._ingress.settings
        exchange.rank = rank_of(headers, settings)
        exchange.trusted = exchange.rank == "admin" and headers.get(UNTRUSTED) is None
        try:
            if "transfer-encoding" in headers and "content-length" in headers:
                raise _two_lengths()
            if scope["path"] not in self._public:
                check_user(exchange.rank, headers, settings)
                check_not_cross_site(scope, headers, settings)
                if self._ingress.draining:
                    raise ShuttingDownError("the server is shutting down")
            await self._app(scope, receive, send)
        except Exception as caught:
            error = exchange.failed(caught)
            if exchange.status:
                raise  # the response has begun: only closing the connection signals an error
            await error_response(scope["path"], error)(scope, receive, send)


def _two_lengths() -> RequestError:
    """Refuse a body with two lengths: a proxy could take its end for the next request, which may
    be another caller's.
    """
    error = RequestError("a request has a Content-Length or a Transfer-Encoding, not both")
    error.ends_connection = True
    return error


def describe(current: Span, exchange: Exchange, scope: Scope) -> None:
    """Note on a span what the exchange was. Of `scope` it reads `method` and `path`."""
    usage = exchange.usage
    route = exchange.endpoint if exchange.endpoint != UNKNOWN_ENDPOINT else None
    current.note(
        {
            "http.request.method": scope["method"],
            "http.route": route,
            "http.response.status_code": exchange.status,
            "url.path": scope["path"],
            "error.type": exchange.error,
            "gen_ai.request.model": exchange.model or None,
            "gen_ai.usage.input_tokens": usage.prompt_tokens or None,
            "gen_ai.usage.output_tokens": usage.completion_tokens or None,
            "penstock.request_id": exchange.id,
        },
        name=f"{scope['method']} {route}" if route else "",
        failed=exchange.status >= 500 or (exchange.error is not None and exchange.status == 200),
    )


def log_access(exchange: Exchange, scope: Scope) -> None:
    """Log the exchange when it has ended. Of `scope` it reads `method` and `path`."""
    if not _access.isEnabledFor(logging.INFO):
        return
    fields: dict[str, object] = {
        "method": scope["method"],
        "path": scope["path"],
        "status": exchange.status,
        "seconds": round(exchange.ended - exchange.started, 6),
    }
    if exchange.model:
        fields |= {
            "model": exchange.model,
            "engine_seconds": round(exchange.engine_seconds, 6),
            "prompt_tokens": exchange.usage.prompt_tokens,
            "completion_tokens": exchange.usage.completion_tokens,
        }
    if exchange.first_token_at is not None:
        fields["first_token_seconds"] = round(exchange.first_token_at - exchange.started, 6)
    if exchange.error is not None:
        fields["error"] = exchange.error
    _access.info(
        "%s %s %s", scope["method"], scope["path"], exchange.status, extra={"fields": fields}
    )
