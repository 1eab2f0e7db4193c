"""`/v1/messages/batches`, as Anthropic has it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from starlette.responses import Response, StreamingResponse

from penstock.errors import (
    BatchCancelledError,
    BatchExpiredError,
    EngineError,
    NotStoredError,
    RequestError,
    by_kind,
)
from penstock.openai.messages_api import message_error
from penstock.parsing import repeated_key
from penstock.serve.api.exchange import Exchange
from penstock.serve.api.interrupt import Interrupt
from penstock.serve.api.limits import check_json, decode_body, read_body
from penstock.serve.api.routes import Endpoint
from penstock.service.batches import RUNNING, Batch, Tally
from penstock.service.endpoints.fields import ServiceRoutes, first_known, page_limits, sees
from penstock.service.files import FileStore, new_id

URL = "/v1/messages"
_WINDOW, _WINDOW_S = "24h", 86400
_MOST_MODELS = 16
_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_UNANSWERED = {BatchCancelledError.kind: "canceled", BatchExpiredError.kind: "expired"}


class MessageRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """One message of a batch. `params` is the body of a request to `/v1/messages`."""

    custom_id: str
    params: msgspec.Raw


class MessageBatchBody(Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /v1/messages/batches` as it is read; the parameters are checked one by one."""

    requests: list[MessageRequest]


class _ShownRequest(Struct, kw_only=True):
    custom_id: str
    params: dict[str, Any]


class MessageBatchForm(Struct, kw_only=True):
    """Body of `POST /v1/messages/batches`: messages, each with a name and the body of a request."""

    requests: list[_ShownRequest]


class MessageBatchRoutes(ServiceRoutes):
    """The routes of batches of messages."""

    def endpoints(self) -> tuple[Endpoint, ...]:
        one = "/v1/messages/batches/{batch_id}"
        pages = ("limit", "before_id", "after_id")
        return (
            Endpoint("POST", "/v1/messages/batches", self.create, forms=(MessageBatchForm,)),
            Endpoint("GET", "/v1/messages/batches", self.list, query=pages),
            Endpoint("GET", one, self.retrieve),
            Endpoint("DELETE", one, self.delete),
            Endpoint("POST", f"{one}/cancel", self.cancel),
            Endpoint("GET", f"{one}/results", self.results),
        )

    async def create(self, exchange: Exchange) -> Response:
        """Have messages answered."""
        settings = self._service.settings
        check_json(exchange.request)
        limits = replace(exchange.limits, max_body_bytes=settings.max_file_bytes)
        async with Interrupt(None, exchange.ingress.live):
            given = await read_body(exchange.request, limits)
        body: MessageBatchBody = await asyncio.to_thread(decode_body, given, MessageBatchBody)
        del given
        models = await asyncio.to_thread(_check, body, settings.max_lines)
        stores = await self._service.opened()
        made = self._service.incoming / f"messages-{uuid4().hex}"
        try:
            await asyncio.to_thread(_write_lines, made, body)
            now = int(time.time())
            file = await stores.files.add(
                made, owner=exchange.owner, purpose="batch_input", filename="messages.jsonl"
            )
        finally:
            made.unlink(missing_ok=True)
        batch = Batch(
            id=new_id("msgbatch_"),
            owner=exchange.owner,
            api="anthropic",
            endpoint=URL,
            model=await first_known(exchange, models),
            input_file_id=file.id,
            completion_window=_WINDOW,
            created_at=now,
            expires_at=now + _WINDOW_S,
            status="in_progress",
            in_progress_at=now,
            counts=Tally(total=len(body.requests)),
        )
        await stores.batches.add(batch)
        stores.runner.submit(batch)
        return exchange.json(shown(batch, exchange))

    async def list(self, exchange: Exchange) -> Response:
        """The batches of messages of the caller, the newest first."""
        query = exchange.request.query_params
        after, before = query.get("after_id", ""), query.get("before_id", "")
        if after and before:
            raise RequestError("give after_id or before_id, not both", param="after_id")
        stores = await self._service.opened()
        batches, has_more = await stores.batches.page(
            sees(exchange),
            "anthropic",
            limit=page_limits(exchange, usual=20, most=1000),
            after=after,
            before=before,
        )
        data = [shown(one, exchange) for one in batches]
        return exchange.json(
            {
                "data": data,
                "has_more": has_more,
                "first_id": data[0]["id"] if data else None,
                "last_id": data[-1]["id"] if data else None,
            }
        )

    async def retrieve(self, exchange: Exchange) -> Response:
        """What is known of a batch of messages."""
        return exchange.json(shown(await self._batch(exchange), exchange))

    async def cancel(self, exchange: Exchange) -> Response:
        """Cancel a batch of messages. What was answered stays."""
        stores, id = await self._named(exchange)
        batch = await stores.batches.cancel(sees(exchange), id, "anthropic")
        stores.runner.cancel(id)
        return exchange.json(shown(batch, exchange))

    async def delete(self, exchange: Exchange) -> Response:
        """Delete a batch of messages that has ended, and its results."""
        stores, id = await self._named(exchange)
        batch = await stores.batches.delete(sees(exchange), id, "anthropic")
        ids = (batch.input_file_id, batch.output_file_id, batch.error_file_id)
        await stores.files.remove([id for id in ids if id])
        return exchange.json({"id": id, "type": "message_batch_deleted"})

    async def results(self, exchange: Exchange) -> Response:
        """The results of a batch of messages that has ended, a line each."""
        stores = await self._service.opened()
        batch = await self._batch(exchange)
        if batch.status in RUNNING:
            raise RequestError("the batch has not ended, so it has no results yet")
        ids = [id for id in (batch.output_file_id, batch.error_file_id) if id]
        if batch.status == "failed" and not ids:
            ids = [batch.input_file_id]
        for id in ids:
            await stores.files.get(None, id)  # they may have expired
        lines = _results(stores.files, batch, ids)
        return StreamingResponse(lines, media_type="application/x-jsonl")

    async def _batch(self, exchange: Exchange) -> Batch:
        stores, id = await self._named(exchange)
        return await stores.batches.get(sees(exchange), id, "anthropic")


def shown(batch: Batch, exchange: Exchange) -> dict[str, Any]:
    """A batch as Anthropic's clients read it."""
    counts, request = batch.counts, exchange.request
    ended = batch.status not in RUNNING
    failed = counts.failed
    done = counts.completed + counts.cancelled + counts.expired
    if batch.status == "failed":
        failed = counts.total - done
    status = "canceling" if batch.status == "cancelling" else "in_progress"
    root = exchange.ingress.settings.root_path
    place = f"{request.url.scheme}://{request.headers.get('host', 'localhost')}{root}"
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": "ended" if ended else status,
        "request_counts": {
            "processing": counts.total - done - failed,
            "succeeded": counts.completed,
            "errored": failed,
            "canceled": counts.cancelled,
            "expired": counts.expired,
        },
        "created_at": _time(batch.created_at),
        "expires_at": _time(batch.expires_at),
        "ended_at": _time(batch.ended_at),
        "archived_at": None,
        "cancel_initiated_at": _time(batch.cancelling_at),
        "results_url": f"{place}/v1/messages/batches/{batch.id}/results" if ended else None,
    }


def _time(seconds: int | None) -> str | None:
    return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


class _Model(Struct):
    model: str = ""


def _check(body: MessageBatchBody, most: int) -> list[str]:
    """Check the requests but for their `params`. Returns the models that they name, the first 16.
    Raises `RequestError`.
    """
    if not 1 <= len(body.requests) <= most:
        raise RequestError(
            f"a batch has 1 to {most} requests, not {len(body.requests)}", param="requests"
        )
    seen: set[str] = set()
    models: dict[str, None] = {}
    for number, one in enumerate(body.requests):
        where = f"requests.{number}.custom_id"
        if _CUSTOM_ID.fullmatch(one.custom_id) is None:
            raise RequestError(f"{where}: must be 1 to 64 letters, digits, _ and -", param=where)
        if one.custom_id in seen:
            raise RequestError(f"{where}: '{one.custom_id}' stands twice", param=where)
        seen.add(one.custom_id)
        where = f"requests.{number}.params"
        if not bytes(one.params).lstrip().startswith(b"{"):
            raise RequestError(f"{where}: must be an object", param=where)
        try:
            key = repeated_key(bytes(one.params))
        except UnicodeDecodeError:
            raise RequestError(f"{where}: is not UTF-8", param=where) from None
        if key is not None:
            raise RequestError(f"{where}: the key '{key[:100]}' stands twice", param=where)
        if len(models) < _MOST_MODELS:
            with contextlib.suppress(msgspec.DecodeError):
                models[msgspec.json.decode(one.params, type=_Model).model] = None
    return list(models)


def _write_lines(path: Path, body: MessageBatchBody) -> None:
    """Write the requests as lines of a batch."""
    with path.open("wb") as file:
        for one in body.requests:
            line = {"custom_id": one.custom_id, "method": "POST", "url": URL, "body": one.params}
            file.write(msgspec.json.encode(line).replace(b"\n", b" ") + b"\n")


async def _results(files: FileStore, batch: Batch, ids: list[str]) -> AsyncGenerator[bytes, None]:
    failure = None
    if ids == [batch.input_file_id]:
        message = batch.errors[0].message if batch.errors else "the batch failed"
        failure = message_error(EngineError(message))
    for id in ids:
        try:
            size = (await files.get(None, id)).bytes
        except NotStoredError:
            continue
        rest = b""
        async for piece in await files.content.pieces(id, 0, size):
            lines, newline, rest = (rest + piece).rpartition(b"\n")
            if newline:
                yield b"".join(_result(line, failure) for line in lines.split(b"\n") if line)
        if rest:
            yield _result(rest, failure)


def _result(text: bytes, failure: dict[str, Any] | None) -> bytes:
    """The line of a result, from the line of an output."""
    line = msgspec.json.decode(text)
    response, error = line.get("response"), line.get("error")
    result: dict[str, Any]
    if failure is not None:
        result = {"type": "errored", "error": failure}
    elif response is None:
        kind = error["code"] if error else ""
        if kind in _UNANSWERED:
            result = {"type": _UNANSWERED[kind]}
        else:
            failure = message_error(by_kind(kind, error["message"] if error else ""))
            result = {"type": "errored", "error": failure}
    elif response["status_code"] == 200:
        result = {"type": "succeeded", "message": response["body"]}
    else:
        result = {"type": "errored", "error": response["body"]}
    return msgspec.json.encode({"custom_id": line["custom_id"], "result": result}) + b"\n"
