"""What a provider's batch API must be able to do, its options, and what all such APIs share: asking
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

    `base_url` ends where `/batches` or `/messages/batches` begins, usually in `/v1`. `api_key_env`
    names the environment variable that holds the key. A batch has at most `lines_per_batch` and
    `bytes_per_batch` (default: the provider's limits). At most `rows_in_flight` rows wait for
    answers at a time, in one batch or several. A batch is submitted when it is full, or when no
    line was added for `gather_s` seconds. Its state is polled after `first_poll_s` seconds, then
    ever less often, at last each `longest_poll_s`. A provider that cannot be reached for
    `patience_s` stops the job, which can be resumed. `timeout_s` bounds the wait for the next piece
    of an answer. `extra_body` is added to the body of each line. Two options are of OpenAI's API
    alone: `completion_window`, and `max_tokens_field`, its name for the length limit of a chat
    answer.
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

    def key_variable(self, default: str) -> str | None:
        """The environment variable that holds the key; None if there is to be no key: a server
        other than the provider's may need none.
        """
        if self.api_key_env is not None or self.base_url is None:
            return self.api_key_env or default
        return default if os.environ.get(default) else None


DECIDING_OPTIONS = frozenset({"extra_body"})
"""Options that decide what is answered, so they are part of the job's identity. All others are
about time, memory or place.
"""


_SHOWN_ERRORS = 3
CLOCKS_DIFFER_S = 900.0
"""How far the clock here and the provider's may differ, either way."""


class BatchState(Struct, frozen=True):
    """What a provider says of a batch.

    `ended`: nothing more will happen. `result_paths`: where its results are downloaded from, below
    `base_url`. `line_errors`: messages about single lines, by line number from 1. `why`: what is
    wrong with the batch as a whole.
    """

    status: str
    ended: bool
    result_paths: list[str] = field(default_factory=list)
    line_errors: dict[int, str] = field(default_factory=dict)
    why: str = ""

    @property
    def reason(self) -> str:
        """Why the batch failed, in one line; of the errors of lines the first few."""
        said = [f"line {number:,}: {why}" for number, why in sorted(self.line_errors.items())]
        parts = [*filter(None, [self.why]), *said[:_SHOWN_ERRORS]]
        if len(said) > _SHOWN_ERRORS:
            parts.append(f"{len(said):,} errors of lines in all")
        return "; ".join(parts) or "it failed"


class FoundBatch(Struct, frozen=True):
    """A batch at the provider. `certain`: it carries our token; else it only looks alike."""

    id: str
    certain: bool


class BatchApi(ABC):
    """A provider's batch API. `await open()`, use it, `await close()`.

    Methods that ask raise `UpstreamError` or `EngineTimeoutError`.
    """

    base_url: ClassVar[str]
    default_key_variable: ClassVar[str]
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
        """Raises `ConfigError` if the key is to come from a variable that is not set."""
        options = self.options
        self._client = HttpClient(
            Headers(
                {
                    **self.key_headers(options.key_variable(self.default_key_variable)),
                    **options.headers,
                },
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
        """The headers that carry the key from the environment variable, if there is one."""

    @abstractmethod
    def body(self, task: str, request: Any, model: str) -> tuple[str, dict[str, Any]]:
        """The path of the endpoint that answers a request, and the body for it. Raises
        `RequestError` for what a batch cannot ask.
        """

    @abstractmethod
    def line(self, custom_id: str, url: str, body: dict[str, Any]) -> bytes:
        """One line of a batch, with its end."""

    async def upload(self, batch: Batch) -> str | None:
        """Upload the lines; returns the file's id. None if `create` sends the lines itself."""
        return None

    @abstractmethod
    async def create(self, batch: Batch) -> str:
        """Ask the provider to start the batch; returns its id."""

    @abstractmethod
    async def find(self, batch: Batch, others: Collection[str]) -> FoundBatch | None:
        """Look at the provider for a batch that an earlier run may have created. `others`: the ids
        of batches that are known not to be this one.
        """

    @abstractmethod
    async def state(self, id: str) -> BatchState: ...

    @abstractmethod
    def read(self, line: bytes) -> bytes:
        """The body of the answer in a line of results. Raises the line's error if it was not
        answered.
        """

    @abstractmethod
    def result(self, task: str, request: Any, body: bytes) -> Any:
        """The answer in a body: `Delta`s, or the result of another task."""

    @abstractmethod
    def cancel_command(self, id: str) -> str:
        """The shell command that cancels a batch."""

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
        """Download these paths into one file, which appears when it is whole."""
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
    said = batch.line_errors.get(custom_id)
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
