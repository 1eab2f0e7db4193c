"""`engine_kwargs` of the engines that are a provider's batch API."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from penstock.config import masked
from penstock.errors import ConfigError

Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]


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
    patience_s: Annotated[float, Meta(ge=0)] = 3600.0
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
