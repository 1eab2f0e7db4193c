"""`/v1/batches`, as OpenAI has it."""

from __future__ import annotations

import time

from msgspec import Struct
from starlette.responses import Response

from penstock.batch.rows.line_endpoints import ENDPOINTS
from penstock.errors import RequestError, nearest
from penstock.serve.api.exchange import Exchange
from penstock.serve.api.routes import Endpoint
from penstock.service.batches import Batch
from penstock.service.endpoints.fields import (
    ExpiresAfter,
    check_metadata,
    checked_expiry,
    page_body,
    page_limits,
    sees,
    window_seconds,
)
from penstock.service.files import FileStore, StoredFile, new_id
from penstock.service.service import BatchService
from penstock.service.validation import first_model

_HEAD = 1 << 18
"""Bytes of a file in which its first line is looked for."""


class BatchBody(Struct, kw_only=True):
    """Body of `POST /v1/batches`. `completion_window` is any duration, such as 24h."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None


class BatchRoutes:
    """The routes of `/v1/batches`: OpenAI's, with pause and resume."""

    def __init__(self, service: BatchService) -> None:
        self._service = service

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
            model=await _model_of(stores.files, file),
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
        return exchange.json(page_body([one.body() for one in batches], has_more=has_more))

    async def retrieve(self, exchange: Exchange) -> Response:
        """What is known of a batch."""
        stores = await self._service.opened()
        id = exchange.request.path_params["batch_id"]
        return exchange.json((await stores.batches.get(sees(exchange), id, "openai")).body())

    async def cancel(self, exchange: Exchange) -> Response:
        """Cancel a batch. What was answered stays."""
        stores = await self._service.opened()
        id = exchange.request.path_params["batch_id"]
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
        stores = await self._service.opened()
        id = exchange.request.path_params["batch_id"]
        batch = await stores.batches.pause(sees(exchange), id, "openai", paused=paused)
        stores.runner.pause(id, paused=paused)
        return exchange.json(batch.body())


async def _model_of(files: FileStore, file: StoredFile) -> str:
    """The model that the first line of a file names."""
    head = b"".join([part async for part in files.content.pieces(file.id, 0, _HEAD)])
    return first_model(head.partition(b"\n")[0])
