"""`GET /v1/models` and `GET /v1/models/{id}`."""

from __future__ import annotations

from starlette.responses import Response

from penstock.serve.exchange import Exchange


async def list_models(exchange: Exchange) -> Response:
    """Every model and adapter, and what it is doing now."""
    return exchange.json({"object": "list", "data": await exchange.ingress.models.cards()})


async def show_model(exchange: Exchange) -> Response:
    """One model or adapter."""
    return exchange.json(await exchange.ingress.models.card(exchange.request.path_params["id"]))
