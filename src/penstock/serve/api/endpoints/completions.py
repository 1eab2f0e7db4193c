"""`POST /v1/completions`."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from penstock.engines.tasks import generated
from penstock.openai.framing import CompletionFramer
from penstock.openai.requests import CompletionBody
from penstock.openai.responses import completion
from penstock.serve.api.exchange import Exchange
from penstock.serve.api.limits import within_limits
from penstock.serve.api.sse import EventStream, collect, merge


async def completions(exchange: Exchange) -> Response:
    """Continue one prompt or several."""
    body = await exchange.body(CompletionBody)
    handle, adapter, name = await exchange.target(body.model)
    limits = exchange.ingress.settings.limits
    requests = body.requests(adapter=adapter, request_id=exchange.id)
    requests = [within_limits(request, limits, prompts=len(requests)) for request in requests]
    n = requests[0].n
    about: dict[str, Any] = {
        "id": f"cmpl-{exchange.id}",
        "created": exchange.created,
        "model": name,
    }
    if body.stream:
        framer = CompletionFramer(**about, n=n, include_usage=body.include_usage)
        running = [generated(handle, request) for request in requests]
        batches = running[0] if len(running) == 1 else merge(running, n)
        return EventStream(exchange, batches, framer, n=n, prompts=len(requests))
    answers = await collect(exchange, [generated(handle, request) for request in requests])
    return exchange.json(completion(answers, **about))
