"""OpenAI's files, uploads and batches: `/v1/files`, `/v1/uploads`, `/v1/batches`."""

from __future__ import annotations

import re
import time
from typing import Any

from msgspec import Struct
from starlette.responses import Response, StreamingResponse

from penstock.batch.rows.openai_lines import ENDPOINTS
from penstock.errors import RequestError, nearest
from penstock.openai.responses_api import item_list
from penstock.serve.api.exchange import Exchange
from penstock.serve.api.limits import check_metadata
from penstock.serve.api.query import is_ascending
from penstock.serve.api.routes import Endpoint
from penstock.service.batches import Batch
from penstock.service.endpoints.fields import (
    ExpiresAfter,
    ServiceRoutes,
    checked_expiry,
    first_known,
    page_limits,
    sees,
    window_seconds,
)
from penstock.service.files import LARGEST_PAGE, PURPOSES, FileStore, StoredFile, new_id
from penstock.service.forms import Form, read_form, safe_name
from penstock.service.validation import first_model

_SECONDS, _ANCHOR = "expires_after[seconds]", "expires_after[anchor]"
UPLOADED_FILE: dict[str, Any] = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "contentMediaType": "application/octet-stream"},
        "purpose": {"const": "batch"},
        _ANCHOR: {"const": "created_at"},
        _SECONDS: {"type": "integer", "minimum": 1},
    },
}
"""The JSON Schema of an upload, for the API's description."""
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class FileRoutes(ServiceRoutes):
    """The routes of `/v1/files`, where each caller sees files of its own."""

    def endpoints(self) -> tuple[Endpoint, ...]:
        one = "/v1/files/{file_id}"
        pages = ("purpose", "limit", "order", "after")
        return (
            Endpoint("POST", "/v1/files", self.create, multipart=UPLOADED_FILE),
            Endpoint("GET", "/v1/files", self.list, query=pages),
            Endpoint("GET", one, self.retrieve),
            Endpoint("DELETE", one, self.delete),
            Endpoint("GET", f"{one}/content", self.content),
        )

    async def create(self, exchange: Exchange) -> Response:
        """Upload a file, such as the lines of a batch."""
        settings = self._service.settings
        stores = await self._service.opened()
        form = await read_form(exchange, self._service.incoming, "file", settings.max_file_bytes)
        try:
            _check_fields(form)
            file = await stores.files.add(
                form.path,
                owner=exchange.owner,
                purpose=checked_purpose(form.fields.get("purpose", "")),
                filename=form.filename or "file",
                expires_in=checked_expiry(_expiry(form), "expires_after", settings.ttl_s),
            )
        finally:
            form.close()
        return exchange.json(file.body())

    async def list(self, exchange: Exchange) -> Response:
        """The files of the caller."""
        query = exchange.request.query_params
        ascending = is_ascending(query)
        stores = await self._service.opened()
        files, has_more = await stores.files.page(
            sees(exchange),
            purpose=query.get("purpose") or None,
            limit=page_limits(exchange, usual=LARGEST_PAGE, most=LARGEST_PAGE),
            ascending=ascending,
            after=query.get("after", ""),
        )
        return exchange.json(item_list([file.body() for file in files], has_more=has_more))

    async def retrieve(self, exchange: Exchange) -> Response:
        """What is known of a file."""
        stores, id = await self._named(exchange)
        return exchange.json((await stores.files.get(sees(exchange), id)).body())

    async def delete(self, exchange: Exchange) -> Response:
        """Delete a file. Batches that have begun with it go on."""
        stores, id = await self._named(exchange)
        await stores.files.delete(sees(exchange), id)
        return exchange.json({"id": id, "object": "file", "deleted": True})

    async def content(self, exchange: Exchange) -> Response:
        """The content of a file, or the range of it that the `Range` header names."""
        stores, id = await self._named(exchange)
        file = await stores.files.get(sees(exchange), id)
        start, end = 0, file.bytes
        headers = {"accept-ranges": "bytes", "x-content-type-options": "nosniff"}
        status = 200
        wanted = _RANGE.fullmatch(exchange.request.headers.get("range", "").replace(" ", ""))
        if wanted is not None and (wanted[1] or wanted[2]):
            start, end = _bounds(wanted[1], wanted[2], file.bytes)
            status = 206
            headers["content-range"] = f"bytes {start}-{end - 1}/{file.bytes}"
        headers["content-length"] = str(end - start)
        return StreamingResponse(
            await stores.files.content.pieces(id, start, end),
            status,
            headers,
            media_type="application/octet-stream",
        )


def checked_purpose(given: str) -> str:
    """The purpose of a file from a client. Raises `RequestError`."""
    if given != "batch":
        raise RequestError(
            f"purpose must be batch, not '{given[:50]}': files are kept for batches here"
            if given
            else "purpose is missing: it is batch",
            param="purpose",
        )
    return PURPOSES[0]


def _check_fields(form: Form) -> None:
    for name in form.fields:
        if name not in UPLOADED_FILE["properties"]:
            raise RequestError(f"unknown parameter '{name[:100]}'", param=name[:100])


def _expiry(form: Form) -> ExpiresAfter | None:
    seconds = form.fields.get(_SECONDS)
    if seconds is None:
        if _ANCHOR in form.fields:
            raise RequestError(f"{_SECONDS} is missing", param="expires_after.seconds")
        return None
    if not seconds.isascii() or not seconds.isdecimal():
        raise RequestError("seconds must be a whole number", param="expires_after.seconds")
    return ExpiresAfter(int(seconds[:12]), form.fields.get(_ANCHOR, "created_at"))


def _bounds(first: str, last: str, size: int) -> tuple[int, int]:
    """The range of bytes from `first` to `last`, which is included, or of the `last` bytes."""
    if first:
        start, end = int(first), min(int(last) + 1, size) if last else size
    else:
        start, end = max(size - int(last), 0), size
    if start >= end:
        error = RequestError(f"the file has {size} bytes, and none of this range", status=416)
        error.headers = {"content-range": f"bytes */{size}"}
        raise error
    return start, end


UPLOADED_PART: dict[str, Any] = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string", "contentMediaType": "application/octet-stream"}},
}
LARGEST_PART = 64 << 20


class UploadBody(Struct, kw_only=True):
    """Body of `POST /v1/uploads`. `mime_type` changes nothing."""

    filename: str
    purpose: str
    bytes: int
    mime_type: str = ""
    expires_after: ExpiresAfter | None = None


class CompleteBody(Struct, kw_only=True):
    """Body of `POST /v1/uploads/{id}/complete`: the parts in their order, and the MD5 of all."""

    part_ids: list[str]
    md5: str | None = None


class UploadRoutes(ServiceRoutes):
    """The routes of `/v1/uploads`, which make a file of its parts."""

    def endpoints(self) -> tuple[Endpoint, ...]:
        one = "/v1/uploads/{upload_id}"
        return (
            Endpoint("POST", "/v1/uploads", self.create, UploadBody),
            Endpoint("POST", f"{one}/parts", self.add_part, multipart=UPLOADED_PART),
            Endpoint("POST", f"{one}/complete", self.complete, CompleteBody),
            Endpoint("POST", f"{one}/cancel", self.cancel),
        )

    async def create(self, exchange: Exchange, body: UploadBody) -> Response:
        """Begin to upload a file in parts."""
        settings = self._service.settings
        if not 1 <= body.bytes <= settings.max_file_bytes:
            raise RequestError(
                f"bytes must be from 1 to {settings.max_file_bytes}, not {body.bytes}",
                param="bytes",
            )
        stores = await self._service.opened()
        upload = await stores.uploads.add(
            owner=exchange.owner,
            filename=safe_name(body.filename),
            purpose=checked_purpose(body.purpose),
            size=body.bytes,
            expires_in=checked_expiry(body.expires_after, "expires_after", settings.ttl_s),
        )
        return exchange.json(upload)

    async def add_part(self, exchange: Exchange) -> Response:
        """Upload one part, of 64 MB at most."""
        stores, id = await self._named(exchange)
        form = await read_form(exchange, self._service.incoming, "data", LARGEST_PART)
        try:
            return exchange.json(await stores.uploads.add_part(sees(exchange), id, form.path))
        finally:
            form.close()

    async def complete(self, exchange: Exchange, body: CompleteBody) -> Response:
        """Make a file of the parts."""
        stores, id = await self._named(exchange)
        done = await stores.uploads.complete(sees(exchange), id, body.part_ids, body.md5)
        return exchange.json(done)

    async def cancel(self, exchange: Exchange) -> Response:
        """Forget an upload and its parts."""
        stores, id = await self._named(exchange)
        return exchange.json(await stores.uploads.cancel(sees(exchange), id))


_HEAD = 1 << 18
"""Bytes of a file in which its first line is looked for."""


class BatchBody(Struct, kw_only=True):
    """Body of `POST /v1/batches`. `completion_window` is any duration, such as 24h."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None


class BatchRoutes(ServiceRoutes):
    """The routes of `/v1/batches`: OpenAI's, with pause and resume."""

    def endpoints(self) -> tuple[Endpoint, ...]:
        one = "/v1/batches/{batch_id}"
        return (
            Endpoint("POST", "/v1/batches", self.create, BatchBody),
            Endpoint("GET", "/v1/batches", self.list, query=("limit", "after")),
            Endpoint("GET", one, self.retrieve),
            Endpoint("POST", f"{one}/cancel", self.cancel),
            Endpoint("POST", f"{one}/pause", self.pause),
            Endpoint("POST", f"{one}/resume", self.resume),
        )

    async def create(self, exchange: Exchange, body: BatchBody) -> Response:
        """Have the lines of a file answered."""
        settings = self._service.settings
        if body.endpoint not in ENDPOINTS:
            raise RequestError(
                f"endpoint '{body.endpoint[:100]}' takes no batches."
                f" {nearest(body.endpoint[:100], ENDPOINTS)}",
                param="endpoint",
            )
        check_metadata(body.metadata)
        seconds = window_seconds(body.completion_window)
        expiry = checked_expiry(body.output_expires_after, "output_expires_after", settings.ttl_s)
        stores = await self._service.opened()
        file = await stores.files.get(sees(exchange), body.input_file_id, param="input_file_id")
        if file.purpose != "batch":
            raise RequestError(
                f"the purpose of the file is {file.purpose}, and must be batch",
                param="input_file_id",
            )
        now = int(time.time())
        batch = Batch(
            id=new_id("batch_"),
            owner=exchange.owner,
            api="openai",
            endpoint=body.endpoint,
            model=await first_known(exchange, [await _model_of(stores.files, file)]),
            input_file_id=file.id,
            completion_window=body.completion_window,
            created_at=now,
            expires_at=now + seconds,
            metadata=body.metadata,
            output_expires_in=expiry,
        )
        await stores.batches.add(batch)
        stores.runner.submit(batch)
        return exchange.json(batch.body())

    async def list(self, exchange: Exchange) -> Response:
        """The batches of the caller, the newest first."""
        stores = await self._service.opened()
        batches, has_more = await stores.batches.page(
            sees(exchange),
            "openai",
            limit=page_limits(exchange, usual=20, most=100),
            after=exchange.request.query_params.get("after", ""),
        )
        return exchange.json(item_list([one.body() for one in batches], has_more=has_more))

    async def retrieve(self, exchange: Exchange) -> Response:
        """What is known of a batch."""
        stores, id = await self._named(exchange)
        return exchange.json((await stores.batches.get(sees(exchange), id, "openai")).body())

    async def cancel(self, exchange: Exchange) -> Response:
        """Cancel a batch. What was answered stays."""
        stores, id = await self._named(exchange)
        batch = await stores.batches.cancel(sees(exchange), id, "openai")
        stores.runner.cancel(id)
        return exchange.json(batch.body())

    async def pause(self, exchange: Exchange) -> Response:
        """Begin no more lines of a batch until it is resumed; those under way end."""
        return await self._pause(exchange, paused=True)

    async def resume(self, exchange: Exchange) -> Response:
        """Go on with a batch that is paused."""
        return await self._pause(exchange, paused=False)

    async def _pause(self, exchange: Exchange, *, paused: bool) -> Response:
        stores, id = await self._named(exchange)
        batch = await stores.batches.pause(sees(exchange), id, "openai", paused=paused)
        stores.runner.pause(id, paused=paused)
        return exchange.json(batch.body())


async def _model_of(files: FileStore, file: StoredFile) -> str:
    """The model that the first line of a file names."""
    pieces = await files.content.pieces(file.id, 0, _HEAD)
    head = b"".join([part async for part in pieces])
    return first_model(head.partition(b"\n")[0])
