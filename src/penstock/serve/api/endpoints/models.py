"""`GET /v1/models` and `GET /v1/models/{id}`."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from penstock.serve.api.exchange import Exchange
from penstock.serve.api.public_errors import without_paths


async def list_models(exchange: Exchange) -> Response:
    """Every model and adapter, and what it is doing now."""
    cards = await exchange.ingress.models.cards()
    return exchange.json(
        {"object": "list", "data": [_visible_card(exchange, card) for card in cards]}
    )


async def show_model(exchange: Exchange) -> Response:
    """Show one model or adapter."""
    return exchange.json(
        _visible_card(
            exchange, await exchange.ingress.models.card(exchange.request.path_params["id"])
        )
    )


def _visible_card(exchange: Exchange, card: dict[str, Any]) -> dict[str, Any]:
    """The card without the fields that this caller may not read."""
    if exchange.trusted or not card["reason"]:
        return card
    return {**card, "reason": without_paths(card["reason"], exchange.ingress.sources)}
