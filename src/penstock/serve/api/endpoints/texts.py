"""What a model computes of texts: vectors, scores, classes and tokens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from msgspec.structs import replace
from starlette.responses import Response

from penstock.engines.decisions.checks import check_questions
from penstock.engines.side_by_side import all_of
from penstock.errors import RequestError, UnsupportedError
from penstock.openai.decisions.openai_form import DecisionBody, decision_object
from penstock.openai.decisions.system_one import SystemOneBody, systemone_object
from penstock.openai.embeddings_api import EmbeddingBody
from penstock.openai.extensions import (
    ClassifyBody,
    DetokenizeBody,
    PoolingBody,
    RerankBody,
    ScoreBody,
    TokenizeBody,
    class_list,
    classes_of,
    pooling_list,
    rerank_list,
    score_list,
)
from penstock.openai.messages_api import CountBody
from penstock.openai.responses import embedding_list
from penstock.serve.api.exchange import Exchange, check_loaded
from penstock.serve.api.limits import (
    check_asked,
    check_embedded,
    check_template,
    check_texts,
    texts_of,
)
from penstock.serve.models.handle import ModelHandle, Target
from penstock.types import (
    ClassifyRequest,
    DecideRequest,
    Decisions,
    EmbeddingRequest,
    SparseVector,
    TokenizeRequest,
    Tokens,
    Usage,
)

R = TypeVar("R")
T = TypeVar("T")
_AT_ONCE = 64
"""Requests to the engine of one request with a list."""


async def embeddings(exchange: Exchange, body: EmbeddingBody) -> Response:
    """Embed texts and images, one vector for each input."""
    target = await exchange.target(body.model)
    check_template(body.chat_template, exchange.ingress.settings)
    request = body.request(request_id=exchange.answer_id)
    check_embedded(request.inputs, exchange.limits)
    result = await exchange.wait(target.handle.embeddings(request))
    exchange.usage = result.usage
    return exchange.json(
        embedding_list(result, model=target.name, base64=body.encoding_format == "base64")
    )


async def decisions(exchange: Exchange, body: DecisionBody) -> Response:
    """Answer typed questions about an input, with the probability of each possible answer."""
    target = await exchange.target(body.model)
    check_template(body.chat_template, exchange.ingress.settings)
    result = await _decided(exchange, target, body.request(request_id=exchange.answer_id))
    return exchange.json(decision_object(result, target.name))


async def systemone(exchange: Exchange, body: SystemOneBody) -> Response:
    """Answer named questions about a state, in the words of the System One API."""
    target = await exchange.target(body.model)
    result = await _decided(exchange, target, body.request(request_id=exchange.answer_id))
    return exchange.json(systemone_object(result, target.name))


async def _decided(exchange: Exchange, target: Target, request: DecideRequest) -> Decisions:
    _check_asked(exchange, target, [request])
    result = await exchange.wait(target.handle.decide(request))
    exchange.usage = result.usage
    return result


def _check_asked(exchange: Exchange, target: Target, requests: Sequence[DecideRequest]) -> None:
    if target.adapter is not None:
        raise UnsupportedError("decisions are of the bare model, not of an adapter", param="model")
    check_questions(requests[0].questions)
    for request in requests:
        check_asked(request, exchange.limits)


async def each(ask: Callable[[R], Awaitable[T]], requests: Sequence[R]) -> list[T]:
    """The answers to the requests, in their order. Only some are asked at a time, so that a long
    list leaves room in the queue; where one fails, the others end.
    """
    answers: dict[int, T] = {}
    left = iter(enumerate(requests))

    async def some() -> None:
        for number, request in left:
            answers[number] = await ask(request)

    await all_of(some() for _ in requests[:_AT_ONCE])
    return [answers[number] for number in range(len(requests))]


async def score(exchange: Exchange, body: ScoreBody) -> Response:
    """Score pairs of texts by their relevance."""
    target = await exchange.target(body.model)
    requests = body.requests(request_id=exchange.answer_id)
    texts = (text for one in requests for text in (one.query, *one.documents))
    check_texts(texts, exchange.limits, "text_2")
    results = await exchange.wait(each(target.handle.score, requests))
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
    """Sort texts into the model's classes, or into the labels that are given."""
    target = await exchange.target(body.model)
    if body.labels is not None:
        requests = body.decisions(request_id=exchange.answer_id)
        _check_asked(exchange, target, requests)
        classes = classes_of(await exchange.wait(each(target.handle.decide, requests)))
        exchange.usage = classes.usage
        return exchange.json(class_list(classes, **exchange.about("classify-", target)))
    request = body.request(request_id=exchange.answer_id)
    check_texts(request.inputs, exchange.limits, "input")
    try:
        result = await exchange.wait(target.handle.classify(request))
    except UnsupportedError as error:
        why = f"{error}. A model that generates text chooses among 'labels', and there are none"
        raise UnsupportedError(why, param="labels") from None
    exchange.usage = result.usage
    return exchange.json(class_list(result, **exchange.about("classify-", target)))


async def pooling(exchange: Exchange, body: PoolingBody) -> Response:
    """What the model makes of texts: of each a vector, vectors of its tokens, a sparse vector, or
    the probabilities of classes.
    """
    target = await exchange.target(body.model)
    body.check_task()
    check_template(body.chat_template, exchange.ingress.settings)
    request = body.request(request_id=exchange.answer_id)
    check_embedded(request.inputs, exchange.limits)
    vectors, usage = await exchange.wait(_pooled(target.handle, request, body.task))
    exchange.usage = usage
    base64 = body.encoding_format == "base64"
    if base64 and isinstance(vectors[0], SparseVector):
        raise RequestError(
            "sparse vectors have no form in base64: leave encoding_format out",
            param="encoding_format",
        )
    return exchange.json(
        pooling_list(vectors, usage, **exchange.about("pool-", target), base64=base64)
    )


async def _pooled(
    model: ModelHandle, request: EmbeddingRequest, task: str | None
) -> tuple[Sequence[Any], Usage]:
    if task != "classify":
        try:
            found = await model.embeddings(request)
        except UnsupportedError:
            able = await model.capabilities() if task is None else None
            if able is not None and "embeddings" in able.tasks and "dense" not in able.vectors:
                return await _pooled(model, replace(request, vectors=able.vectors[0]), "embed")
            if task is not None or request.dimensions is not None:
                raise
        else:
            made = found.of(request.vectors)
            if len(made) != len(request.inputs):
                raise UnsupportedError(
                    f"'{model.model_id}' makes no {request.vectors} vectors", param="model"
                )
            return made, found.usage
    if request.dimensions is not None:
        raise RequestError("classes have no dimensions to choose", param="dimensions")
    texts = [one for one in request.inputs if isinstance(one, str)]
    if len(texts) != len(request.inputs):
        raise RequestError("classes are found for texts alone", param="input")
    classes = await model.classify(ClassifyRequest(texts, request.request_id))
    return [one.probabilities for one in classes.items], classes.usage


async def tokenize(exchange: Exchange, body: TokenizeBody) -> Response:
    """The token ids of a text, or those that the model is fed for a conversation."""
    target = await exchange.target(body.model)
    check_template(body.chat_template, exchange.ingress.settings)
    request = await exchange.aside(body.request)
    tokens = await exchange.wait(_tokens(exchange, target, request))
    answer = {
        "tokens": tokens.ids,
        "count": len(tokens.ids),
        "max_model_len": target.handle.card().context_length,
        "token_strs": tokens.names,
    }
    return exchange.json(answer)


async def count_tokens(exchange: Exchange, body: CountBody) -> Response:
    """The number of tokens of a conversation in Anthropic's form."""
    target = await exchange.target(body.model)
    chat = await exchange.aside(partial(body.request, request_id=exchange.answer_id))
    tokens = await exchange.wait(_tokens(exchange, target, TokenizeRequest(chat=chat)))
    return exchange.json({"input_tokens": len(tokens.ids)})


async def _tokens(exchange: Exchange, target: Target, request: TokenizeRequest) -> Tokens:
    if request.chat is not None:
        check_texts(texts_of(request.chat), exchange.limits, "messages")
    else:
        check_texts([request.prompt], exchange.limits, "prompt")
    if request.chat is not None or request.special_tokens or request.names:
        return await target.handle.tokens(request)
    return Tokens(await target.handle.tokenize(request.prompt))


async def tokenizer_info(exchange: Exchange) -> Response:
    """The model's tokenizer: its special tokens, chat template and context."""
    target = await exchange.target(exchange.request.query_params.get("model", ""))
    check_loaded(exchange, target.handle)
    info = await exchange.wait(target.handle.tokenizer_info())
    none = dict.fromkeys(("bos_token", "eos_token", "pad_token"))
    return exchange.json(
        {
            "tokenizer_class": info.kind,
            **none,
            **info.special_tokens,
            "chat_template": info.chat_template,
            "model_max_length": target.handle.card().context_length,
        }
    )


async def detokenize(exchange: Exchange, body: DetokenizeBody) -> Response:
    """The text of token ids."""
    target = await exchange.target(body.model)
    return exchange.json({"prompt": await exchange.wait(target.handle.detokenize(body.tokens))})
