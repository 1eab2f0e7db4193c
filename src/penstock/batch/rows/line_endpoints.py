"""The endpoints that lines of OpenAI's batch form may name: what a body asks of a model, and the
body that answers it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from penstock.batch.rows.repair import collect
from penstock.engines.decisions.checks import check_questions
from penstock.engines.tasks import Tasks
from penstock.errors import PenstockError, RequestError, UnsupportedError
from penstock.openai import responses
from penstock.openai.decisions.openai_form import DecisionBody, decision_object
from penstock.openai.decisions.system_one import SystemOneBody, systemone_object
from penstock.openai.extensions import (
    ClassifyBody,
    RerankBody,
    ScoreBody,
    class_list,
    classes_of,
    rerank_list,
    score_list,
)
from penstock.openai.messages_api import MessageBody, message_body
from penstock.openai.parameters.names import in_words_of
from penstock.openai.requests import ChatBody, CompletionBody, EmbeddingBody, parse_body
from penstock.openai.responses_api import ResponseBody, response_body
from penstock.types import Decisions, Usage

_STORED = ("previous_response_id", "conversation", "background")


class Asked(NamedTuple):
    """What a line asks: requests in the engine's neutral form. Beside these, `shape` decides what
    the answer's body looks like. `body` is what they were made of.
    """

    requests: Sequence[Any]
    shape: Any = None
    body: Struct | None = None


class Naming(NamedTuple):
    """What answers are called. `name` follows a prefix such as "chatcmpl-"; `created` is in Unix
    seconds.
    """

    name: str
    created: int
    model: str


class Answered(NamedTuple):
    """The answer's body, why it ended, and its tokens."""

    body: dict[str, Any]
    finish_reason: str
    usage: Usage


class LineEndpoint(NamedTuple):
    """`read` makes requests of a body in this `form` and the name of an adapter; raises
    `RequestError`. `answer` has a model answer them; raises what the model raises.
    """

    form: type[Struct]
    read: Callable[[Any, str | None], Asked]
    answer: Callable[[Tasks, Asked, Naming], Awaitable[Answered]]
    adapters: bool = False


def _chat(asked: ChatBody, adapter: str | None) -> Asked:
    form = None if asked.tool_form.plain else asked.tool_form
    return Asked([asked.request(adapter=adapter, stream=False)], form)


async def _answer_chat(model: Tasks, asked: Asked, to: Naming) -> Answered:
    answers = await collect(model, asked.requests[0], responses.Answers)
    body = responses.chat_completion(
        answers, id=f"chatcmpl-{to.name}", created=to.created, model=to.model, form=asked.shape
    )
    return Answered(body, answers.reasons[0], answers.usage)


def _completion(asked: CompletionBody, adapter: str | None) -> Asked:
    return Asked(asked.requests(adapter=adapter, stream=False), asked.best)


async def _answer_completion(model: Tasks, asked: Asked, to: Naming) -> Answered:
    answers = [await collect(model, one, responses.Answers) for one in asked.requests]
    body = responses.completion(
        answers, id=f"cmpl-{to.name}", created=to.created, model=to.model, best=asked.shape
    )
    return Answered(body, answers[0].reasons[0], sum((one.usage for one in answers), Usage()))


def _response(asked: ResponseBody, adapter: str | None) -> Asked:
    for name in _STORED:
        if getattr(asked, name):
            raise RequestError(f"a line of a batch has no {name}: send all items", param=name)
    request = replace(asked.request(adapter=adapter), stream=False)
    return Asked([request], replace(asked, store=False, stream=False))


async def _answer_response(model: Tasks, asked: Asked, to: Naming) -> Answered:
    answers = await collect(model, asked.requests[0], responses.Answers)
    body = response_body(answers, asked.shape, id=to.name, created=to.created, model=to.model)
    return Answered(body, answers.reasons[0], answers.usage)


def _message(asked: MessageBody, adapter: str | None) -> Asked:
    return Asked([replace(asked.request(adapter=adapter), stream=False)])


async def _answer_message(model: Tasks, asked: Asked, to: Naming) -> Answered:
    answers = await collect(model, asked.requests[0], responses.Answers)
    body = message_body(answers, id=to.name, model=to.model)
    return Answered(body, answers.reasons[0], answers.usage)


def _embedding(asked: EmbeddingBody, adapter: str | None) -> Asked:
    return Asked([asked.request()], True if asked.encoding_format == "base64" else None)


async def _answer_embedding(model: Tasks, asked: Asked, to: Naming) -> Answered:
    found = await model.embeddings(asked.requests[0])
    body = responses.embedding_list(found, model=to.model, base64=bool(asked.shape))
    return Answered(body, "stop", found.usage)


def _deciding(
    form: type[DecisionBody | SystemOneBody], written: Callable[[Decisions, str], dict[str, Any]]
) -> LineEndpoint:
    """An endpoint for decisions, which are asked for in a body of this form."""

    def read(asked: DecisionBody | SystemOneBody, adapter: str | None) -> Asked:
        request = asked.request()
        check_questions(request.questions)
        return Asked([request])

    async def answer(model: Tasks, asked: Asked, to: Naming) -> Answered:
        found = await model.decide(asked.requests[0])
        return Answered(written(found, to.model), "stop", found.usage)

    return LineEndpoint(form, read, answer)


def _score(asked: ScoreBody, adapter: str | None) -> Asked:
    return Asked(asked.requests())


async def _answer_score(model: Tasks, asked: Asked, to: Naming) -> Answered:
    found = [await model.score(one) for one in asked.requests]
    usage = Usage(sum(one.usage.prompt_tokens for one in found))
    body = score_list(found, id=f"score-{to.name}", created=to.created, model=to.model)
    return Answered(body, "stop", usage)


def _rerank(asked: RerankBody, adapter: str | None) -> Asked:
    return Asked([asked.request()], asked)


async def _answer_rerank(model: Tasks, asked: Asked, to: Naming) -> Answered:
    found = await model.rerank(asked.requests[0])
    body = rerank_list(found, asked.shape, id=f"rerank-{to.name}", model=to.model)
    return Answered(body, "stop", found.usage)


def _classify(asked: ClassifyBody, adapter: str | None) -> Asked:
    if asked.labels is None:
        return Asked([asked.request()], "classes")
    requests = asked.decisions()
    check_questions(requests[0].questions)
    return Asked(requests, "labels")


async def _answer_classify(model: Tasks, asked: Asked, to: Naming) -> Answered:
    if asked.shape == "labels":
        classes = classes_of([await model.decide(one) for one in asked.requests])
    else:
        classes = await model.classify(asked.requests[0])
    body = class_list(classes, id=f"classify-{to.name}", created=to.created, model=to.model)
    return Answered(body, "stop", classes.usage)


_RERANK = LineEndpoint(RerankBody, _rerank, _answer_rerank)
_SCORE = LineEndpoint(ScoreBody, _score, _answer_score)
ENDPOINTS: dict[str, LineEndpoint] = {
    "/v1/chat/completions": LineEndpoint(ChatBody, _chat, _answer_chat, adapters=True),
    "/v1/completions": LineEndpoint(CompletionBody, _completion, _answer_completion, adapters=True),
    "/v1/embeddings": LineEndpoint(EmbeddingBody, _embedding, _answer_embedding),
    "/v1/responses": LineEndpoint(ResponseBody, _response, _answer_response, adapters=True),
    "/v1/messages": LineEndpoint(MessageBody, _message, _answer_message, adapters=True),
    "/v1/decisions": _deciding(DecisionBody, decision_object),
    "/v1/systemone": _deciding(SystemOneBody, systemone_object),
    "/v1/score": _SCORE,
    "/score": _SCORE,
    "/v1/rerank": _RERANK,
    "/v2/rerank": _RERANK,
    "/rerank": _RERANK,
    "/classify": LineEndpoint(ClassifyBody, _classify, _answer_classify),
}
"""By the URL of a line."""


def read_line(url: str, body: Any, adapter: str | None) -> Asked:
    """What a body asks of an endpoint. Raises `RequestError`."""
    endpoint = ENDPOINTS[url]
    if adapter is not None and not endpoint.adapters:
        raise UnsupportedError(
            f"{url.rpartition('/')[2]} take no adapter, as ':{adapter}' asks for", param="model"
        )
    if isinstance(body, Mapping) and body.get("stream") is True:
        raise RequestError(
            "a line of a batch is answered whole: leave stream out, or set it to false",
            param="stream",
        )
    parsed = parse_body(endpoint.form, body)
    try:
        return endpoint.read(parsed, adapter)._replace(body=parsed)
    except PenstockError as error:
        raise in_words_of(parsed, error) from None
