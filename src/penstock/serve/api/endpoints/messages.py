"""`POST /v1/messages`, Anthropic's form of chat."""

from __future__ import annotations

from starlette.responses import Response

from penstock.engines.tasks import generated
from penstock.openai.messages_api import MessageBody, MessageFramer, message_body
from penstock.serve.api.exchange import Exchange
from penstock.serve.api.limits import within_limits
from penstock.serve.api.sse import EventStream, collect


async def messages(exchange: Exchange) -> Response:
    """Continue a conversation, in Anthropic's form."""
    body = await exchange.body(MessageBody)
    target = await exchange.target(body.model)
    request = body.request(adapter=target.adapter, request_id=exchange.id)
    request = within_limits(request, exchange.ingress.settings.limits)
    if body.stream:
        framer = MessageFramer(id=exchange.id, model=target.name)
        return EventStream(exchange, generated(target.handle, request), framer)
    (answers,) = await collect(exchange, [generated(target.handle, request)])
    return exchange.json(message_body(answers, id=exchange.id, model=target.name))
