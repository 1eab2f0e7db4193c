"""`/v1/files`, as OpenAI has it."""

from __future__ import annotations

import re
from typing import Any

from starlette.responses import Response, StreamingResponse

from penstock.errors import RequestError
from penstock.serve.api.exchange import Exchange
from penstock.serve.api.routes import Endpoint
from penstock.service.endpoints.fields import (
    ExpiresAfter,
    checked_expiry,
    page_body,
    page_limits,
    sees,
)
from penstock.service.files import LARGEST_PAGE, PURPOSES
from penstock.service.forms import Form, read_form
from penstock.service.service import BatchService

_SECONDS, _ANCHOR = "expires_after[seconds]", "expires_after[anchor]"
FORM: dict[str, Any] = {
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


class FileRoutes:
    """The routes of `/v1/files`, where each caller sees files of its own."""

    def __init__(self, service: BatchService) -> None:
        self._service = service

    def endpoints(self) -> tuple[Endpoint, ...]:
        one = "/v1/files/{file_id}"
        pages = ("purpose", "limit", "order", "after")
        return (
            Endpoint("POST", "/v1/files", self.create, multipart=FORM),
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
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise RequestError("order must be asc or desc", param="order")
        stores = await self._service.opened()
        files, has_more = await stores.files.page(
            sees(exchange),
            purpose=query.get("purpose") or None,
            limit=page_limits(exchange, usual=LARGEST_PAGE, most=LARGEST_PAGE),
            ascending=order == "asc",
            after=query.get("after", ""),
        )
        return exchange.json(page_body([file.body() for file in files], has_more=has_more))

    async def retrieve(self, exchange: Exchange) -> Response:
        """What is known of a file."""
        stores = await self._service.opened()
        id = exchange.request.path_params["file_id"]
        return exchange.json((await stores.files.get(sees(exchange), id)).body())

    async def delete(self, exchange: Exchange) -> Response:
        """Delete a file. Batches that have begun with it go on."""
        stores = await self._service.opened()
        id = exchange.request.path_params["file_id"]
        await stores.files.delete(sees(exchange), id)
        return exchange.json({"id": id, "object": "file", "deleted": True})

    async def content(self, exchange: Exchange) -> Response:
        """The content of a file, or the range of it that the `Range` header names."""
        stores = await self._service.opened()
        id = exchange.request.path_params["file_id"]
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
            stores.files.content.pieces(id, start, end),
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
        if name not in FORM["properties"]:
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
        wrong = RequestError(f"the file has {size} bytes, and none of this range")
        wrong.status = 416
        raise wrong
    return start, end
