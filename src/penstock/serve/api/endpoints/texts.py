"""What a model computes of texts: vectors, scores, classes and tokens."""

from __future__ import annotations

import asyncio

from starlette.responses import Response

from penstock.openai.extensions import (
    ClassifyBody,
    DetokenizeBody,
    RerankBody,
    ScoreBody,
    TokenizeBody,
    class_list,
    rerank_list,
    score_list,
)
from penstock.openai.requests import EmbeddingBody
from penstock.openai.responses import embedding_list
from penstock.serve.api.exchange import Exchange
from penstock.serve.api.limits import check_texts
from penstock.types import Usage


async def embeddings(exchange: Exchange, body: EmbeddingBody) -> Response:
    """Embed texts, one vector each."""
    target = await exchange.target(body.model)
    request = body.request(request_id=exchange.answer_id)
    check_texts(request.inputs, exchange.limits, "input")
    result = await exchange.wait(target.handle.embeddings(request))
    exchange.usage = result.usage
    return exchange.json(
        embedding_list(result, model=target.name, base64=body.encoding_format == "base64")
    )


async def score(exchange: Exchange, body: ScoreBody) -> Response:
    """Score pairs of texts by their relevance."""
    target = await exchange.target(body.model)
    requests = body.requests(request_id=exchange.answer_id)
    texts = (text for one in requests for text in (one.query, *one.documents))
    check_texts(texts, exchange.limits, "text_2")
    results = await exchange.wait(asyncio.gather(*map(target.handle.score, requests)))
    exchange.usage = Usage(sum(result.usage.prompt_tokens for result in results))
    return exchange.json(score_list(results, **exchange.about("score-", target)))


async def rerank(exchange: Exchange, body: RerankBody) -> Response:
    """Order documents by their relevance to a query."""
    target = await exchange.target(body.model)
    request = body.request(request_id=exchange.answer_id)
    check_texts((request.query, *request.documents), exchange.limits, "documents")
    result = await exchange.wait(target.handle.rerank(request))
    exchange.usage = result.usage
    return exchange.json(
        rerank_list(result, body, id=f"rerank-{exchange.answer_id}", model=target.name)
    )


async def classify(exchange: Exchange, body: ClassifyBody) -> Response:
    """Sort texts into the model's classes."""
    target = await exchange.target(body.model)
    request = body.request(request_id=exchange.answer_id)
    check_texts(request.inputs, exchange.limits, "input")
    result = await exchange.wait(target.handle.classify(request))
    exchange.usage = result.usage
    return exchange.json(class_list(result, **exchange.about("classify-", target)))


async def tokenize(exchange: Exchange, body: TokenizeBody) -> Response:
    """The token ids of a text."""
    target = await exchange.target(body.model)
    check_texts([body.prompt], exchange.limits, "prompt")
    ids = await exchange.wait(target.handle.tokenize(body.prompt))
    context_length = target.handle.card().context_length
    return exchange.json({"tokens": ids, "count": len(ids), "max_model_len": context_length})


async def detokenize(exchange: Exchange, body: DetokenizeBody) -> Response:
    """The text of token ids."""
    target = await exchange.target(body.model)
    return exchange.json({"prompt": await exchange.wait(target.handle.detokenize(body.tokens))})
