"""The control routes, which need `dev`: `POST /sleep`, `GET /is_sleeping` and so on.

Each acts on one model and answers with one result a replica. All endpoints of this file are for
admins: the table of routes refuses any other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from msgspec import Struct, field
from starlette.responses import Response

from penstock.errors import RequestError
from penstock.serve.api.exchange import Exchange


class ControlBody(Struct, kw_only=True):
    """Body of a control route: the model, and the method's options."""

    model: str = ""
    options: dict[str, Any] = field(default_factory=dict)


def act(method: str) -> Callable[[Exchange, ControlBody], Awaitable[Response]]:
    """The endpoint that calls a control method: `POST` with a body."""

    async def endpoint(exchange: Exchange, body: ControlBody) -> Response:
        return await _call(exchange, method, body.model, body.options)

    endpoint.__doc__ = f"Call `{method}` on every replica of a model."
    return endpoint


def ask(method: str) -> Callable[[Exchange], Awaitable[Response]]:
    """The endpoint that reads a state: `GET` with `?model=`."""

    async def endpoint(exchange: Exchange) -> Response:
        return await _call(exchange, method, exchange.request.query_params.get("model", ""), {})

    endpoint.__doc__ = f"Ask `{method}` of every replica of a model."
    return endpoint


class ReplicaControlBody(Struct, kw_only=True):
    """Body of an ingress's call of a control method on one replica."""

    method: str
    options: dict[str, Any] = field(default_factory=dict)


async def act_here(exchange: Exchange, body: ReplicaControlBody) -> Response:
    """Call a control method on this replica, whose ingress asks for it."""
    target = await exchange.target("")
    (result,) = await target.handle.control(body.method, body.options)
    return exchange.json(result)


async def _call(exchange: Exchange, method: str, model: str, options: dict[str, Any]) -> Response:
    target = await exchange.target(model)
    if target.adapter is not None:
        raise RequestError(f"'{target.name}' is an adapter; control its model", param="model")
    results = await target.handle.control(method, options)
    return exchange.json({"model": target.name, "method": method, "replicas": results})
