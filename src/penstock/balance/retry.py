"""Whether something that failed is tried again, and after which pause."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from msgspec import Struct

T = TypeVar("T")
PATIENCE_S = 60.0
"""A pause that is longer is not waited out."""
_DOUBLINGS = 60


class Retry(Struct, frozen=True, kw_only=True):
    """At most `most` attempts. Pauses begin at `first_s` and double up to `longest_s`."""

    most: int
    first_s: float
    longest_s: float

    def pause(self, failure: Exception, attempts: int) -> float | None:
        """Seconds until the next attempt after so many that failed; None for no more. A pause that the failure names
        (`retry_after`) is kept, or ends the attempts where it is longer than the patience.
        """
        named: float | None = getattr(failure, "retry_after", None)
        if attempts >= self.most or (named or 0.0) > PATIENCE_S:
            return None
        wait = backoff(attempts, first=self.first_s, longest=self.longest_s)
        return wait if named is None else max(named, 0.1 * wait)

    async def run(self, attempt: Callable[[], Awaitable[T]], may_pass: Callable[[Exception], bool]) -> T:
        """What `attempt` gives in the end. Raises the last failure, or the first that does not pass."""
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


def backoff(failures: int, *, first: float, longest: float) -> float:
    """Seconds to wait after so many failures in a row (1 or more): `first`, doubled with each, up to `longest`.

    Up to half of it is taken off at random, so that those who have failed together do not come back together.
    """
    whole: float = min(first * 2.0 ** min(failures - 1, _DOUBLINGS), longest)
    return whole * random.uniform(0.5, 1.0)
