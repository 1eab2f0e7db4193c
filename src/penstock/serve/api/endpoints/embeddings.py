"""`POST /v1/embeddings`."""

from __future__ import annotations

from starlette.responses import Response

from penstock.openai.requests import EmbeddingBody
from penstock.openai.responses import embedding_list
from penstock.serve.api.exchange import Exchange
from penstock.serve.api.limits import check_texts


async def embeddings(exchange: Exchange) -> Response:
    """Embed texts, one vector each."""
    body = await exchange.body(EmbeddingBody)
    target = await exchange.target(body.model)
    request = body.request(request_id=exchange.id)
    check_texts(request.inputs, exchange.ingress.settings.limits, "input")
    result = await exchange.wait(target.handle.embeddings(request))
    exchange.usage = result.usage
    return exchange.json(
        embedding_list(result, model=target.name, base64=body.encoding_format == "base64")
    )
