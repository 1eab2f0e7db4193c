"""`POST /tokenize` and `POST /detokenize`."""

from __future__ import annotations

from starlette.responses import Response

from penstock.openai.extensions import DetokenizeBody, TokenizeBody
from penstock.serve.api.exchange import Exchange
from penstock.serve.api.limits import check_texts


async def tokenize(exchange: Exchange) -> Response:
    """The token ids of a text."""
    body = await exchange.body(TokenizeBody)
    target = await exchange.target(body.model)
    check_texts([body.prompt], exchange.ingress.settings.limits, "prompt")
    ids = await exchange.wait(target.handle.tokenize(body.prompt))
    context_length = target.handle.card().context_length
    return exchange.json({"tokens": ids, "count": len(ids), "max_model_len": context_length})


async def detokenize(exchange: Exchange) -> Response:
    """The text of token ids."""
    body = await exchange.body(DetokenizeBody)
    target = await exchange.target(body.model)
    return exchange.json({"prompt": await exchange.wait(target.handle.detokenize(body.tokens))})
