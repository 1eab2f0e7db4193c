"""The servers of one model: which one gets the next request, and what its outcome says of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from penstock.engines.remote.breaker import CircuitBreaker
from penstock.engines.remote.dialects import PATHS, Dialect
from penstock.engines.remote.options import RemoteOptions, UpstreamOptions
from penstock.errors import EngineDeadError, EngineTimeoutError, UpstreamError
from penstock.http.client import Endpoint, HttpClient, Timeouts, endpoint
from penstock.http.headers import Headers, bearer
from penstock.http.limiter import Limiter, Limits, shared_limiter
from penstock.http.retries import is_throttling


class Upstream:
    """One server. Making it checks addresses and reads keys, and opens nothing; needs a running event loop."""

    def __init__(self, options: UpstreamOptions, common: RemoteOptions, field: str) -> None:
        base = options.base_url.rstrip("/")
        self.options = options
        self.shown = endpoint("GET", base, field=f"{field}.base_url").shown
        self.model = options.model
        self.dialect: Dialect = "openai"
        key = bearer(options.api_key_env, field=f"{field}.api_key_env")
        timeouts = Timeouts(connect_s=common.connect_timeout_s, idle_s=common.timeout_s, try_s=None)
        self.client = HttpClient(
            Headers({**key, **options.headers}, field=f"{field}.headers"),
            timeouts=timeouts,
            max_body_bytes=common.max_response_bytes,
        )
        limits = Limits(
            concurrency=common.concurrency,
            requests_per_minute=common.requests_per_minute,
            tokens_per_minute=common.tokens_per_minute,
            adaptive=common.adaptive,
        )
        # Two models of one server share its rates; two keys do not.
        self.limiter: Limiter = shared_limiter(f"{self.shown} {options.api_key_env or ''}", limits)
        self.breaker = CircuitBreaker(common.trip_after, common.cooldown_s, asyncio.get_running_loop().time)
        self.concurrency = common.concurrency
        self.running = 0
        self.served = 0.0
        self._base = base
        self._endpoints: dict[str, Endpoint] = {}

    def to(self, path: str, method: str = "POST") -> Endpoint:
        """The address of a path such as "/chat/completions". One that begins with "//" is beside "/v1", not in it."""
        known = self._endpoints.get(path)
        if known is None:
            base, path_there = self._base, PATHS.get(self.dialect, {}).get(path, path)
            if path_there.startswith("//"):
                base, path_there = base.removesuffix("/v1"), path_there[1:]
            known = self._endpoints[path] = endpoint(method, base + path_there)
        return known

    @property
    def load(self) -> tuple[float, float]:
        """What ranks it: requests under way for its weight and what it bears now, then requests so far."""
        weight = self.options.weight
        return (self.running / (weight * self.limiter.window), self.served / weight)


class Upstreams:
    """All servers of a model. `patience_s` is how long a request waits while none is well."""

    def __init__(self, members: Sequence[Upstream], patience_s: float) -> None:
        self.members = list(members)
        self._patience_s = patience_s
        self._changed = asyncio.Event()
        self._closed = False

    async def choose(self, avoid: set[Upstream]) -> Upstream:
        """The least loaded server that is well, one that is not in `avoid` if there is one.

        Raises `EngineDeadError` if none gets well in time, and when they are closed.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience_s
        while not self._closed:
            ready = [one for one in self.members if one.breaker.wait_s == 0]
            if ready:
                return min([one for one in ready if one not in avoid] or ready, key=lambda one: one.load)
            soonest = min(one.breaker.wait_s for one in self.members)
            remaining = deadline - loop.time()
            if remaining <= 0:
                raise self._none_well()
            self._changed.clear()
            try:
                async with asyncio.timeout(min(soonest, remaining)):
                    await self._changed.wait()
            except TimeoutError:
                pass
        raise EngineDeadError("the remote engine is not running", suspects=False)

    def others_ready(self, tried: set[Upstream]) -> bool:
        """Whether there is a server to go to at once."""
        return any(one.breaker.wait_s == 0 and one not in tried for one in self.members)

    @contextmanager
    def watch(self, upstream: Upstream) -> Iterator[None]:
        """Around one request: counts it, and lets its outcome speak for or against the server."""
        breaker = upstream.breaker
        if not breaker.closed:
            self._catch_up(upstream)
        breaker.begin()
        upstream.running += 1
        upstream.served += 1
        try:
            yield
            breaker.succeeded()
        except (UpstreamError, EngineTimeoutError) as error:
            if is_server_failure(error):
                breaker.failed()
            elif is_throttling(error):
                breaker.abandoned()
            else:
                breaker.succeeded()
            raise
        except BaseException:
            breaker.abandoned()
            raise
        finally:
            upstream.running -= 1
            self._changed.set()

    def well(self, upstream: Upstream) -> None:
        """Its answer has begun to come: that proves it, long before the answer ends."""
        upstream.breaker.succeeded()
        self._changed.set()

    async def open(self) -> None:
        """Make the sessions."""
        self._closed = False
        for one in self.members:
            await one.client.open()

    async def close(self) -> None:
        """Close all connections; requests under way end with `EngineDeadError`."""
        if self._closed:
            return
        self._closed = True
        self._changed.set()
        for one in self.members:
            one.limiter.leave(one.concurrency)
            await one.client.close()

    def check(self) -> None:
        """Raise `EngineDeadError` if no server is well."""
        if all(not one.breaker.closed for one in self.members):
            raise self._none_well()

    def _none_well(self) -> EngineDeadError:
        return EngineDeadError(f"no server answers: {', '.join(one.shown for one in self.members)}", suspects=False)

    def _catch_up(self, upstream: Upstream) -> None:
        """A server that comes back starts level with the others: it need not make up for its absence."""
        others = [one.served / one.options.weight for one in self.members if one.breaker.closed]
        upstream.served = max(upstream.served, min(others, default=0.0) * upstream.options.weight)


def is_server_failure(error: Any) -> bool:
    """Whether an error speaks against the server, and not against the request or for its being busy."""
    if isinstance(error, EngineTimeoutError):
        return True
    return isinstance(error, UpstreamError) and error.retryable and not is_throttling(error)
