"""OpenAI's Batch API (https://platform.openai.com/docs/api-reference/batch), and that of servers
which have the same.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

import msgspec
from msgspec import Raw, Struct

from penstock.batch.provider.api import (
    CLOCKS_DIFFER_S,
    BatchApi,
    BatchState,
    FoundBatch,
    cancelled,
    expired,
)
from penstock.batch.provider.engine import BatchApiEngine
from penstock.batch.provider.ledger import Batch
from penstock.engines.remote import answers
from penstock.engines.remote.requests import PATHS, chat_body, completion_body, task_body
from penstock.engines.remote.results import read_task
from penstock.errors import UpstreamError
from penstock.http.client import multipart
from penstock.http.complaints import complaint_in
from penstock.http.endpoint import bearer

_MARK = "penstock"
"""The key in a batch's metadata under which it is found again."""
_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
_PAGE = 100


class _Response(Struct):
    status_code: int = 200
    body: Raw = Raw(b"null")


class _Line(Struct):
    response: _Response | None = None
    error: Any = None


_read = msgspec.json.Decoder(_Line).decode


class OpenAIBatches(BatchApi):
    """Lines are uploaded as a file. A batch carries its token as metadata, by which it is found
    again.
    """

    base_url = "https://api.openai.com/v1"
    default_key_variable = "OPENAI_API_KEY"
    line_limit = 50_000
    byte_limit = 200_000_000
    tasks = frozenset({"chat", "completions", "embeddings"})
    structured = frozenset({"json_schema", "json_object"})
    max_top_logprobs = 20

    def key_headers(self, variable: str | None) -> dict[str, str]:
        return bearer(variable, field="engine_kwargs.api_key_env")

    def body(self, task: str, request: Any, model: str) -> tuple[str, dict[str, Any]]:
        if task == "chat":
            body = chat_body(request, model, self.options.max_tokens_field)
        elif task == "completions":
            body = completion_body(request, model)
        else:
            body = {"model": model, **task_body(task, request, "openai")}
        body.pop("stream", None)  # a batch answers whole, as the row wants it
        return "/v1" + PATHS[task], body | self.options.extra_body

    def line(self, custom_id: str, url: str, body: dict[str, Any]) -> bytes:
        request = {"custom_id": custom_id, "method": "POST", "url": url, "body": body}
        return msgspec.json.encode(request) + b"\n"

    async def upload(self, batch: Batch) -> str | None:
        content = {"content": batch.requests.open("rb"), "filename": _file_name(batch)}
        form = multipart({"purpose": "batch", "file": content})  # which closes the file
        return str((await self.ask("/files", "POST", form))["id"])

    async def create(self, batch: Batch) -> str:
        asked = {
            "input_file_id": batch.input_file_id,
            "endpoint": batch.url,
            "completion_window": self.options.completion_window,
            "metadata": {_MARK: batch.token},
        }
        data = msgspec.json.encode(asked)
        made = await self.ask("/batches", "POST", data, {"Idempotency-Key": batch.token})
        return str(made["id"])

    async def find(self, batch: Batch, others: Collection[str]) -> FoundBatch | None:
        after = ""
        while True:
            page = await self.ask(f"/batches?limit={_PAGE}{after}")
            found = page.get("data") or []
            for one in found:
                if (one.get("metadata") or {}).get(_MARK) == batch.token:
                    return FoundBatch(str(one["id"]), certain=True)
            oldest = min((one.get("created_at") or 0 for one in found), default=0)
            if not page.get("has_more") or oldest < batch.begun_at - CLOCKS_DIFFER_S:
                return None
            after = f"&after={found[-1]['id']}"

    async def state(self, id: str) -> BatchState:
        one = await self.ask(f"/batches/{id}")
        status = str(one.get("status"))
        file_ids = [one.get("output_file_id"), one.get("error_file_id")]
        errors = (one.get("errors") or {}).get("data") or []
        said = [(error.get("line"), complaint_in(error).line) for error in errors]
        line_errors = {line: why for line, why in said if isinstance(line, int)}
        return BatchState(
            status,
            status in _ENDED,
            [f"/files/{file_id}/content" for file_id in file_ids if file_id],
            line_errors,
            "; ".join(why for line, why in said if not isinstance(line, int)),
        )

    def read(self, line: bytes) -> bytes:
        found = _read(line)
        if found.response is not None:
            body = bytes(found.response.body)
            if 200 <= found.response.status_code < 300:
                return body
            raise self.refusal(found.response.status_code, body)
        about = complaint_in(found.error)
        if about.code == "batch_expired":
            raise expired()
        if about.code == "batch_cancelled":
            raise cancelled()
        raise UpstreamError(f"{self.shown}: {about.line or 'no answer, and no reason'}")

    def result(self, task: str, request: Any, body: bytes) -> Any:
        if task in ("chat", "completions"):
            return answers.whole(body, self.shown, request.n)
        return read_task(task, request, body, self.shown)

    def cancel_command(self, id: str) -> str:
        return (
            f"curl -X POST {self.shown}/batches/{id}/cancel"
            f' -H "Authorization: Bearer ${self.options.api_key_env or self.default_key_variable}"'
        )


def _file_name(batch: Batch) -> str:
    return f"{_MARK}-{batch.token}.jsonl"


class OpenAIBatchEngine(BatchApiEngine):
    """OpenAI's Batch API. `model_source` is the model's name there."""

    name: ClassVar[str] = "openai-batch"
    api_class = OpenAIBatches
