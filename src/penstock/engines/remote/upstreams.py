"""The servers of one model: which one gets the next request, and what its outcome says of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from penstock.balance.breaker import CircuitBreaker
from penstock.balance.limiter import Limiter, Limits, shared_limiter
from penstock.balance.pauses import PATIENCE_S
from penstock.engines.remote.dialects import PATHS, Dialect
from penstock.engines.remote.options import RemoteOptions, UpstreamOptions
from penstock.engines.remote.probes import probe_body
from penstock.engines.remote.refusals import is_no_route, is_too_long
from penstock.errors import EngineDeadError, EngineStartError, EngineTimeoutError, PenstockError, UpstreamError
from penstock.http.client import Endpoint, HttpClient, Timeouts, endpoint
from penstock.http.complaints import error_inside
from penstock.http.headers import Headers, bearer
from penstock.http.retries import is_throttling

LATELY_S = 1.0
PROBE_S = 30.0
"""How long a server may take for the smallest request before it counts as ill."""


class Upstream:
    """One server. Making it checks addresses and reads keys, and opens nothing; needs a running event loop."""

    def __init__(self, options: UpstreamOptions, common: RemoteOptions, field: str, model: str) -> None:
        base = options.base_url.rstrip("/")
        self.options = options
        self.shown = endpoint("GET", base, field=f"{field}.base_url").shown
        self.model = options.model or model
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
        self.suspected_path = ""
        self.complaint = ""
        self.breaker = CircuitBreaker(common.trip_after, common.cooldown_s, asyncio.get_running_loop().time)
        self.concurrency = common.concurrency
        self.running = 0
        self.served = 0.0
        self._base = base
        self._common = common
        self._probe_limiter = Limiter(Limits(longest_pause_s=0.0), server=self.shown)
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

    def can_probe(self, path: str) -> bool:
        """Whether the smallest request to a path is known."""
        return self._probe_body(path) is not None

    async def probe(self, path: str) -> None:
        """Send the smallest request to a path, or ask for the models where none is known. Raises `UpstreamError`,
        `EngineTimeoutError`.
        """
        body = self._probe_body(path)
        to = self.to("/models", "GET") if body is None else self.to(path)
        data = None if body is None else msgspec.json.encode(body)
        reply = await self.client.send(to, self._probe_limiter, data=data)
        if (error := error_inside(reply.body, to.shown)) is not None:
            raise error

    def _probe_body(self, path: str) -> dict[str, Any] | None:
        return probe_body(path, self.model, self.dialect, self._common)

    @property
    def load(self) -> tuple[float, float]:
        """What ranks it: requests under way for its weight and what it bears now, then requests so far."""
        weight = self.options.weight
        return (self.running / (weight * self.limiter.window), self.served / weight)


class Upstreams:
    """All servers of a model. `patience_s` is how long a request waits while none is well; `refused_s` tells for how
    long they have done nothing but refuse for load.
    """

    def __init__(
        self, members: Sequence[Upstream], patience_s: float, refused_s: Callable[[], float] = lambda: 0.0
    ) -> None:
        self.members = list(members)
        self._patience_s = patience_s
        self._refused_s = refused_s
        self._changed = asyncio.Event()
        self._time = asyncio.get_running_loop().time
        self._last_answer = self._time()  # or the beginning
        self._has_answered = False
        self._next_answer: asyncio.Future[None] | None = None
        self._probes: set[asyncio.Task[None]] = set()
        self._closed = False

    async def choose(self, avoid: set[Upstream]) -> Upstream:
        """The least loaded server that is well, one that is not in `avoid` if there is one.

        Raises `EngineDeadError` if none gets well in time, and when they are closed.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience_s
        while not self._closed:
            ready = self.members
            if not all(one.breaker.closed for one in self.members):
                self._probe_where_due()
                ready = [one for one in self.members if one.breaker.closed]
            if ready:
                return min([one for one in ready if one not in avoid] or ready, key=lambda one: one.load)
            remaining = deadline - loop.time()
            if remaining <= 0:
                raise self._none_well()
            soonest = min(one.breaker.wait_s for one in self.members)
            self._changed.clear()
            try:
                async with asyncio.timeout(min(soonest, remaining)):
                    await self._changed.wait()
            except TimeoutError:
                pass
        raise EngineDeadError("the remote engine is not running", suspects=False)

    def others_ready(self, tried: set[Upstream]) -> bool:
        """Whether there is a server to go to at once."""
        return any(one.breaker.closed and one not in tried for one in self.members)

    @contextmanager
    def watch(self, upstream: Upstream, path: str, data: Any) -> Iterator[None]:
        """Around one request, which goes to `path` with `data`: counts it, and lets its outcome speak for or against
        the server.
        """
        breaker = upstream.breaker
        upstream.running += 1
        upstream.served += 1
        try:
            yield
            self._answered(upstream)
        except (UpstreamError, EngineTimeoutError) as error:
            if isinstance(error, UpstreamError):
                upstream.client.without_keys(error, upstream.to(path))
                if is_too_long(error):
                    error.retryable = False  # some say so with status 500
            if not error.reached:
                breaker.unreachable()
            elif self.is_failure(error):
                breaker.failed(hash(data) if isinstance(data, bytes) else id(data))
            elif not is_throttling(error):
                self._answered(upstream)
            if breaker.probe_due:
                upstream.suspected_path = path
                self._probe_where_due()
            raise
        finally:
            upstream.running -= 1
            self._changed.set()

    def well(self, upstream: Upstream) -> None:
        """Its answer has begun to come: that proves it, long before the answer ends."""
        self._answered(upstream)
        self._changed.set()

    async def pause(self, error: Exception, seconds: float) -> None:
        """Before a request that failed is sent again. What a server that is well has refused need not wait for it to
        get well, so an answer to anybody, lately or now, leaves a tenth of the pause.
        """
        if is_throttling(error) or getattr(error, "retry_after", None) is not None:
            await asyncio.sleep(seconds)
            return
        await asyncio.sleep(seconds / 10)
        if self._has_answered and self._time() < self._last_answer + LATELY_S:
            return
        if self._next_answer is None:
            self._next_answer = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._next_answer], timeout=seconds * 0.9)

    def is_failure(self, error: Any) -> bool:
        """Whether an error speaks against the server, if different requests meet it: not one of the request, nor its
        being busy, unless it wants to be left alone for longer than anybody waits, or has been busy for so long.
        """
        if isinstance(error, EngineTimeoutError):
            return True
        if is_throttling(error):
            return max(error.retry_after or 0.0, self._refused_s()) > PATIENCE_S
        return isinstance(error, UpstreamError) and error.retryable

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
        for probe in self._probes:
            probe.cancel()
        await asyncio.gather(*self._probes, return_exceptions=True)
        for one in self.members:
            one.limiter.leave(one.concurrency)
            await one.client.close()

    def check(self) -> None:
        """Raise `EngineDeadError` if no server is well."""
        if all(not one.breaker.closed for one in self.members):
            raise self._none_well()

    @property
    def doubted_path(self) -> str | None:
        """Where to ask before anything else is asked of servers none of which is well; None if one is."""
        ill = [one.suspected_path for one in self.members if not one.breaker.closed]
        return ill[0] if len(ill) == len(self.members) else None

    async def prove(self, path: str) -> None:
        """Probe all servers there. Raises `EngineStartError` if none is well."""
        for one in self.members:
            one.suspected_path = path
        await asyncio.gather(*(self._probe(one) for one in self.members))
        if all(not one.breaker.closed for one in self.members):
            raise EngineStartError(str(self._none_well()))

    async def has_route(self, upstream: Upstream, path: str) -> bool | None:
        """Whether the server has a path at all, as the smallest request there finds out; None if there is none."""
        if not upstream.can_probe(path):
            return None
        try:
            await upstream.probe(path)
        except UpstreamError as error:
            return not is_no_route(error)
        except PenstockError:
            pass
        return True

    def _answered(self, upstream: Upstream) -> None:
        if not upstream.breaker.closed:
            self._catch_up(upstream)
        upstream.breaker.answered()
        self._last_answer, self._has_answered = self._time(), True
        if self._next_answer is not None:
            self._next_answer.set_result(None)
            self._next_answer = None

    def _probe_where_due(self) -> None:
        for one in self.members:
            if one.breaker.probe_due and not self._closed:
                one.breaker.begin_probe()
                probe = asyncio.create_task(self._probe(one))
                self._probes.add(probe)
                probe.add_done_callback(self._probes.discard)

    async def _probe(self, upstream: Upstream) -> None:
        well: bool | None = None
        try:
            async with asyncio.timeout(PROBE_S):
                await upstream.probe(upstream.suspected_path)
            well = True
        except (UpstreamError, EngineTimeoutError) as error:
            upstream.complaint = str(error)
            well = error.reached and not self.is_failure(error)
        except TimeoutError:
            upstream.complaint = f"{upstream.shown}: no answer within {PROBE_S:g} s"
            well = False
        except EngineDeadError:  # the servers are being left
            pass
        finally:
            if well:
                upstream.limiter.proven()
                self._answered(upstream)
            upstream.breaker.probed(well)
            self._changed.set()

    def _none_well(self) -> EngineDeadError:
        said = [one.complaint or one.shown for one in self.members]
        return EngineDeadError(f"no server answers: {'; '.join(said)}", suspects=False)

    def _catch_up(self, upstream: Upstream) -> None:
        """A server that comes back starts level with the others: it need not make up for its absence."""
        others = [one.served / one.options.weight for one in self.members if one.breaker.closed]
        upstream.served = max(upstream.served, min(others, default=0.0) * upstream.options.weight)
