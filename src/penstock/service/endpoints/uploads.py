"""`/v1/uploads`: files in parts, as OpenAI has it."""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from starlette.responses import Response

from penstock.errors import RequestError
from penstock.serve.api.exchange import Exchange
from penstock.serve.api.routes import Endpoint
from penstock.service.endpoints.fields import ExpiresAfter, checked_expiry, sees
from penstock.service.endpoints.files import checked_purpose
from penstock.service.forms import read_form
from penstock.service.service import BatchService

FORM: dict[str, Any] = {
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


class UploadRoutes:
    """The routes of `/v1/uploads`, which make a file of its parts."""

    def __init__(self, service: BatchService) -> None:
        self._service = service

    def endpoints(self) -> tuple[Endpoint, ...]:
        one = "/v1/uploads/{upload_id}"
        return (
            Endpoint("POST", "/v1/uploads", self.create, UploadBody),
            Endpoint("POST", f"{one}/parts", self.add_part, multipart=FORM),
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
            filename=body.filename.replace("\\", "/").rpartition("/")[2][:255] or "file",
            purpose=checked_purpose(body.purpose),
            size=body.bytes,
            expires_in=checked_expiry(body.expires_after, "expires_after", settings.ttl_s),
        )
        return exchange.json(upload)

    async def add_part(self, exchange: Exchange) -> Response:
        """Upload one part, of 64 MB at most."""
        stores = await self._service.opened()
        form = await read_form(exchange, self._service.incoming, "data", LARGEST_PART)
        try:
            id = exchange.request.path_params["upload_id"]
            return exchange.json(await stores.uploads.add_part(sees(exchange), id, form.path))
        finally:
            form.close()

    async def complete(self, exchange: Exchange, body: CompleteBody) -> Response:
        """Make a file of the parts."""
        stores = await self._service.opened()
        id = exchange.request.path_params["upload_id"]
        done = await stores.uploads.complete(sees(exchange), id, body.part_ids, body.md5)
        return exchange.json(done)

    async def cancel(self, exchange: Exchange) -> Response:
        """Forget an upload and its parts."""
        stores = await self._service.opened()
        id = exchange.request.path_params["upload_id"]
        return exchange.json(await stores.uploads.cancel(sees(exchange), id))
