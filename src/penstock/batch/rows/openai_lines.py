"""Jobs whose input is OpenAI's batch form: a request a line in, a response a line out.

Lines are `{custom_id, method, url, body}`; answers `{id, custom_id, response{status_code,
request_id, body}, error}` (https://platform.openai.com/docs/guides/batch). Ids are made from the
request and its place, so that a job that was interrupted gives the same lines as one that was not.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from penstock.batch.rows.repair import collect
from penstock.batch.rows.requests import EngineForm, conversation_text
from penstock.batch.rows.row import Outcome, Row, Stage
from penstock.engines.base import LLMEngine
from penstock.engines.decisions.checks import check_questions
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
from penstock.openai.decisions.openai_form import DecisionBody, decision_object
from penstock.openai.requests import ChatBody, CompletionBody, EmbeddingBody, parse_body
from penstock.openai.responses import BestOf
from penstock.openai.tool_forms import ToolForm
from penstock.types import ChatRequest, CompletionRequest, DecideRequest, EmbeddingRequest, Usage

KEYS = frozenset({"custom_id", "method", "url", "body"})
URLS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/decisions")


Asks = list[ChatRequest] | list[CompletionRequest] | list[EmbeddingRequest] | list[DecideRequest]


class _Request(NamedTuple):
    model: str
    asks: Asks
    adapter: str | None
    base64: bool = False
    form: ToolForm | BestOf | None = None
    """What of the answers is written, and how, where that is not the usual."""


class OpenAILines(EngineForm):
    """The form of such a job.

    `model` names the job's model; `model:adapter` in a body asks for an adapter.
    Any other `model` in a body is answered by the job's model, and named in the answer as it was
    asked for. `created` is the time that answers carry, in Unix seconds. Holds about 70 bytes for
    each `custom_id` seen.
    """

    flat_columns = ("id", "custom_id", "response", "error")
    kind = "OpenAI batch lines"
    every_row = True  # an id can repeat one from before the interruption

    def __init__(self, *, model: str, created: int) -> None:
        self._model = model
        self.created = created
        self._seen: set[int] = set()
        self._encode = msgspec.msgpack.Encoder(order="deterministic", enc_hook=str).encode

    def prepare(self, row: Row) -> None:
        values = row.values
        assert values is not None
        self._check_line(values)
        url, body = values["url"], values["body"]
        model = body.get("model") if isinstance(body, Mapping) else None
        adapter = None
        if isinstance(model, str) and model.startswith(f"{self._model}:"):
            adapter = model[len(self._model) + 1 :]
        text, base64 = "", False
        form: ToolForm | BestOf | None = None
        asks: Asks
        if url == URLS[0]:
            asked = parse_body(ChatBody, body)
            chat = asked.request(adapter=adapter, stream=False)
            text, asks = conversation_text(chat.messages), [chat]
            form = None if asked.tool_form.plain else asked.tool_form
        elif url == URLS[1]:
            completion = parse_body(CompletionBody, body)
            asks, form = completion.requests(adapter=adapter, stream=False), completion.best
            text = asks[0].prompt if isinstance(asks[0].prompt, str) else ""
        elif adapter is not None:
            raise UnsupportedError(
                f"{url.rpartition('/')[2]} take no adapter, as '{model}' asks for", param="model"
            )
        elif url == URLS[3]:
            decide = parse_body(DecisionBody, body).request()
            check_questions(decide.questions)
            asks = [decide]
            text = (
                decide.input if isinstance(decide.input, str) else conversation_text(decide.input)
            )
        else:
            embedding = parse_body(EmbeddingBody, body)
            base64 = embedding.encoding_format == "base64"
            asks = [embedding.request()]
        sampling = getattr(asks[0], "sampling", None)
        row.request = _Request(model or self._model, asks, adapter, base64, form)
        row.shareable = sampling is None or sampling.is_deterministic
        row.longest = sampling.max_tokens or 0 if sampling is not None else 0
        row.prefix = text if adapter is None else f"{adapter}\0{text}"
        try:
            content = row.request if row.request.form is not None else row.request[:-1]
            row.digest = blake2b(self._encode((url, content)), digest_size=16).digest()
        except OverflowError:
            raise RequestError("the body holds an integer of more than 64 bits") from None

    async def ask(self, engine: LLMEngine, row: Row) -> Outcome:
        model, asks, _, base64, form = row.request
        collected: list[responses.Answers] = []
        body: dict[str, Any] = {}
        for request in asks:
            if isinstance(request, EmbeddingRequest):
                vectors = await engine.embeddings(request)
                body = responses.embedding_list(vectors, model=model, base64=base64)
                return Outcome(msgspec.json.encode(body).decode(), None, "stop", vectors.usage)
            if isinstance(request, DecideRequest):
                decided = await engine.decide(request)
                body = decision_object(decided, model)
                return Outcome(msgspec.json.encode(body).decode(), None, "stop", decided.usage)
            collected.append(await collect(engine, request, responses.Answers))
        # Equal requests that share one computation share its id; others must not.
        name = row.digest.hex()[:24] if row.shareable else _hash(row.digest.hex(), row.index)
        if isinstance(asks[0], ChatRequest):
            body = responses.chat_completion(
                collected[0], id=f"chatcmpl-{name}", created=self.created, model=model, form=form
            )
        else:
            body = responses.completion(
                collected, id=f"cmpl-{name}", created=self.created, model=model, best=form
            )
        usage = sum((answers.usage for answers in collected), Usage())
        return Outcome(msgspec.json.encode(body).decode(), None, collected[0].reasons[0], usage)

    def failure(self, row: Row, error: PenstockError, stage: Stage, attempts: int) -> Outcome:
        outcome = super().failure(row, error, stage, attempts)
        if stage != "read" and not isinstance(error, LineError):
            outcome.response = msgspec.json.encode(responses.error_body(error)).decode()
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
        key = hash_key(custom_id)
        if key in self._seen:
            raise DuplicateIdError(
                f"custom_id '{custom_id}' stands in an earlier line", param="custom_id"
            )
        self._seen.add(key)
        if values.get("method") != "POST":
            raise LineError(f"method must be POST, not {values.get('method')!r}", param="method")
        if values.get("url") not in URLS:
            raise LineError(f"unknown url. {nearest(str(values.get('url')), URLS)}", param="url")
        if "body" not in values:
            raise LineError("the line has no body", param="body")


def are_lines(first: Mapping[str, Any] | None) -> bool:
    """Whether a data set that begins with this row is in OpenAI's batch form."""
    return first is not None and first.keys() >= KEYS


def hash_key(text: str) -> int:
    """A number for an id. Two ids in ten million share one with a chance of one in 400,000."""
    return int.from_bytes(blake2b(text.encode(errors="replace"), digest_size=8).digest(), "little")


def _hash(*parts: object) -> str:
    return blake2b(repr(parts).encode(errors="replace"), digest_size=12).hexdigest()


@lru_cache(maxsize=64)
def _status(kind: str) -> int:
    return by_kind(kind, "").status
