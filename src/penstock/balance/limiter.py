"""Limits when requests may leave, by rates, concurrency and the server's own back-pressure.

Concurrency adapts by additive increase and multiplicative decrease, like TCP's window: an answer
widens it by a fraction of a request; a 429, a 503, or a timeout while nobody else is answered
halves it. No library does that, and none corrects an estimate of tokens once the true number is
known. Both need the same small state, so the rates are here as well.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import Literal
from weakref import WeakKeyDictionary, WeakValueDictionary

import msgspec
from msgspec import Struct

from penstock.balance.backoff import PATIENCE_S, SERVED_PATIENCE_S, is_served, note_pause, span
from penstock.config import Positive, Rate
from penstock.errors import UpstreamError

Verdict = Literal["answered", "throttled", "late", "unknown"]
"""What a request's outcome says about the server's limits. "late" means a timeout, "unknown" a
failure that says nothing about them.
"""

FIRST_COOLDOWN_S = 0.5
LONGEST_COOLDOWN_S = 10.0
_NEVER = float("-inf")
refused_alone: ContextVar[Callable[[], bool]] = ContextVar(
    "penstock_refused_alone", default=lambda: False
)
"""Whether the current request is refused while others are answered: its refusals say nothing about
the server's load.
"""


class Limits(Struct, frozen=True, kw_only=True):
    """Limits on the requests to one server. `adaptive` lets the concurrency fall below
    `concurrency`, its upper bound.

    `longest_pause_s` is the longest pause that is kept when the server asks for one. A longer pause
    delays nobody: the request that met it is given up.
    """

    concurrency: Positive = 64
    requests_per_minute: Rate | None = None
    tokens_per_minute: Rate | None = None
    adaptive: bool = True
    longest_pause_s: float = PATIENCE_S

    def shared_by(self, processes: int) -> Limits:
        """The limits of one of `processes` independent processes that ask the same server: each has
        its own concurrency, and an equal share of the rates.
        """
        return msgspec.structs.replace(
            self,
            requests_per_minute=self.requests_per_minute and self.requests_per_minute / processes,
            tokens_per_minute=self.tokens_per_minute and self.tokens_per_minute / processes,
        )


class Pace:
    """Spaces amounts evenly at `per_second` (the generic cell rate algorithm, without burst).

    Its state is one timestamp, and it never waits: others could use it over a wire.
    """

    def __init__(self, per_second: float) -> None:
        self._seconds_each = 1 / per_second
        self._free_at = _NEVER

    def free_at(self, ahead: float = 0.0) -> float:
        """When the next amount may go, if so much goes before it."""
        return self._free_at + ahead * self._seconds_each

    def take(self, amount: float, at: float) -> None:
        """Count an amount that goes at this time."""
        self._free_at = max(self._free_at, at) + amount * self._seconds_each

    def charge(self, amount: float) -> None:
        """Count an amount afterwards; a negative amount is a refund."""
        self._free_at += amount * self._seconds_each


class Limiter:
    """Admits requests to one server. Each `acquire` needs one `release`. Bound to one event loop.

    `server` is its name in reports of pauses. Tests set `clock` (seconds) and `jitter` (0 to 1).
    """

    def __init__(
        self,
        limits: Limits,
        *,
        server: str = "the server",
        clock: Callable[[], float] | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.limits = limits
        self._server = server
        self.running = 0
        self._clock = clock or asyncio.get_running_loop().time
        self._jitter = jitter
        self._most = limits.concurrency
        self._window = float(limits.concurrency)
        # Waiters, each with the time when its patience ends.
        self._waiting: deque[tuple[asyncio.Future[None], float]] = deque()
        self._tickets = 0
        self._last_cut = 0
        self._left_before_answer = 0
        self._held_until = _NEVER
        self._cooldown = FIRST_COOLDOWN_S
        per_minute = limits.requests_per_minute, limits.tokens_per_minute
        self._requests, self._tokens = (
            None if rate is None else Pace(rate / 60) for rate in per_minute
        )
        self._paced = self._requests is not None or self._tokens is not None
        self._turn = asyncio.Lock()  # of the first who waits for a rate
        self._ahead = 0
        self._tokens_ahead = 0.0

    @property
    def window(self) -> int:
        """How many requests may run now."""
        return int(self._window)

    async def acquire(self, tokens: float = 0.0) -> int:
        """Wait for a slot, the rates, and the server's pause. Returns the ticket for `release`.

        `tokens` is an estimate, which `charge` corrects. Raises `UpstreamError` if a pause exceeds
        the patience of a served request, or if its turn is more than a minute away. A caller that
        is cancelled gives its turn back.
        """
        until = self._clock() + SERVED_PATIENCE_S if is_served.get() else float("inf")
        if self._held_until > until:
            raise self._left_alone()
        if self.running >= int(self._window) or self._waiting:
            await self._queue(until)
        else:
            self.running += 1
        self._tickets += 1
        ticket = self._tickets
        if self._paced or self._held_until > _NEVER:
            try:
                await self._wait(tokens, until)
            except BaseException:
                self.release(ticket, "unknown")
                raise
        return ticket

    def try_acquire(self) -> int | None:
        """As `acquire`, without waiting; None if it would have to wait."""
        if (
            self._paced
            or self._waiting
            or self._held_until > _NEVER
            or self.running + 1 > self._window
        ):
            return None
        self.running += 1
        self._tickets += 1
        return self._tickets

    def release(self, ticket: int, verdict: Verdict, retry_after: float | None = None) -> None:
        """Free the slot. `retry_after` is the pause in seconds that a throttling server named."""
        self.running -= 1
        if verdict == "answered":
            self._cooldown = FIRST_COOLDOWN_S
            self._left_before_answer = self._tickets
            if self._window < self._most:
                self._window = min(self._window + 1 / self._window, float(self._most))
        elif verdict == "throttled" and not refused_alone.get()():
            self._throttle(ticket, retry_after)
        elif verdict == "late" and ticket > self._left_before_answer:
            self._cut(ticket)  # else others were answered meanwhile, and the request itself is slow
        if self._waiting:
            self._admit()

    def refused(self) -> None:
        """Throttle after a request that counts as answered: its body was a refusal for load."""
        if not refused_alone.get()():
            self._throttle(self._tickets, None)

    def proven(self) -> None:
        """Reset the window after an answered probe: requests that were late are slow themselves."""
        self._left_before_answer = self._tickets
        self._window = float(self._most)
        self._admit()

    def join(self, concurrency: int) -> None:
        """Add a further user with `concurrency` requests at once. The rates stay."""
        self._most += concurrency
        self._window += concurrency
        self._admit()

    def leave(self, concurrency: int) -> None:
        """Undo a `join`, or the initial concurrency."""
        self._most = max(self._most - concurrency, 1)
        self._window = min(self._window, float(self._most))

    def charge(self, tokens: float) -> None:
        """Count tokens beyond the estimate; negative if there were fewer."""
        if self._tokens is not None:
            self._tokens.charge(tokens)

    def _admit(self) -> None:
        while self._waiting and self.running < int(self._window):
            waiter, _ = self._waiting.popleft()
            if not waiter.done():
                self.running += 1
                waiter.set_result(None)

    async def _queue(self, until: float) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append((waiter, until))
        try:
            await waiter
        except asyncio.CancelledError:
            # The slot was assigned already.
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._tickets += 1
                self.release(self._tickets, "unknown")
            raise

    async def _wait(self, tokens: float, until: float) -> None:
        """Wait until the rates and the server's pause let the request go. Who comes first goes
        first; who leaves before its turn has taken nothing from those behind.
        """
        if self._requests is None and not (tokens and self._tokens is not None):
            await self._hold(until)
            return
        wait = self._free_at(tokens or self._tokens_ahead, self._ahead, self._tokens_ahead)
        wait -= self._clock()
        if wait > PATIENCE_S and is_served.get():
            raise self._not_soon(wait)
        self._ahead += 1
        self._tokens_ahead += tokens
        try:
            while True:
                await self._hold(until)  # each for itself: not all leave at the end of a pause
                async with self._turn:
                    if await self._take(tokens):
                        return
        finally:
            self._ahead -= 1
            self._tokens_ahead -= tokens

    async def _take(self, tokens: float) -> bool:
        """Wait until the first in the queue may go, and count it. Returns False if a pause began
        before. Waking up late costs no rate.
        """
        at = now = self._clock()
        while (free_at := self._free_at(tokens)) > now:
            await asyncio.sleep(free_at - now)
            at, now = free_at, self._clock()
        if self._held_until > now:
            return False
        if self._requests is not None:
            self._requests.take(1, at)
        if self._tokens is not None:
            self._tokens.take(tokens, at)
        return True

    def _free_at(self, tokens: float, ahead: int = 0, tokens_ahead: float = 0.0) -> float:
        """When a request with this many tokens may go, after those ahead of it."""
        at = _NEVER
        if self._requests is not None:
            at = self._requests.free_at(ahead)
        if self._tokens is not None and tokens:
            at = max(at, self._tokens.free_at(tokens_ahead))
        return at

    async def _hold(self, until: float) -> None:
        while (pause := self._held_until - self._clock()) > 0:
            if self._held_until > until:
                raise self._left_alone()
            await asyncio.sleep(pause * (1 + 0.1 * self._jitter()))  # not all in the same instant

    def _throttle(self, ticket: int, retry_after: float | None) -> None:
        """Cut the window once for a burst: what left before the last cut says nothing new."""
        narrow = self._window < 2 or not self.limits.adaptive
        fresh = self._cut(ticket)
        if retry_after is not None:
            note_pause(
                self._server, retry_after, is_kept=retry_after <= self.limits.longest_pause_s
            )
            if retry_after > self.limits.longest_pause_s:
                return
        elif narrow and fresh:
            # Even one request at a time is too much, and the server names no pause.
            retry_after = self._cooldown
            self._cooldown = min(2 * self._cooldown, LONGEST_COOLDOWN_S)
            note_pause(self._server, retry_after, is_named=False)
        if retry_after is not None:
            self._held_until = max(self._held_until, self._clock() + retry_after)
            for waiter, until in self._waiting:
                if self._held_until > until and not waiter.done():
                    waiter.set_exception(self._left_alone())

    def _not_soon(self, wait: float) -> UpstreamError:
        return UpstreamError(
            f"{self._server}: requests_per_minute and tokens_per_minute allow the next request in"
            f" {span(wait)}",
            http_status=429,
            retryable=True,
            retry_after=PATIENCE_S,
        )

    def _left_alone(self) -> UpstreamError:
        left = max(self._held_until - self._clock(), 0.0)
        return UpstreamError(
            f"{self._server} refuses requests for load and is left alone for {span(left)}",
            http_status=429,
            retryable=True,
            retry_after=left,
        )

    def _cut(self, ticket: int) -> bool:
        """Halve the concurrency and return True, unless it was cut since the request left."""
        if ticket <= self._last_cut:
            return False
        self._last_cut = self._tickets
        if self.limits.adaptive:
            self._window = max(self._window / 2, 1.0)
        return True


_Key = tuple[str, float | None, float | None, bool]
_shared: WeakKeyDictionary[asyncio.AbstractEventLoop, WeakValueDictionary[_Key, Limiter]] = (
    WeakKeyDictionary()
)


def shared_limiter(server: str, limits: Limits) -> Limiter:
    """The limiter that this event loop's workers share for one `server` and the same rates.

    Workers share the rates and the server's back-pressure; their concurrencies add up. Each worker
    calls `leave(limits.concurrency)` when it stops.
    """
    limiters = _shared.setdefault(asyncio.get_running_loop(), WeakValueDictionary())
    key = (server, limits.requests_per_minute, limits.tokens_per_minute, limits.adaptive)
    limiter = limiters.get(key)
    if limiter is None:
        limiter = limiters[key] = Limiter(limits, server=server.split(" ")[0])
    else:
        limiter.join(limits.concurrency)
    return limiter
