"""Jobs whose input is in OpenAI's batch form: each input line is a request, each output line a
response. `ENDPOINTS` has the endpoints that a line may name.

Lines are `{custom_id, method, url, body}`; answers `{id, custom_id, response{status_code,
request_id, body}, error}` (https://platform.openai.com/docs/guides/batch). Ids are made from the
request and its place, so that a job that was interrupted gives the same lines as one that was not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from penstock.batch.rows.repair import collect
from penstock.batch.rows.requests import EngineForm, conversation_text
from penstock.batch.rows.row import Outcome, Row, Stage
from penstock.engines.decisions.checks import check_questions
from penstock.engines.tasks import Tasks
from penstock.errors import (
    DuplicateIdError,
    LineError,
    PenstockError,
    RequestError,
    UnsupportedError,
    by_kind,
    nearest,
)
from penstock.openai import responses
from penstock.openai.audio import TranscriptionLine, TranslationLine
from penstock.openai.decisions.openai_form import DecisionBody, decision_object
from penstock.openai.decisions.system_one import SystemOneBody, systemone_object
from penstock.openai.embeddings_api import EmbeddingBody
from penstock.openai.extensions import (
    ClassifyBody,
    RerankBody,
    ScoreBody,
    class_list,
    classes_of,
    rerank_list,
    score_list,
)
from penstock.openai.messages_api import MessageBody, message_body, message_error
from penstock.openai.parameters.body import parse_body
from penstock.openai.parameters.names import in_words_of
from penstock.openai.requests import ChatBody, CompletionBody
from penstock.openai.responses_api import ResponseBody, response_body
from penstock.types import ChatRequest, CompletionRequest, DecideRequest, Decisions, Usage

_STORED = ("previous_response_id", "conversation", "background")


class Asked(NamedTuple):
    """What a line asks: `requests` in the engine's neutral form. `shape` has the further fields
    that decide the answer's body. `body` is the body that they were made of.
    """

    requests: Sequence[Any]
    shape: Any = None
    body: Struct | None = None


class Naming(NamedTuple):
    """The id and time of an answer. `name` follows a prefix such as "chatcmpl-"; `created` is in
    Unix seconds.
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
    """An endpoint. `read` makes requests from a body in this `form` and the name of an adapter; it
    raises `RequestError`. `answer` lets a model answer them; it raises what the model raises.
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
        if getattr(asked, name) not in (None, False):
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


def _transcription(asked: TranscriptionLine, adapter: str | None) -> Asked:
    return Asked([asked.request(asked.recording())], asked.response_format)


async def _answer_transcription(model: Tasks, asked: Asked, to: Naming) -> Answered:
    request = asked.requests[0]
    found = await model.transcriptions(request)
    body = responses.transcription(found, asked.shape, request.task)
    assert isinstance(body, dict)  # by the formats of lines
    return Answered(body, "stop", found.usage)


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
    "/v1/audio/transcriptions": LineEndpoint(
        TranscriptionLine, _transcription, _answer_transcription
    ),
    "/v1/audio/translations": LineEndpoint(TranslationLine, _transcription, _answer_transcription),
}
"""The endpoints by the URL of a line."""


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


LONG_LINE = 1 << 16
"""Bytes of a line from which on a thread reads its body: its many parts would hold up whatever else
runs in the event loop, such as the requests of a server.
"""
KEYS = frozenset({"custom_id", "method", "url", "body"})
MESSAGES = "/v1/messages"


class _Request(NamedTuple):
    url: str
    model: str
    asked: Asked
    adapter: str | None


class OpenAILines(EngineForm):
    """The row form of a job in OpenAI's batch form.

    `model` names the job's model; `model:adapter` in a body asks for an adapter. A body with
    another `model` is answered by the job's model too, and the answer has the name that the body
    has. `created` is the time that answers carry, in Unix seconds. `limit(request, n)` returns a
    request of a line with `n` requests, within the server's limits; it may raise `RequestError`.
    Holds about 70 bytes for each `custom_id` seen, unless they are known to be `unique`.
    """

    flat_columns = ("id", "custom_id", "response", "error")
    kind = "OpenAI batch lines"

    def __init__(
        self,
        *,
        model: str,
        created: int,
        limit: Callable[[Any, int], Any] | None = None,
        unique: bool = False,
    ) -> None:
        self.every_row = not unique  # an id can repeat one from before the interruption
        self._model = model
        self.created = created
        self._limit = limit
        self._seen: set[int] = set()
        self._encode = msgspec.msgpack.Encoder(order="deterministic", enc_hook=str).encode

    async def ready(self, rows: list[Row]) -> AsyncIterator[list[Row]]:
        short: list[Row] = []
        for row in rows:
            if row.nbytes > LONG_LINE and row.sound is not None:
                if short:
                    yield short
                await asyncio.to_thread(self._try_read, row)
                short = []
            short.append(row)
        yield short

    def prepare(self, row: Row) -> None:
        values = row.values
        assert values is not None
        self._check_line(values)
        if row.request is None:
            self._read(row, values)
        elif isinstance(row.request, Exception):
            raise row.request

    def _try_read(self, row: Row) -> None:
        """As `_read`, without a look at the line's other fields. The error becomes the request."""
        try:
            self._read(row, row.values or {})
        except Exception as error:  # also of a line that has no body
            row.request = error

    def _read(self, row: Row, values: Mapping[str, Any]) -> None:
        """Set what the row's body decides: the request, digest and prefix."""
        url, body = values["url"], values["body"]
        model = body.get("model") if isinstance(body, Mapping) else None
        adapter = None
        if isinstance(model, str) and model.startswith(f"{self._model}:"):
            adapter = model[len(self._model) + 1 :]
        asked = read_line(url, body, adapter)
        if self._limit is not None:
            count = len(asked.requests)
            asked = asked._replace(requests=[self._limit(one, count) for one in asked.requests])
        row.request = _Request(url, model or self._model, asked, adapter)
        first = asked.requests[0]
        sampling = getattr(first, "sampling", None)
        row.shareable = sampling is None or sampling.is_deterministic
        row.longest = sampling.max_tokens or 0 if sampling is not None else 0
        text = _beginning(first)
        row.prefix = text if adapter is None else f"{adapter}\0{text}"
        base64 = asked.shape is True
        shape = () if asked.shape is None or base64 else (asked.shape,)
        content = (model or self._model, asked.requests, adapter, base64, *shape)
        try:
            row.digest = blake2b(self._encode((url, content)), digest_size=16).digest()
        except OverflowError:
            raise RequestError("the body holds an integer of more than 64 bits") from None

    async def ask(self, engine: Tasks, row: Row) -> Outcome:
        url, model, asked, _ = row.request
        # Equal requests that share one computation share its id; other requests must not.
        name = row.digest.hex()[:24] if row.shareable else _hash(row.digest.hex(), row.index)
        answer = ENDPOINTS[url].answer
        body, reason, usage = await answer(engine, asked, Naming(name, self.created, model))
        return Outcome(msgspec.json.encode(body).decode(), None, reason, usage)

    def failure(self, row: Row, error: PenstockError, stage: Stage, attempts: int) -> Outcome:
        asked = row.request.asked if isinstance(row.request, _Request) else None
        if asked is not None and asked.body is not None:
            error = in_words_of(asked.body, error)
        outcome = super().failure(row, error, stage, attempts)
        if stage != "read" and not isinstance(error, LineError):
            anthropic = (row.values or {}).get("url") == MESSAGES
            body = message_error(error) if anthropic else responses.error_body(error)
            outcome.response = msgspec.json.encode(body).decode()
        return outcome

    def output(self, row: Row, outcome: Outcome) -> dict[str, Any]:
        custom_id = (row.values or {}).get("custom_id")
        name = _hash(custom_id, row.index)
        response = error = None
        if outcome.response is not None:
            response = {
                "status_code": 200 if outcome.error is None else _status(outcome.error.type),
                "request_id": f"req_{name}",
                "body": msgspec.json.decode(outcome.response),
            }
        elif outcome.error is not None:
            error = {"code": outcome.error.type, "message": outcome.error.message}
        return {
            "id": f"batch_req_{name}",
            "custom_id": custom_id,
            "response": response,
            "error": error,
        }

    def _check_line(self, values: Mapping[str, Any]) -> None:
        custom_id = values.get("custom_id")
        if not isinstance(custom_id, str) or not custom_id:
            raise LineError("the line has no custom_id", param="custom_id")
        if self.every_row:
            key = hash_key(custom_id)
            if key in self._seen:
                raise DuplicateIdError(
                    f"custom_id '{custom_id}' stands in an earlier line", param="custom_id"
                )
            self._seen.add(key)
        if values.get("method") != "POST":
            raise LineError(f"method must be POST, not {values.get('method')!r}", param="method")
        url = values.get("url")
        if not isinstance(url, str) or url not in ENDPOINTS:
            raise LineError(f"unknown url. {nearest(str(url), ENDPOINTS)}", param="url")
        if "body" not in values:
            raise LineError("the line has no body", param="body")


def _beginning(request: Any) -> str:
    """The text by which requests that begin alike are sorted together."""
    if isinstance(request, ChatRequest):
        return conversation_text(request.messages)
    if isinstance(request, CompletionRequest):
        return request.prompt if isinstance(request.prompt, str) else ""
    if isinstance(request, DecideRequest):
        return request.input if isinstance(request.input, str) else conversation_text(request.input)
    return ""


def are_lines(first: Mapping[str, Any] | None) -> bool:
    """Whether a data set that begins with this row is in OpenAI's batch form."""
    return first is not None and first.keys() >= KEYS


def hash_key(text: str) -> int:
    """A hash of an id. In ten million ids, two have the same hash with a chance of 1 in 400,000."""
    return int.from_bytes(blake2b(text.encode(errors="replace"), digest_size=8).digest(), "little")


def _hash(*parts: object) -> str:
    return blake2b(repr(parts).encode(errors="replace"), digest_size=12).hexdigest()


@lru_cache(maxsize=64)
def _status(kind: str) -> int:
    return by_kind(kind, "").status
