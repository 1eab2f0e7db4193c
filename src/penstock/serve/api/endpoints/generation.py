"""What a model writes: chat in the forms of OpenAI and Anthropic, and completions."""

from __future__ import annotations

from functools import partial

from msgspec.structs import replace
from starlette.responses import Response

from penstock.engines.tasks import generated, merged
from penstock.openai.framing import ChatFramer, CompletionFramer
from penstock.openai.messages_api import MessageBody, MessageFramer, message_body
from penstock.openai.requests import ChatBody, CompletionBody
from penstock.openai.response_events import ResponseFramer
from penstock.openai.responses import chat_completion, completion
from penstock.openai.responses_api import ResponseBody, response_body
from penstock.serve.api.exchange import Exchange
from penstock.serve.api.limits import check_template, within_limits
from penstock.serve.api.sse import EventStream, collect
from penstock.serve.models.handle import Target
from penstock.types import ChatRequest


async def chat_completions(exchange: Exchange, body: ChatBody) -> Response:
    """Continue a conversation, in OpenAI's chat form."""
    target = await exchange.target(body.model)
    check_template(body.chat_template, exchange.ingress.settings)
    request = await _request(exchange, body, target)
    request = within_limits(request, exchange.limits)
    about = exchange.about("chatcmpl-", target)
    if body.stream:
        form, continuous, token_ids = body.tool_form, body.continuous_usage, body.wants_token_ids
        as_they_are = form.plain and not continuous and not token_ids
        request = replace(request, forward_chunks=as_they_are)
        framer = ChatFramer(
            **about,
            n=request.n,
            include_usage=body.include_usage,
            continuous_usage=continuous,
            token_ids=token_ids,
            form=form,
        )
        return EventStream(exchange, generated(target.handle, request), framer, n=request.n)
    (answers,) = await collect(exchange, [generated(target.handle, request)])
    return exchange.json(chat_completion(answers, **about, form=body.tool_form))


async def completions(exchange: Exchange, body: CompletionBody) -> Response:
    """Continue one prompt or several."""
    target = await exchange.target(body.model)
    requests = body.requests(adapter=target.adapter, request_id=exchange.answer_id)
    requests = [within_limits(one, exchange.limits, prompts=len(requests)) for one in requests]
    if len(requests) > 1:  # else the first prompt would wake a model for which a later one is wrong
        await target.handle.check_before_load("completions", *requests)
    n = requests[0].n
    about = exchange.about("cmpl-", target)
    running = [generated(target.handle, request) for request in requests]
    if body.stream:
        framer = CompletionFramer(
            **about,
            n=n,
            include_usage=body.include_usage,
            continuous_usage=body.continuous_usage,
            token_ids=body.wants_token_ids,
        )
        batches = running[0] if len(running) == 1 else merged(running, n)
        return EventStream(exchange, batches, framer, n=n, prompts=len(requests))
    return exchange.json(completion(await collect(exchange, running), **about, best=body.best))


async def responses(exchange: Exchange, body: ResponseBody) -> Response:
    """Continue a conversation, in OpenAI's Responses form."""
    target = await exchange.target(body.model)
    request = await _request(exchange, body, target)
    batches = generated(target.handle, within_limits(request, exchange.limits))
    about = exchange.about("", target)
    if body.stream:
        return EventStream(exchange, batches, ResponseFramer(body, **about))
    (answers,) = await collect(exchange, [batches])
    return exchange.json(response_body(answers, body, **about))


async def messages(exchange: Exchange, body: MessageBody) -> Response:
    """Continue a conversation, in Anthropic's form."""
    target = await exchange.target(body.model)
    request = await _request(exchange, body, target)
    batches = generated(target.handle, within_limits(request, exchange.limits))
    if body.stream:
        return EventStream(
            exchange, batches, MessageFramer(id=exchange.answer_id, model=target.name)
        )
    (answers,) = await collect(exchange, [batches])
    return exchange.json(message_body(answers, id=exchange.answer_id, model=target.name))


async def _request(
    exchange: Exchange, body: ChatBody | ResponseBody | MessageBody, target: Target
) -> ChatRequest:
    return await exchange.aside(
        partial(body.request, adapter=target.adapter, request_id=exchange.answer_id)
    )
