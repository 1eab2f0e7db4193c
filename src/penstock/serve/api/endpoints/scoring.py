"""`POST /v1/score`, `POST /v1/rerank` and `POST /classify`."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import Response

from penstock.openai.extensions import (
    ClassifyBody,
    RerankBody,
    ScoreBody,
    class_list,
    rerank_list,
    score_list,
)
from penstock.serve.api.exchange import Exchange
from penstock.serve.api.limits import check_texts
from penstock.types import Usage


async def score(exchange: Exchange) -> Response:
    """Score pairs of texts by their relevance."""
    body = await exchange.body(ScoreBody)
    target = await exchange.target(body.model)
    requests = body.requests(request_id=exchange.id)
    check_texts(
        (t for r in requests for t in (r.query, *r.documents)),
        exchange.ingress.settings.limits,
        "text_2",
    )
    results = await exchange.wait(asyncio.gather(*map(target.handle.score, requests)))
    exchange.usage = Usage(sum(result.usage.prompt_tokens for result in results))
    about: dict[str, Any] = {
        "id": f"score-{exchange.id}",
        "created": exchange.created,
        "model": target.name,
    }
    return exchange.json(score_list(results, **about))


async def rerank(exchange: Exchange) -> Response:
    """Order documents by their relevance to a query."""
    body = await exchange.body(RerankBody)
    target = await exchange.target(body.model)
    request = body.request(request_id=exchange.id)
    check_texts((request.query, *request.documents), exchange.ingress.settings.limits, "documents")
    result = await exchange.wait(target.handle.rerank(request))
    exchange.usage = result.usage
    return exchange.json(rerank_list(result, body, id=f"rerank-{exchange.id}", model=target.name))


async def classify(exchange: Exchange) -> Response:
    """Sort texts into the model's classes."""
    body = await exchange.body(ClassifyBody)
    target = await exchange.target(body.model)
    request = body.request(request_id=exchange.id)
    check_texts(request.inputs, exchange.ingress.settings.limits, "input")
    result = await exchange.wait(target.handle.classify(request))
    exchange.usage = result.usage
    about: dict[str, Any] = {
        "id": f"classify-{exchange.id}",
        "created": exchange.created,
        "model": target.name,
    }
    return exchange.json(class_list(result, **about))
