"""Retries with exponential back-off and jitter."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from msgspec import Struct

from penstock.balance.pauses import patience

T = TypeVar("T")
_DOUBLINGS = 60


class Retry(Struct, frozen=True, kw_only=True):
    """A retry policy: at most `most` attempts, with pauses that double from `first_s` to
    `longest_s`.
    """

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
    """Seconds to wait after `failures` failures: the back-off, or the pause that the last one
    names.
    """
    wait = backoff(failures, first=first, longest=longest)
    named: float | None = getattr(failure, "retry_after", None)
    return wait if named is None else max(named, 0.1 * wait)


def backoff(failures: int, *, first: float, longest: float) -> float:
    """Seconds to wait after `failures` failures in a row: `first`, doubled each time up to
    `longest`.

    Jitter takes off up to half, so that clients which failed together do not retry together.
    """
    whole: float = min(first * 2.0 ** min(failures - 1, _DOUBLINGS), longest)
    return whole * random.uniform(0.5, 1.0)
