"""What a provider's batch API must be able to do, its options, and what all of them share: asking
over HTTP.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec
from msgspec import Struct, field

from penstock import private_files
from penstock.balance.limiter import Limiter, Limits
from penstock.batch.provider.ledger import Batch
from penstock.batch.write.state_files import guarded, write_all
from penstock.config import Pause, Positive, Seconds, masked
from penstock.engines.base import Capabilities
from penstock.engines.remote.refusals import as_refusal
from penstock.errors import (
    BatchCancelledError,
    BatchExpiredError,
    ConfigError,
    PenstockError,
    UpstreamError,
)
from penstock.http.client import HttpClient, Timeouts
from penstock.http.complaints import KEPT_CHARS, complaint
from penstock.http.endpoint import Endpoint, Headers, endpoint, under
from penstock.http.retries import is_retryable


class BatchApiOptions(Struct, frozen=True, kw_only=True):
    """Where the provider is, and how batches are made and watched.

    `base_url` ends where `/batches` or `/messages/batches` begins, usually in `/v1`. The key is in
    the environment's `api_key_env`. A batch has at most `lines_per_batch` and `bytes_per_batch`
    (default: the provider's limits). At most `rows_in_flight` rows wait for answers at a time: one
    batch of so many, or several. Lines that no other has followed for `gather_s` seconds are handed
    in. A batch is asked for its state after `first_poll_s` seconds, then ever less often, at last
    each `longest_poll_s`. A provider that cannot be reached for `patience_s` stops the job, which
    can be resumed. `timeout_s` bounds the wait for the next piece of an answer. `extra_body` is
    added to the body of each line. Of OpenAI's API alone: `completion_window`, and what it calls
    the length limit of a chat answer, `max_tokens_field`.
    """

    base_url: str | None = None
    api_key_env: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    lines_per_batch: Positive | None = None
    bytes_per_batch: Positive | None = None
    rows_in_flight: Positive = 50_000
    gather_s: Seconds = 2.0
    first_poll_s: Seconds = 5.0
    longest_poll_s: Seconds = 60.0
    patience_s: Pause = 3600.0
    connect_timeout_s: Seconds = 10.0
    timeout_s: Seconds = 600.0
    extra_body: dict[str, Any] = field(default_factory=dict)
    completion_window: str = "24h"
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"

    def __repr__(self) -> str:
        return f"BatchApiOptions({masked(msgspec.structs.asdict(self))!r})"

    def within(self, lines: int, size: int) -> tuple[int, int]:
        """The most lines and bytes of a batch, within a provider's limits. Raises `ConfigError`."""
        for name, most in (("lines_per_batch", lines), ("bytes_per_batch", size)):
            given = getattr(self, name)
            if given is not None and given > most:
                raise ConfigError(
                    f"the provider takes at most {most:,}",
                    field=f"engine_kwargs.{name}",
                    value=given,
                )
        return self.lines_per_batch or lines, self.bytes_per_batch or size

    def key(self, default: str) -> str | None:
        """The variable that holds the key. Another server than the provider's may need none."""
        if self.api_key_env is not None or self.base_url is None:
            return self.api_key_env or default
        return default if os.environ.get(default) else None


DECIDING = frozenset({"extra_body"})
"""Options that decide what is answered; all others are about time, memory or place."""


CLOCKS_DIFFER_S = 900.0
"""How much later than the provider's a clock here may be, or earlier."""


class BatchState(Struct, frozen=True):
    """What a provider says of a batch. `ended`: nothing more will happen. `files` hold its results.
    `refused` has messages about single lines, by their number from 1, `why` about all of them.
    """

    status: str
    ended: bool
    files: list[str] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    why: str = ""


class BatchApi(ABC):
    """A provider's batch API. `await open()`, use it, `await close()`.

    Methods that ask raise `UpstreamError` or `EngineTimeoutError`.
    """

    base_url: ClassVar[str]
    key_env: ClassVar[str]
    line_limit: ClassVar[int]
    byte_limit: ClassVar[int]
    tasks: ClassVar[frozenset[str]]
    structured: ClassVar[frozenset[str]]
    max_top_logprobs: ClassVar[int]

    def __init__(self, options: BatchApiOptions) -> None:
        self.options = options
        self.base = (options.base_url or self.base_url).rstrip("/")
        endpoint("GET", self.base, field="engine_kwargs.base_url")
        self.most_lines, self.most_bytes = options.within(self.line_limit, self.byte_limit)
        self._client: HttpClient | None = None

    @property
    def capabilities(self) -> Capabilities:
        most = self.options.rows_in_flight
        return Capabilities(
            tasks=self.tasks,
            context_length=0,
            max_concurrency=most,
            batch_in_flight=most,
            structured=self.structured,
            max_top_logprobs=self.max_top_logprobs,
            token_ids=False,
        )

    async def open(self) -> None:
        """Raises `ConfigError` where the key is not set."""
        options = self.options
        self._client = HttpClient(
            Headers(
                {**self.key_headers(options.key(self.key_env)), **options.headers},
                field="engine_kwargs.headers",
            ),
            timeouts=Timeouts(
                connect_s=options.connect_timeout_s, idle_s=options.timeout_s, try_s=None
            ),
        )
        self._limiter = Limiter(Limits(concurrency=4), server=self.base)
        await self._client.open()

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    @abstractmethod
    def key_headers(self, variable: str | None) -> dict[str, str]:
        """The headers with the key in the environment's `variable`, if any."""

    @abstractmethod
    def body(self, task: str, request: Any, model: str) -> tuple[str, dict[str, Any]]:
        """The path of the endpoint that answers a request, and the body for it. Raises
        `RequestError` for what a batch cannot ask.
        """

    @abstractmethod
    def line(self, custom_id: str, url: str, body: dict[str, Any]) -> bytes:
        """One line of a batch, with its end."""

    async def upload(self, batch: Batch) -> str | None:
        """Hand the lines in; returns the file's id. None where `create` does."""
        return None

    @abstractmethod
    async def create(self, batch: Batch) -> str:
        """Have a batch begun; returns its id."""

    @abstractmethod
    async def find(self, batch: Batch, others: Collection[str]) -> tuple[str, bool] | None:
        """The id of a batch that may have been begun, and whether it is surely this one. `others`
        are known to be none.
        """

    @abstractmethod
    async def state(self, id: str) -> BatchState: ...

    @abstractmethod
    def read(self, line: bytes) -> bytes:
        """The body of the answer in a line of results. Raises what became of it else."""

    @abstractmethod
    def result(self, task: str, request: Any, body: bytes) -> Any:
        """The answer in a body: `Delta`s, or the result of another task."""

    @abstractmethod
    def cancel_command(self, id: str) -> str:
        """What cancels a batch, to be typed into a shell."""

    async def ask(
        self,
        path: str,
        method: str = "GET",
        data: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """The JSON that the provider answers."""
        assert self._client is not None
        to = self.to(path, method)
        reply = await self._client.send(to, self._limiter, data=data, headers=headers)
        try:
            return msgspec.json.decode(reply.body)
        except msgspec.DecodeError:
            raise self._client.not_json(reply, to) from None

    async def download(self, paths: list[str], file: Path) -> None:
        """Write what these paths answer into a file, which is there only when it is whole."""
        assert self._client is not None
        part = file.with_name(file.name + ".tmp")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        out = private_files.opener(part, flags)
        try:
            for path in paths:
                last = b"\n"
                async with self._client.stream(self.to(path), self._limiter) as pieces:
                    async for piece in pieces:
                        write_all(out, piece)
                        last = piece
                if not last.endswith(b"\n"):
                    write_all(out, b"\n")
            guarded(os.fsync, out)
        finally:
            os.close(out)
        guarded(os.replace, part, file)

    def to(self, path: str, method: str = "GET") -> Endpoint:
        return endpoint(method, under(self.base, path))

    @property
    def shown(self) -> str:
        return str(masked(self.base))

    def refusal(self, status: int, body: bytes) -> PenstockError:
        """The error of a line that was answered with this status."""
        text = body[:KEPT_CHARS].decode(errors="replace")
        found = complaint(text)
        return as_refusal(
            UpstreamError(
                f"{self.shown} answered {status}: {found.line}",
                http_status=status,
                body=text,
                retryable=is_retryable(status) and not found.is_final,
            )
        )


def unanswered(batch: Batch, custom_id: str) -> PenstockError:
    """Why a batch that has ended has no result for a line."""
    said = batch.refused.get(custom_id)
    if said is not None:
        return as_refusal(UpstreamError(said, http_status=400, body=said))
    if batch.status in ("cancelled", "canceled"):
        return cancelled()
    return expired(f"the batch {batch.id} ended ({batch.status}) without an answer to this line")


def cancelled() -> PenstockError:
    """The error of a line whose batch was cancelled."""
    return BatchCancelledError("the batch was cancelled before this line was answered")


def expired(why: str = "the batch expired before this line was answered") -> PenstockError:
    """The error of a line whose batch ended first. A further batch may answer it."""
    error = BatchExpiredError(why)
    error.retryable = True
    return error
