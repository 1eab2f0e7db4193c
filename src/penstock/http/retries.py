"""Whether a failed request is sent once more, and after which pause."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Annotated, ParamSpec, TypeVar

from msgspec import Meta, Struct

from penstock.balance.retry import backoff
from penstock.errors import EngineTimeoutError, UpstreamError

T = TypeVar("T")
P = ParamSpec("P")
Seconds = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0)]

THROTTLING = frozenset({429, 503, 529})
"""Statuses by which a server says that it has too much to do. It has not begun the request."""
LONGEST_NAMED_S = 365 * 86400.0
_PASSING = frozenset({408, 425, 500, 502, 504, *range(520, 528)}) | THROTTLING


class RetryPolicy(Struct, frozen=True, kw_only=True):
    """How often, and when.

    `max_retries` counts failures: lost connections, timeouts, statuses such as 500. `max_throttled` counts refusals for
    load (429, 503): those are safe to repeat, whatever the request does. Pauses begin at `base_wait_s` and double up to
    `longest_wait_s`, with jitter; a pause that the server names is kept, and if it is longer than `longest_wait_s` the
    request is given up. `pause` is awaited with the failure and the seconds, in place of a sleep.
    """

    max_retries: Count = 2
    max_throttled: Count = 10
    base_wait_s: Seconds = 1.0
    longest_wait_s: Seconds = 60.0
    pause: Callable[[Exception, float], Awaitable[None]] | None = None

    def wait(self, error: Exception, failures: int, throttled: int) -> float | None:
        """Seconds until the next try after so many failures and refusals, this one included; None for no more."""
        upstream = error if isinstance(error, UpstreamError) else None
        if not getattr(error, "retryable", False):
            return None
        named = upstream.retry_after if upstream is not None else None
        if named is not None and named > self.longest_wait_s:
            return None
        if is_throttling(error):
            if throttled > self.max_throttled:
                return None
            tries = throttled
        elif failures > self.max_retries:
            return None
        else:
            tries = failures
        wait = backoff(tries, first=self.base_wait_s, longest=self.longest_wait_s)
        return wait if named is None else max(named, 0.1 * wait)

    async def run(self, attempt: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `attempt` gives in the end, each time called with the other arguments. Raises the last failure."""
        failures = throttled = 0
        while True:
            try:
                return await attempt(*args, **kwargs)
            except (UpstreamError, EngineTimeoutError) as error:
                if is_throttling(error):
                    throttled += 1
                else:
                    failures += 1
                wait = self.wait(error, failures, throttled)
                if wait is None:
                    raise
                failure = error
            await (asyncio.sleep(wait) if self.pause is None else self.pause(failure, wait))


def is_retryable(status: int) -> bool:
    """Whether the same request may succeed later."""
    return status in _PASSING


def is_throttling(error: Exception) -> bool:
    """Whether the server refused for load. A used-up quota comes with the same status, and is none."""
    return isinstance(error, UpstreamError) and error.http_status in THROTTLING and error.retryable


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """The pause in seconds that an answer asks for: `Retry-After` in seconds or as a date, or `retry-after-ms`.

    None where there is none, or none that can be read. A longer one than a year is a year.
    """
    try:
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            seconds = float(milliseconds) / 1000
        elif (text := headers.get("retry-after")) is None:
            return None
        else:
            try:
                seconds = float(text)
            except ValueError:
                date = parsedate_to_datetime(text)
                until = date if date.tzinfo else date.replace(tzinfo=UTC)
                seconds = (until - (now or datetime.now(UTC))).total_seconds()
    except (ValueError, OverflowError, TypeError, IndexError):  # a date may be out of all range
        return None
    return min(max(seconds, 0.0), LONGEST_NAMED_S) if seconds < float("inf") else None
