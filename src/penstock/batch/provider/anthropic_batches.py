"""Anthropic's Message Batches API
(https://docs.anthropic.com/en/api/creating-message-batches), and that of servers which have it.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Raw, Struct

from penstock.batch.provider.anthropic_forms import message_body, message_delta
from penstock.batch.provider.api import (
    CLOCKS_DIFFER_S,
    BatchApi,
    BatchState,
    cancelled,
    expired,
)
from penstock.batch.provider.ledger import Batch
from penstock.batch.provider.options import BatchApiOptions
from penstock.errors import ConfigError, UpstreamError
from penstock.http.complaints import complaint_in
from penstock.http.endpoint import Headers

_PATH = "/messages/batches"
_PAGE = 100
_FRAME = len(b'{"requests":[]}')


class _Result(Struct):
    type: str
    message: Raw = Raw(b"null")
    error: Raw = Raw(b"null")


class _Line(Struct):
    result: _Result


_read = msgspec.json.Decoder(_Line).decode


class AnthropicBatches(BatchApi):
    """Lines go up with the request for the batch. Anthropic's batches carry no mark of their own:
    one that may be this one is known by its time and size, and in the end by the ids of its lines.
    """

    base_url = "https://api.anthropic.com/v1"
    key_env = "ANTHROPIC_API_KEY"
    line_limit = 100_000
    byte_limit = 256_000_000
    tasks = frozenset({"chat"})
    structured = frozenset({"json_schema"})
    max_top_logprobs = -1

    def __init__(self, options: BatchApiOptions) -> None:
        defaults = BatchApiOptions()
        for name in ("completion_window", "max_tokens_field"):
            if (value := getattr(options, name)) != getattr(defaults, name):
                raise ConfigError(
                    "is of OpenAI's API: Anthropic's batches end within 24 hours, and call the"
                    " limit max_tokens",
                    field=f"engine_kwargs.{name}",
                    value=value,
                )
        super().__init__(options)
        self.most_bytes -= _FRAME

    def key_headers(self, variable: str | None) -> dict[str, str]:
        version = {"anthropic-version": "2023-06-01"}
        if variable is None:
            return version
        key = Headers({"x-api-key": f"${{{variable}}}"}, field="engine_kwargs.api_key_env")
        return {**version, **key.values}

    def body(self, task: str, request: Any, model: str) -> tuple[str, dict[str, Any]]:
        return _PATH, message_body(request, model) | self.options.extra_body

    def line(self, custom_id: str, url: str, body: dict[str, Any]) -> bytes:
        return msgspec.json.encode({"custom_id": custom_id, "params": body}) + b"\n"

    async def create(self, batch: Batch) -> str:
        lines = batch.requests.read_bytes().rstrip(b"\n").replace(b"\n", b",")
        data = b'{"requests":[' + lines + b"]}"
        made = await self.ask(_PATH, "POST", data, {"Idempotency-Key": batch.token})
        return str(made["id"])

    async def find(self, batch: Batch, others: Collection[str]) -> tuple[str, bool] | None:
        after = ""
        found: list[str] = []
        while True:
            page = await self.ask(f"{_PATH}?limit={_PAGE}{after}")
            listed = page.get("data") or []
            for one in listed:
                if _made_at(one) < batch.at - CLOCKS_DIFFER_S:
                    break
                size = sum((one.get("request_counts") or {}).values())
                if size == len(batch.lines) and one["id"] not in others:
                    found.append(str(one["id"]))
            else:
                if page.get("has_more") and listed:
                    after = f"&after_id={page.get('last_id') or listed[-1]['id']}"
                    continue
            return (found[-1], False) if found else None

    async def state(self, id: str) -> BatchState:
        one = await self.ask(f"{_PATH}/{id}")
        ended = one.get("processing_status") == "ended"
        files = [f"{_PATH}/{id}/results"] if ended and one.get("results_url") else []
        return BatchState(str(one.get("processing_status")), ended, files)

    def read(self, line: bytes) -> bytes:
        result = _read(line).result
        match result.type:
            case "succeeded":
                return bytes(result.message)
            case "expired":
                raise expired()
            case "canceled":
                raise cancelled()
        about = complaint_in(msgspec.json.decode(result.error))
        if about.status is not None:
            raise self.refusal(about.status, bytes(result.error))
        raise UpstreamError(f"{self.shown}: {about.line}", retryable=about.kind == "api_error")

    def result(self, task: str, request: Any, body: bytes) -> Any:
        return [message_delta(body, self.shown)]

    def cancel_command(self, id: str) -> str:
        return (
            f"curl -X POST {self.shown}{_PATH}/{id}/cancel -H 'anthropic-version: 2023-06-01'"
            f' -H "x-api-key: ${self.options.api_key_env or self.key_env}"'
        )


def _made_at(listed: dict[str, Any]) -> float:
    return datetime.fromisoformat(str(listed["created_at"])).timestamp()
