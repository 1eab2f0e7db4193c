"""`POST /v1/responses`, OpenAI's newer form of chat."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from penstock.engines.tasks import generated
from penstock.openai.responses_api import ResponseBody, ResponseFramer, response_body
from penstock.serve.api.exchange import Exchange
from penstock.serve.api.limits import within_limits
from penstock.serve.api.sse import EventStream, collect


async def responses(exchange: Exchange) -> Response:
    """Continue a conversation, in OpenAI's Responses form."""
    body = await exchange.body(ResponseBody)
    target = await exchange.target(body.model)
    request = body.request(adapter=target.adapter, request_id=exchange.id)
    request = within_limits(request, exchange.ingress.settings.limits)
    about: dict[str, Any] = {"id": exchange.id, "created": exchange.created, "model": target.name}
    if body.stream:
        return EventStream(
            exchange, generated(target.handle, request), ResponseFramer(body, **about)
        )
    (answers,) = await collect(exchange, [generated(target.handle, request)])
    return exchange.json(response_body(answers, body, **about))
