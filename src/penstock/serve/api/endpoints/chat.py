"""`POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from penstock.engines.tasks import generated
from penstock.errors import RequestError
from penstock.openai.framing import ChatFramer
from penstock.openai.requests import ChatBody
from penstock.openai.responses import chat_completion
from penstock.serve.api.exchange import Exchange
from penstock.serve.api.limits import within_limits
from penstock.serve.api.sse import EventStream, collect


async def chat_completions(exchange: Exchange) -> Response:
    """Continue a conversation, in OpenAI's chat form."""
    body = await exchange.body(ChatBody)
    target = await exchange.target(body.model)
    settings = exchange.ingress.settings
    if body.chat_template is not None and not settings.trust_request_chat_template:
        raise RequestError(
            "this server takes no chat templates from requests", param="chat_template"
        )
    request = within_limits(
        body.request(adapter=target.adapter, request_id=exchange.id), settings.limits
    )
    about: dict[str, Any] = {
        "id": f"chatcmpl-{exchange.id}",
        "created": exchange.created,
        "model": target.name,
    }
    if body.stream:
        request = msgspec.structs.replace(request, forward_chunks=True)
        framer = ChatFramer(**about, n=request.n, include_usage=body.include_usage)
        return EventStream(exchange, generated(target.handle, request), framer, n=request.n)
    (answers,) = await collect(exchange, [generated(target.handle, request)])
    return exchange.json(chat_completion(answers, **about))
