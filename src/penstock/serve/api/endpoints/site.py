"""The server itself: its models, whether it answers, its metrics and its description."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import HTMLResponse, Response

import penstock
from penstock.errors import ModelNotFoundError, ShuttingDownError, UnavailableError
from penstock.openai.messages_api import model_info, model_page
from penstock.serve.api.errors import is_anthropic, without_paths
from penstock.serve.api.exchange import Exchange


async def list_models(exchange: Exchange) -> Response:
    """Every model and adapter, and what it is doing now.

    Anthropic's clients get pages in their form (`limit`, `after_id`, `before_id`).
    """
    cards = await exchange.ingress.models.cards()
    if is_anthropic(exchange.request.scope):
        query = exchange.request.query_params
        limit = query.get("limit", "20")
        page = model_page(
            cards,
            limit=int(limit) if limit.isascii() and limit.isdecimal() and len(limit) < 9 else 0,
            after=query.get("after_id", ""),
            before=query.get("before_id", ""),
        )
        return exchange.json(page)
    return exchange.json(
        {"object": "list", "data": [_visible_card(exchange, card) for card in cards]}
    )


async def show_model(exchange: Exchange) -> Response:
    """Show one model or adapter."""
    name = exchange.request.path_params["id"]
    if not name:  # "/v1/models/"
        return await list_models(exchange)
    card = await exchange.ingress.models.card(name)
    if is_anthropic(exchange.request.scope):
        return exchange.json(model_info(card))
    return exchange.json(_visible_card(exchange, card))


def _visible_card(exchange: Exchange, card: dict[str, Any]) -> dict[str, Any]:
    """The card as this caller may read it: the reason has paths for operators only."""
    if exchange.trusted or not card["reason"]:
        return card
    return {**card, "reason": without_paths(card["reason"], exchange.ingress.sources)}


async def health(exchange: Exchange) -> Response:
    """Whether the server takes requests. Says nothing of the models: one that cannot load is no
    reason to restart.
    """
    if exchange.ingress.draining:
        raise ShuttingDownError("the server is shutting down")
    return exchange.json({"status": "ok"})


async def ready(exchange: Exchange) -> Response:
    """Whether some model can answer, or the one that `?model=` names. A 503 if not."""
    ingress, name = exchange.ingress, exchange.request.query_params.get("model", "")
    if ingress.draining:
        raise ShuttingDownError("the server is shutting down")
    try:
        handles = (
            [(await ingress.models.find(name)).handle] if name else ingress.models.handles.values()
        )
    except ModelNotFoundError:
        if exchange.rank != "stranger":
            raise
        # This route is public, and the names of models are not.
        raise ModelNotFoundError("there is no such model", param="model") from None
    states = [handle.state() for handle in handles]
    if not any(state.can_answer for state in states):
        which = f"'{name}' is {states[0].state}" if name else "no model can answer"
        raise UnavailableError(which, retry_after=1.0)
    return exchange.json({"status": "ready"})


async def version(exchange: Exchange) -> Response:
    """The server's version."""
    return exchange.json({"version": penstock.__version__})


async def load(exchange: Exchange) -> Response:
    """How many requests are being answered now."""
    return exchange.json({"server_load": exchange.ingress.answering})


async def metrics(exchange: Exchange) -> Response:
    """Metrics in the text form of Prometheus; with `name[]` (repeatable) only the samples of these
    names.
    """
    names = exchange.request.query_params.getlist("name[]")
    page = await exchange.ingress.metrics.render(names)
    return Response(page, headers={"content-type": CONTENT_TYPE_LATEST})


async def openapi(exchange: Exchange) -> Response:
    """The description of this API."""
    return exchange.json(exchange.ingress.openapi())


async def docs(exchange: Exchange) -> Response:
    """A page that shows the description of this API."""
    return HTMLResponse(files("penstock.serve").joinpath("docs.html").read_text())
