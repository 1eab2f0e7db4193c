"""The servers of one model: which one gets the next request, and which ones are healthy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import msgspec

from penstock.balance.backoff import PATIENCE_S
from penstock.balance.breaker import CircuitBreaker
from penstock.balance.limiter import Limiter, Limits, shared_limiter
from penstock.balance.policies.base import RouteRequest, RoutingPolicy
from penstock.balance.pool import Failover, Member, Pool
from penstock.engines.remote.options import RemoteOptions, UpstreamOptions
from penstock.engines.remote.refusals import is_no_route, is_too_long
from penstock.engines.remote.requests import OTHER_PATHS, Dialect, in_dialect, score_body
from penstock.engines.side_by_side import begin, end_all
from penstock.errors import (
    EngineDeadError,
    EngineStartError,
    EngineTimeoutError,
    PenstockError,
    UpstreamError,
)
from penstock.http.client import HttpClient, Timeouts
from penstock.http.complaints import error_inside
from penstock.http.endpoint import Endpoint, Headers, bearer, endpoint, under
from penstock.http.retries import is_throttling

LATELY_S = 1.0
"""An answer within this time shows that a server is healthy."""
PROBE_S = 30.0
"""A server that takes longer to answer a probe is unhealthy."""


class Upstream(Member):
    """One server. The constructor checks addresses and reads keys, and opens no connection; it
    needs a running event loop. `name` is unique among the servers of the model.
    """

    def __init__(
        self, name: str, options: UpstreamOptions, common: RemoteOptions, field: str, model: str
    ) -> None:
        super().__init__(name, options.weight)
        self.options = options
        self.shown = endpoint("GET", options.base_url, field=f"{field}.base_url").shown
        self.model = options.model or model
        self.dialect: Dialect = "openai"
        self.client = HttpClient(
            Headers(
                {**bearer(options.api_key_env, field=f"{field}.api_key_env"), **options.headers},
                field=f"{field}.headers",
            ),
            timeouts=Timeouts(
                connect_s=common.connect_timeout_s, idle_s=common.timeout_s, try_s=None
            ),
            max_body_bytes=common.max_response_bytes,
        )
        # The models of one server share its rates; its keys (by variable) have rates of their own.
        self.limiter: Limiter = shared_limiter(
            f"{self.shown} {options.api_key_env or ''}",
            Limits(
                concurrency=common.concurrency,
                requests_per_minute=common.requests_per_minute,
                tokens_per_minute=common.tokens_per_minute,
                adaptive=common.adaptive,
            ),
        )
        self.suspected_path = ""
        self.complaint = ""
        self.breaker = CircuitBreaker(
            common.trip_after, common.cooldown_s, asyncio.get_running_loop().time
        )
        self.concurrency = common.concurrency
        self.max_answer_bytes = common.max_response_bytes
        self._common = common
        self._probe_limiter = Limiter(Limits(longest_pause_s=0.0), server=self.shown)
        self._endpoints: dict[str, Endpoint] = {}

    def to(self, path: str, method: str = "POST") -> Endpoint:
        """The address of a path such as "/chat/completions". One that begins with two slashes
        stands beside "/v1", not under it.
        """
        known = self._endpoints.get(path)
        if known is None:
            base = self.options.base_url
            path_there = OTHER_PATHS.get(self.dialect, {}).get(path, path)
            if path_there.startswith("//"):
                root, mark, query = base.partition("?")
                base = root.rstrip("/").removesuffix("/v1") + mark + query
                path_there = path_there[1:]
            known = self._endpoints[path] = endpoint(method, under(base, path_there))
        return known

    async def models(self) -> bytes:
        """The body of `/models`. It does not wait with the requests for their turns. Raises
        `UpstreamError`, `EngineTimeoutError`.
        """
        limiter = Limiter(Limits(), server=self.shown)
        return (await self.client.send(self.to("/models", "GET"), limiter)).body

    async def probe(self, path: str) -> None:
        """Send the smallest known request. Raises `UpstreamError`, `EngineTimeoutError`."""
        body = self.probe_body(path)
        to = self.to("/models", "GET") if body is None else self.to(path)
        data = None if body is None else msgspec.json.encode(body)
        reply = await self.client.send(to, self._probe_limiter, data=data)
        if (error := error_inside(reply.body, to.shown)) is not None:
            raise error

    def probe_body(self, path: str) -> dict[str, Any] | None:
        """The body of the smallest request to a path; None if none is known."""
        options, text = self._common, "Hi"
        bodies: dict[str, dict[str, Any]] = {
            "/chat/completions": {
                "messages": [{"role": "user", "content": text}],
                options.max_tokens_field: 1,
            },
            "/completions": {"prompt": text, "max_tokens": 1},
            "/embeddings": {"input": [text]},
            "/score": score_body(self.dialect, text, [text]),
            "/rerank": {"query": text, "documents": [text]},
            "//classify": {"input": [text]},
        }
        body = bodies.get(path)
        if body is None:
            return None
        extra = options.extra_body if path.endswith("/completions") else {}
        return in_dialect(self.dialect, {"model": self.model, **body}) | extra

    @property
    def load(self) -> float:
        """Running requests per weight, scaled up while the limiter's window is narrow."""
        return self.running / self.weight * self.concurrency / self.limiter.window

    def is_ready(self, now: float) -> bool:
        return self.breaker.closed


class Upstreams(Pool[Upstream]):
    """All servers of a model. A request waits up to `patience_s` while none is healthy.
    `refused_s` gives the seconds since which every answer was a refusal for load.
    """

    def __init__(
        self,
        members: Sequence[Upstream],
        policy: RoutingPolicy,
        patience_s: float,
        refused_s: Callable[[], float],
    ) -> None:
        super().__init__(policy, members)
        self._patience_s = patience_s
        self._refused_s = refused_s
        self._changed = asyncio.Event()
        self._time = asyncio.get_running_loop().time
        self._last_answer = float("-inf")
        self._next_answer: asyncio.Future[None] | None = None
        self._probes: set[asyncio.Task[None]] = set()
        self._closed = False

    def choose(self, route: RouteRequest, tried: Collection[str] = ()) -> Upstream | None:
        if self._closed:
            raise EngineDeadError("the remote engine is not running", suspects=False)
        if self._some_away:
            self._probe_where_due()
        return super().choose(route, tried)

    async def obtain(self, failover: Failover[Upstream]) -> Upstream:
        """The first server that recovers. Raises `EngineDeadError` if none does in time, or when
        the servers are closed.
        """
        while True:
            left = failover.patience_left(self._patience_s)
            if left <= 0:
                raise self._none_well()
            soonest = min(one.breaker.wait_s for one in self.members)
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(soonest, left)):
                    await self._changed.wait()
            if (chosen := self.choose(failover.route)) is not None:
                return chosen

    def trip(self, upstream: Upstream) -> None:
        """Open a server's breaker until a probe succeeds."""
        upstream.breaker.trip()
        self._some_away = True

    @contextmanager
    def watch(self, upstream: Upstream, path: str, data: Any) -> Iterator[None]:
        """Wraps a request to `path` with `data`: counts it, and informs the breaker."""
        breaker = upstream.breaker
        upstream.running += 1
        try:
            yield
            self.answered(upstream)
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
                self.answered(upstream)
            if breaker.probe_due:
                upstream.suspected_path = path
                self._probe_where_due()
            raise
        finally:
            upstream.running -= 1
            self._changed.set()

    def answered(self, upstream: Upstream) -> None:
        """Record the first piece of an answer: it proves the server healthy."""
        upstream.breaker.answered()
        self._last_answer = self._time()
        if self._next_answer is not None:
            self._next_answer.set_result(None)
            self._next_answer = None
        self._changed.set()

    async def pause(self, error: Exception, seconds: float) -> None:
        """Wait before a failed request is sent again. The pause ends early, after a tenth at the
        earliest, once any request is answered.
        """
        if is_throttling(error) or getattr(error, "retry_after", None) is not None:
            await asyncio.sleep(seconds)
            return
        await asyncio.sleep(seconds / 10)
        if self._time() < self._last_answer + LATELY_S:
            return
        if self._next_answer is None:
            self._next_answer = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._next_answer], timeout=seconds * 0.9)

    def is_failure(self, error: Any) -> bool:
        """Whether an error counts against the server. The fault of a request does not. A refusal
        for load does once the server has refused, or asks to wait, for more than `PATIENCE_S`.
        """
        if isinstance(error, EngineTimeoutError):
            return True
        if is_throttling(error):
            return max(error.retry_after or 0.0, self._refused_s()) > PATIENCE_S
        return isinstance(error, UpstreamError) and error.retryable

    async def open(self) -> None:
        for one in self.members:
            await one.client.open()

    async def close(self) -> None:
        """Close all connections; requests under way end with `EngineDeadError`."""
        if self._closed:
            return
        self._closed = True
        self._changed.set()
        await end_all(self._probes)
        for one in self.members:
            one.limiter.leave(one.concurrency)
            await one.client.close()

    def check(self) -> None:
        """Raise `EngineDeadError` if no server is healthy."""
        if not self.ready():
            raise self._none_well()

    @property
    def doubted_path(self) -> str | None:
        """The path to probe before anything else if no server is healthy; None if one is."""
        return None if self.ready() else self.members[0].suspected_path

    async def prove(self, path: str) -> None:
        """Probe a path of all servers. Raises `EngineStartError` if none is healthy."""
        for one in self.members:
            one.suspected_path = path
        await asyncio.gather(*(self._probe(one) for one in self.members))
        if not self.ready():
            raise EngineStartError(str(self._none_well()))

    async def has_route(self, upstream: Upstream, path: str) -> bool | None:
        """False if the server says that it has no such path; None if no probe of it is known."""
        if upstream.probe_body(path) is None:
            return None
        try:
            await upstream.probe(path)
        except UpstreamError as error:
            return not is_no_route(error)
        except PenstockError:
            pass
        return True

    def _probe_where_due(self) -> None:
        for one in self.members:
            if one.breaker.probe_due and not self._closed:
                one.breaker.begin_probe()
                begin(self._probe(one), self._probes)

    async def _probe(self, upstream: Upstream) -> None:
        well: bool | None = None
        try:
            async with asyncio.timeout(PROBE_S):
                await upstream.probe(upstream.suspected_path)
            well = True
        except (UpstreamError, EngineTimeoutError) as error:
            well = error.reached and not self.is_failure(error)
            upstream.complaint = str(error)
        except TimeoutError:
            upstream.complaint = f"{upstream.shown}: no answer within {PROBE_S:g} s"
            well = False
        except EngineDeadError:  # the servers are being closed
            pass
        finally:
            if well:
                upstream.complaint = ""
                upstream.limiter.proven()
                self.answered(upstream)
            upstream.breaker.probed(well)
            self._some_away = True
            self._changed.set()

    def _none_well(self) -> EngineDeadError:
        complaints = "; ".join(one.complaint or one.shown for one in self.members)
        return EngineDeadError(f"no server answers: {complaints}", suspects=False)
