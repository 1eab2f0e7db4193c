"""The state of one HTTP request: its caller, its target, and its cost so far."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Awaitable
from typing import Any, TypeVar
from uuid import uuid4

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from penstock.errors import PenstockError
from penstock.observability import gather_queue_times
from penstock.openai.requests import parse_body
from penstock.serve.api.auth import Rank
from penstock.serve.api.errors import as_penstock_error, log_unforeseen
from penstock.serve.api.limits import check_inflight, check_json, decode_body, read_body
from penstock.serve.api.public_errors import public
from penstock.serve.api.state import IngressState
from penstock.serve.http.interrupt import Interrupt
from penstock.serve.models.names import Target
from penstock.types import Usage

_log = logging.getLogger("penstock.serve")
Body = TypeVar("Body", bound=msgspec.Struct)
T = TypeVar("T")
UNKNOWN_ENDPOINT = "other"
UNTRUSTED = "x-penstock-untrusted"
"""Header from an ingress to a replica: the caller holds a user's key, not an operator's."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


class Exchange:
    """One request and its answer. The middleware makes it, the endpoint fills it in, and the log
    and the metrics read it at the end.
    """

    def __init__(self, ingress: IngressState, given_id: str | None) -> None:
        self.ingress = ingress
        self.id = given_id if given_id and _REQUEST_ID.fullmatch(given_id) else uuid4().hex
        self.created = int(time.time())
        self.endpoint = UNKNOWN_ENDPOINT
        self.model = ""
        self.runs = False
        self.rank: Rank = "stranger"
        self.trusted = False
        """Whether the caller may see the server's set-up: an operator, or anybody on a
        server without keys.
        """
        self.status = 0
        self.error: str | None = None
        self.usage = Usage()
        self.started = time.perf_counter()
        self.first_token_at: float | None = None
        self.ended = self.started
        self.engine_seconds = 0.0
        self.queue_times = gather_queue_times()
        self.request: Request
        self._counted = False

    async def body(self, form: type[Body]) -> Body:
        return parse_body(form, decode_body(await self.read_json(), Any))

    async def read_json(self) -> bytes:
        """Read the body. Raises `ContentTypeError` unless it is declared as JSON."""
        check_json(self.request)
        return await self.read()

    async def read(self) -> bytes:
        """Read the body. From now on the request counts against `max_inflight`."""
        limits = self.ingress.settings.limits
        # A client that stalls must not delay the server's shutdown.
        async with Interrupt(None, self.ingress.live):
            body = await read_body(self.request, limits)
        if self.runs and not self._counted:
            self._counted = True
            self.ingress.answering += 1
            check_inflight(self.ingress.answering, limits)
        return body

    async def target(self, model: str) -> Target:
        found = await self.ingress.models.find(model)
        self.model = found.handle.model_id
        return found

    def interrupt(self) -> Interrupt:
        """A context that ends the wait for an engine if the client leaves or the
        server shuts down.
        """
        return Interrupt(self.request.receive, self.ingress.live)

    async def wait(self, answer: Awaitable[T]) -> T:
        """Wait for the engine's answer, unless the client leaves or the server shuts down."""
        async with self.interrupt():
            start = time.perf_counter()
            try:
                return await answer
            finally:
                self.engine_seconds += time.perf_counter() - start

    def json(self, body: Any) -> Response:
        return Response(msgspec.json.encode(body), media_type="application/json")

    def failed(self, caught: Exception, override: PenstockError | None = None) -> PenstockError:
        """Record the failure; log it if the client does not see its cause. Returns the error for
        the client: `override`, or `caught` as a `PenstockError`. Callers without the right to read
        them get no file paths.
        """
        error = override if override is not None else as_penstock_error(caught)
        log_unforeseen(error, caught, self.id)
        self.error = error.kind
        if self.trusted:
            return error
        shown = public(error, self.ingress.sources)
        if shown is not error:
            _log.warning("request %s: %s", self.id, error)
        return shown

    def finish(self) -> None:
        """Report to the metrics, and release the request's place."""
        if self._counted:
            self.ingress.answering -= 1
        self.ended = time.perf_counter()
        self.ingress.metrics.requests.labels(self.model, self.endpoint, str(self.status)).inc()
        if not self.model or not self.runs:
            return
        metrics, usage = self.ingress.metrics.of(self.model), self.usage
        metrics.prompt_tokens.inc(usage.prompt_tokens)
        metrics.cached_tokens.inc(usage.cached_tokens)
        metrics.generation_tokens.inc(usage.completion_tokens)
        if self.status != 200:  # the latency of a refusal says nothing about the model
            return
        total = self.ended - self.started
        metrics.latency.observe(total)
        if self.queue_times:
            metrics.queue_time.observe(max(self.queue_times))
        metrics.engine_time.observe(self.engine_seconds)
        metrics.framework_time.observe(max(total - self.engine_seconds, 0.0))
        if self.first_token_at is not None:
            metrics.first_token.observe(self.first_token_at - self.started)
            between = usage.completion_tokens - 1
            if between > 0:
                metrics.per_token.observe((self.ended - self.first_token_at) / between)
