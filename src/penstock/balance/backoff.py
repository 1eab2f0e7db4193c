"""Retries with exponential back-off and jitter. Patience with overloaded servers, and reports of
their pauses to the log and to the job that meets them.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TypeVar

from msgspec import Struct

PATIENCE_S = 60.0
"""The longest pause that an overloaded server may name, and how long it may refuse all requests."""
SERVED_PATIENCE_S = 5.0
"""The same for a request whose caller waits at a connection, from its first refusal on."""
is_served: ContextVar[bool] = ContextVar("penstock_is_served", default=False)
"""Whether the caller of the current task waits at a connection."""
WORTH_TELLING_S = 5.0
"""Shorter pauses are not reported: every busy server asks for them."""
_REPORT_EVERY_S = 60.0
_silent_until: dict[str, float] = {}
_log = logging.getLogger(__name__)


class Pauses(Struct):
    """The pauses of one job: how many were worth reporting, the longest in seconds and its server,
    and how many requests were given up because of refusals. `shown_until` is a monotonic time.
    """

    count: int = 0
    given_up: int = 0
    longest_s: float = 0.0
    server: str = ""
    last_s: float = 0.0
    shown_until: float = 0.0

    def note(self, server: str, seconds: float, *, is_kept: bool) -> None:
        self.count += 1
        self.given_up += not is_kept
        if seconds >= self.longest_s:
            self.longest_s, self.server = seconds, server
        self.last_s = seconds
        self.shown_until = time.monotonic() + min(seconds, _REPORT_EVERY_S)

    @property
    def is_now(self) -> bool:
        """Whether the last pause still lasts and began within the last minute."""
        return time.monotonic() < self.shown_until


job_pauses: ContextVar[Pauses | None] = ContextVar("penstock_pauses", default=None)
"""The pauses of the current task's job."""


def patience() -> float:
    """The current task's patience in seconds."""
    return SERVED_PATIENCE_S if is_served.get() else PATIENCE_S


def note_given_up() -> None:
    """Count a request of the current task that was given up, because a server kept refusing it."""
    if (pauses := job_pauses.get()) is not None:
        pauses.given_up += 1


def note_pause(
    server: str,
    seconds: float,
    *,
    is_kept: bool = True,
    is_named: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Report that a server is paused for `seconds` after a refusal.

    The server asks for the pause or, with `is_named` False, has refused repeatedly. With `is_kept`
    False the pause is too long, and the requests are given up.
    """
    if seconds < WORTH_TELLING_S:
        return
    if (pauses := job_pauses.get()) is not None:
        pauses.note(server, seconds, is_kept=is_kept)
    now = clock()
    if now >= _silent_until.get(server, now):  # one log line for a burst of refusals
        if len(_silent_until) > 1000:
            _silent_until.clear()
        _silent_until[server] = now + _REPORT_EVERY_S
        _log.warning(
            "%s %s %s: %s",
            server,
            "asks for a pause of"
            if is_named
            else "refuses requests for load and is left alone for",
            span(seconds),
            "nothing is sent there until then"
            if is_kept
            else "the requests that it refuses so are given up",
        )


def span(seconds: float) -> str:
    """A duration for people, in its two largest units: "1 h 30 min", "2.5 s"."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    units = (("min", 60, 1, "s"), ("h", 3600, 60, "min"), ("d", 86400, 3600, "h"))
    seconds = round(seconds)
    fitting = (unit for unit in units if seconds < 60 * unit[1])
    unit, size, part, name = next(fitting, units[-1])
    whole, rest = divmod(seconds, size)
    return f"{whole} {unit} {rest // part} {name}" if rest // part else f"{whole} {unit}"


T = TypeVar("T")
_DOUBLINGS = 60


class Retry(Struct, frozen=True, kw_only=True):
    """At most `most` attempts, with pauses that double from `first_s` to `longest_s`."""

    most: int
    first_s: float
    longest_s: float

    def pause(self, failure: Exception, attempts: int) -> float | None:
        """Seconds until the next attempt, after `attempts` failures.

        None ends the retries: there were enough, the failure names a pause beyond the patience, or
        the request was given up already.
        """
        named = getattr(failure, "retry_after", None) or 0.0
        if attempts >= self.most or named > patience() or getattr(failure, "given_up", False):
            return None
        return wait_after(failure, attempts, first=self.first_s, longest=self.longest_s)

    async def run(
        self, attempt: Callable[[], Awaitable[T]], may_pass: Callable[[Exception], bool]
    ) -> T:
        """Run `attempt` until it succeeds and return its result. Raises the last failure, or the
        first that `may_pass` rejects.
        """
        attempts = 0
        while True:
            try:
                return await attempt()
            except Exception as failure:
                attempts += 1
                pause = self.pause(failure, attempts) if may_pass(failure) else None
                if pause is None:
                    raise
            await asyncio.sleep(pause)


def wait_after(failure: Exception, failures: int, *, first: float, longest: float) -> float:
    """Seconds to wait after `failures` failures in a row: the pause that the last one names, else
    `first`, doubled each time up to `longest`.

    Jitter takes off up to half, so that clients which failed together do not retry together.
    """
    whole = min(first * 2.0 ** min(failures - 1, _DOUBLINGS), longest)
    wait = whole * random.uniform(0.5, 1.0)
    named: float | None = getattr(failure, "retry_after", None)
    return wait if named is None else max(named, 0.1 * wait)
