"""Decides whether a failed request is retried, and after which pause."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Token
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import ParamSpec, TypeVar

from msgspec import Struct

from penstock.balance.backoff import (
    PATIENCE_S,
    Retry,
    is_served,
    note_given_up,
    patience,
    span,
    wait_after,
)
from penstock.balance.limiter import refused_alone
from penstock.errors import EngineTimeoutError, UpstreamError

T = TypeVar("T")
P = ParamSpec("P")

THROTTLING = frozenset({429, 503, 529})
"""Statuses of an overloaded server. It has not begun the request."""
LONGEST_WAIT_S = 60.0
LONGEST_REFUSED_WAIT_S = 2.0
"""Longest pause after a refusal for load. The limiter bounds the load in the meantime."""
CHANCE = 1e-6
"""A refusal is the request's own fault if chance explains it with a probability below this."""
LONGEST_NAMED_S = 365 * 86400.0
_PASSING = frozenset({408, 425, 429, 498, *range(500, 600)}) - {501, 505, 510, 511}
"""Among them 498, Groq's for a lack of capacity, and the statuses of proxies above 511."""


class _Refusals(Struct):
    """A request refused for load: since when, how often, and how many of the requests that began
    after it have been refused (each counts once) and answered (at whichever try).
    """

    since: float
    count: int = 0
    later_answered: int = 0
    later_refused: int = 0

    def is_alone(self) -> bool:
        """Whether later requests were answered more often than refused. Then the refusal is
        probably the request's own fault.
        """
        return self.later_answered > self.later_refused

    def is_proven(self) -> bool:
        """Whether chance no longer explains the refusals, given the share of later requests
        that were refused.
        """
        share = (self.later_refused + 1) / (self.later_answered + self.later_refused + 2)
        return self.is_alone() and share**self.count < CHANCE


class Retries:
    """Retries failed requests. One object serves one server, or several with the same answers.

    `max_retries` counts failures: lost connections, timeouts, statuses such as 500. Refusals for
    load (429, 503) are safe to repeat, even for a request that is not idempotent: they are repeated
    until the patience ends (`penstock.balance.backoff`), or until chance no longer explains that
    others are answered and this request is not. An error that is given up has `given_up` set.
    Pauses start at `base_wait_s` and double, with jitter; a pause that the server names is kept.
    `pause` is awaited with the failure and the seconds, in place of a sleep.
    """

    def __init__(
        self,
        *,
        max_retries: int = 2,
        base_wait_s: float = 1.0,
        pause: Callable[[Exception, float], Awaitable[None]] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._retry = Retry(most=max_retries + 1, first_s=base_wait_s, longest_s=LONGEST_WAIT_S)
        self._pause = pause
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._begun = 0
        self._refused: dict[int, _Refusals] = {}
        self._refusing_since = self._last_refusal = float("-inf")

    @property
    def refused_s(self) -> float:
        """Seconds of refusals without an answer to anybody; 0 if the last refusal is long ago."""
        now = self._clock()
        return now - self._refusing_since if now - self._last_refusal <= PATIENCE_S else 0.0

    async def run(self, attempt: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `attempt` with the other arguments until it succeeds. Raises the last failure."""
        self._begun += 1
        number, failures = self._begun, 0
        token: Token[Callable[[], bool]] | None = None
        try:
            while True:
                try:
                    result = await attempt(*args, **kwargs)
                except (UpstreamError, EngineTimeoutError) as error:
                    if isinstance(error, UpstreamError) and is_throttling(error):
                        wait = self._after_refusal(number, error)
                        if token is None:  # the limiter asks whether this refusal shows load
                            token = refused_alone.set(self._refused[number].is_alone)
                    else:
                        failures += 1
                        wait = self.after_failure(error, failures)
                    if wait is None:
                        raise
                    failure = error
                else:
                    self._note_answer(number)
                    return result
                await (asyncio.sleep(wait) if self._pause is None else self._pause(failure, wait))
        finally:
            self._refused.pop(number, None)
            if token is not None:
                refused_alone.reset(token)

    def after_failure(self, error: Exception, failures: int) -> float | None:
        """Seconds until the next try, after `failures` failures in all; None: no retry."""
        return self._retry.pause(error, failures) if getattr(error, "retryable", False) else None

    def _after_refusal(self, number: int, error: UpstreamError) -> float | None:
        one, now = self._note_refusal(number), self._clock()
        if one.is_proven():
            others = f"while {one.later_answered} that came after it were answered"
            self._give_up(error, f"refused {one.count} times {others}")
            return None
        since = one.since if is_served.get() else self._refusing_since
        left = patience() - (now - since)
        wait = wait_after(
            error, one.count, first=self._retry.first_s, longest=LONGEST_REFUSED_WAIT_S
        )
        if wait <= left:
            return wait
        self._give_up(error, "" if wait > patience() else f"refused for {span(now - since)}")
        return None

    def _note_refusal(self, number: int) -> _Refusals:
        now = self._clock()
        if now - self._last_refusal > PATIENCE_S:
            self._refusing_since = now
        self._last_refusal = now
        one = self._refused.get(number)
        if one is None:
            for earlier, other in self._refused.items():
                other.later_refused += earlier < number
            one = self._refused[number] = _Refusals(now)
        one.count += 1
        return one

    def _note_answer(self, number: int) -> None:
        self._last_refusal = float("-inf")
        for earlier, other in self._refused.items():
            other.later_answered += earlier < number

    def _give_up(self, error: UpstreamError, why: str) -> None:
        error.given_up = True
        if why:
            error.args = (f"{error} ({why})",)
            note_given_up()


def is_retryable(status: int) -> bool:
    """Whether the same request may succeed later, by its HTTP status."""
    return status in _PASSING


def is_throttling(error: Exception) -> bool:
    """Whether the server refused for load. An exhausted quota has the same status, but is no
    refusal for load.
    """
    return isinstance(error, UpstreamError) and error.http_status in THROTTLING and error.retryable


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """The pause in seconds that an answer asks for: `Retry-After` (seconds or a
    date) or `retry-after-ms`.

    None without such a header, or with an unreadable one. The pause is at most a year.
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
    except (ValueError, OverflowError, TypeError, IndexError):  # a date may be out of range
        return None
    return min(max(seconds, 0.0), LONGEST_NAMED_S) if seconds < float("inf") else None
