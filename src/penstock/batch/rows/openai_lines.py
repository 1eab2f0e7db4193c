"""Jobs whose input is OpenAI's batch form: a request a line in, a response a line out.

Lines are `{custom_id, method, url, body}`; answers `{id, custom_id, response{status_code,
request_id, body}, error}` (https://platform.openai.com/docs/guides/batch). Ids are made from the
request and its place, so that a job that was interrupted gives the same lines as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from penstock.batch.rows.line_endpoints import ENDPOINTS, Asked, Naming, read_line
from penstock.batch.rows.requests import EngineForm, conversation_text
from penstock.batch.rows.row import Outcome, Row, Stage
from penstock.engines.tasks import Tasks
from penstock.errors import (
    DuplicateIdError,
    LineError,
    PenstockError,
    RequestError,
    by_kind,
    nearest,
)
from penstock.openai import responses
from penstock.openai.messages_api import message_error
from penstock.openai.parameters.names import in_words_of
from penstock.types import ChatRequest, CompletionRequest, DecideRequest

KEYS = frozenset({"custom_id", "method", "url", "body"})
MESSAGES = "/v1/messages"


class _Request(NamedTuple):
    url: str
    model: str
    asked: Asked
    adapter: str | None


class OpenAILines(EngineForm):
    """The form of such a job.

    `model` names the job's model; `model:adapter` in a body asks for an adapter.
    Any other `model` in a body is answered by the job's model, and named in the answer as it was
    asked for. `created` is the time that answers carry, in Unix seconds. `limit` gives a request
    within the limits of its place; it may raise `RequestError`. Holds about 70 bytes for each
    `custom_id` seen, unless they are known to be `unique`.
    """

    flat_columns = ("id", "custom_id", "response", "error")
    kind = "OpenAI batch lines"

    def __init__(
        self,
        *,
        model: str,
        created: int,
        limit: Callable[[Any], Any] | None = None,
        unique: bool = False,
    ) -> None:
        self.every_row = not unique  # an id can repeat one from before the interruption
        self._model = model
        self.created = created
        self._limit = limit
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
        asked = read_line(url, body, adapter)
        if self._limit is not None:
            asked = asked._replace(requests=[self._limit(one) for one in asked.requests])
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
        # Equal requests that share one computation share its id; others must not.
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
    """The text by which requests that begin alike find each other."""
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
    """A number for an id. Two ids in ten million share one with a chance of one in 400,000."""
    return int.from_bytes(blake2b(text.encode(errors="replace"), digest_size=8).digest(), "little")


def _hash(*parts: object) -> str:
    return blake2b(repr(parts).encode(errors="replace"), digest_size=12).hexdigest()


@lru_cache(maxsize=64)
def _status(kind: str) -> int:
    return by_kind(kind, "").status
