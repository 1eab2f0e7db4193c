"""The state of an ingress, and that of one request."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4
from weakref import ref

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Scope

from penstock.errors import (
    PenstockError,
    RequestError,
    ShuttingDownError,
    UnavailableError,
)
from penstock.llm_config.batch import CLASS_HEADER
from penstock.observability import Span, escaped, gather_queue_times
from penstock.openai.parameters.body import parse_body
from penstock.openai.parameters.names import in_words_of
from penstock.serve.api.auth import KEY_HEADERS, Rank, owner_of
from penstock.serve.api.errors import as_penstock_error, model_sources, public
from penstock.serve.api.interrupt import Interrupt
from penstock.serve.api.limits import (
    MANY_PARTS,
    check_extent,
    check_inflight,
    check_json,
    decode_body,
    read_body,
)
from penstock.serve.api.metrics import Metrics
from penstock.serve.api.traffic import UNKNOWN_ENDPOINT, Traffic
from penstock.serve.config.settings import HttpSettings
from penstock.serve.models.handle import (
    CLIENT_HEADER,
    CLIENT_HEADERS,
    SESSION_HEADER,
    ModelHandle,
    ModelNames,
    Target,
)
from penstock.types import Usage

if TYPE_CHECKING:
    from penstock.serve.api.background import BackgroundRuns
    from penstock.serve.store.responses import ResponseStore

_log = logging.getLogger("penstock.serve")
_access = logging.getLogger("penstock.access")
T = TypeVar("T")
UNTRUSTED = "x-penstock-untrusted"
"""Header from an ingress to a replica: the caller holds a user's key, not an operator's."""
RESPONSE_ID = "x-penstock-response-id"
"""Header from an ingress with a store to a replica: the response's id. The request's input then has
the whole conversation.
"""
_LOGGED_PATH = 1000
"""The most characters of a path that are logged: the client chooses its length."""
_PROBES = frozenset({"/health", "/ping", "/metrics", "/load"})
"""What a machine asks every few seconds. The log has only those that fail, and all at DEBUG."""
LAST_WORDS_S = 1.0
"""How long aborted requests may take to send their errors."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


class IngressState:
    """The models, settings and metrics of an ingress, and its requests under way."""

    def __init__(self, models: ModelNames, settings: HttpSettings) -> None:
        self.models = models
        self.settings = settings
        self.metrics = Metrics(models.handles, vllm=settings.vllm_metrics)
        self.sources = model_sources(models.handles.values())
        """Paths of models, which only operators may see."""
        self.openapi: Callable[[], dict[str, Any]] = dict
        """Returns the OpenAPI document of the ingress's endpoints, made on demand."""
        self.store: ResponseStore | None = None
        self.background: BackgroundRuns | None = None
        self.on_drain: list[Callable[[float, asyncio.Event | None], Awaitable[None]]] = []
        """Called when the server begins to drain, with the seconds that work under way has, and an
        event that ends them early.
        """
        self.traffic: Traffic | None = None
        """The requests as they pass, if there is a console that shows them."""
        self.is_replica = False
        """Whether another ingress or server of ours is in front. That one has the store, and passes
        on the headers of clients.
        """
        self.reply_headers: Callable[[], list[tuple[bytes, bytes]]] = list
        """Returns headers for every reply."""
        self.draining = False
        self.inflight = 0
        """Requests whose head has arrived."""
        self.answering = 0
        """Requests that use an engine, and whose body has arrived."""
        self.live: set[Interrupt] = set()
        """Waits for an engine. A shutdown ends them early."""
        self.watchers: set[Interrupt] = set()
        """Requests that do not end by themselves."""
        self._idle = asyncio.Event()
        self._idle.set()

    def begin(self) -> None:
        self.inflight += 1
        self._idle.clear()

    def end(self) -> None:
        self.inflight -= 1
        if not self.inflight:
            self._idle.set()

    def note_batch_line(self, model: str, usage: Usage) -> None:
        """Count the tokens of a batch's line, which is not a request to the ingress."""
        self.metrics.count_tokens(model, usage)
        if self.traffic is not None:
            self.traffic.batch_tokens[model] += usage.completion_tokens

    async def drain(self, timeout_s: float, hurry: asyncio.Event | None = None) -> bool:
        """Take no more requests, wait for those under way, then abort them. Returns whether all
        finished by themselves.

        `hurry`, once set, ends the wait.
        """
        ending = [asyncio.ensure_future(end(timeout_s, hurry)) for end in self.on_drain]
        try:
            return await self._drain(timeout_s, hurry)
        finally:
            await asyncio.gather(*ending, return_exceptions=True)
            if self.store is not None:
                self.store.close()

    async def _drain(self, timeout_s: float, hurry: asyncio.Event | None) -> bool:
        self.draining = True
        _fire(self.watchers)
        if await self._wait_idle(timeout_s, hurry):
            return True
        _fire(self.live)
        # The aborted requests send their errors. A client that does not read is not waited for.
        await self._wait_idle(LAST_WORDS_S, None)
        return False

    async def _wait_idle(self, timeout_s: float, hurry: asyncio.Event | None) -> bool:
        waiting = {
            asyncio.ensure_future(event.wait())
            for event in (self._idle, hurry)
            if event is not None
        }
        try:
            await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        return self._idle.is_set()


def _fire(interrupts: set[Interrupt]) -> None:
    for interrupt in list(interrupts):
        interrupt.fire(ShuttingDownError("the server is shutting down"))


class Exchange:
    """One request and its answer. The middleware makes it, the endpoint fills it in, and the log
    and the metrics read it at the end.
    """

    def __init__(self, ingress: IngressState, given_id: str | None) -> None:
        self.ingress = ingress
        self.limits = ingress.settings.limits
        self.id = self.answer_id = uuid4().hex
        """`id` is the caller's, if it sent one. Callers repeat ids, so `answer_id`, which follows a
        prefix such as "resp_", has an end of its own.
        """
        if given_id and _REQUEST_ID.fullmatch(given_id):
            self.id, self.answer_id = given_id, f"{given_id}-{self.answer_id[:12]}"
        self.created = int(time.time())
        self.endpoint = UNKNOWN_ENDPOINT
        self.model = ""
        self.runs = False
        self.rank: Rank = "stranger"
        self.caller: str | None = None
        """What the log calls the holder of a known key."""
        self.trusted = False
        """Whether the caller may see the server's set-up: it is an operator, or the server has no
        keys.
        """
        self.status = 0
        self.error: str | None = None
        self.usage = Usage()
        self.started = time.perf_counter()
        self.first_token_at: float | None = None
        self.ended = self.started
        self.engine_seconds = 0.0
        self.deltas = 0
        """Pieces of a streamed answer so far."""
        self.queue_times = gather_queue_times()
        self.kept_body: bytes | None = None
        self.request: Request
        self._form: msgspec.Struct | None = None
        self._counted = False
        self.long = False
        """Whether a thread must read the body: its many parts would hold up other requests."""

    async def body(self, form: type[msgspec.Struct]) -> msgspec.Struct:
        """The JSON body in its endpoint's form. Raises `RequestError`."""
        body = await self.read_json()
        self._form = await self.aside(lambda: parse_body(form, decode_body(body, Any)))
        return self._form

    async def aside(self, work: Callable[[], T]) -> T:
        """The result of `work` on the body; by a thread if the body is `long`."""
        return await asyncio.to_thread(work) if self.long else work()

    async def read_json(self) -> bytes:
        """Read the body. Raises `ContentTypeError` unless it is declared as JSON."""
        check_json(self.request)
        body = await self.read()
        self.long = check_extent(body, self.limits) > MANY_PARTS
        return body

    async def read(self) -> bytes:
        """Read the body. From now on the request counts against `max_inflight`."""
        # A client that stalls must not delay the server's shutdown.
        async with Interrupt(None, self.ingress.live):
            body = await read_body(self.request, self.limits)
        if (traffic := self.ingress.traffic) is not None and traffic.keeps_bodies:
            traffic.body(self, body)
        if self.runs and not self._counted:
            self._counted = True
            self.ingress.answering += 1
            check_inflight(self.ingress.answering, self.limits)
        return body

    @property
    def owner(self) -> str:
        """The owner of the stored responses that the caller sees."""
        return owner_of(self.request.headers, self.rank, self.ingress.settings)

    def detached(self) -> Exchange:
        """An exchange for work that goes on after this one. It counts instead of this one."""
        work = Exchange(self.ingress, self.id)
        work.answer_id, work.created = self.answer_id, self.created
        work.rank, work.trusted = self.rank, self.trusted
        work.endpoint, work.runs = f"{self.endpoint} (background)", True
        work.model = self.model
        work.request = Request(self.request.scope, _never_leaves)
        work._form, work.long = self._form, self.long
        work._counted, self._counted = self._counted, False
        self.runs = False
        return work

    async def target(self, model: str) -> Target:
        """The model and adapter that a request names, for the class and session of the request.
        Raises `ModelNotFoundError`, and `RequestError` for an unknown class.
        """
        found = await self.find(model)
        this = ref(self)  # a weak one: an engine that is loaded now keeps this task's context
        CLIENT_HEADERS.set(lambda: {} if (one := this()) is None else one.client_headers())
        if session := self.request.headers.get(SESSION_HEADER):
            found = found._replace(handle=found.handle.for_session(session))
        given = self.request.headers.get(CLASS_HEADER)
        if given is None or given == "online":
            return found
        if given != "batch":
            raise RequestError(
                f"the header {CLASS_HEADER} must be 'online' or 'batch', not {given[:50]!r}",
                param=CLASS_HEADER,
            )
        return found._replace(handle=found.handle.for_batch())

    def client_headers(self) -> dict[str, str]:
        """The client's headers, without the key for the ingress."""
        given, settings = self.request.headers.items(), self.ingress.settings
        if self.ingress.is_replica:
            cut = len(CLIENT_HEADER)
            return {name[cut:]: one for name, one in given if name.startswith(CLIENT_HEADER)}
        checked = KEY_HEADERS if settings.api_keys or settings.admin_keys else ()
        return {name: one for name, one in given if name not in checked}

    async def find(self, model: str) -> Target:
        """As `target`, without regard to class and session."""
        found = await self.ingress.models.find(model)
        self.model = found.handle.model_id
        return found

    def interrupt(self) -> Interrupt:
        """A context that ends early if the client leaves or the server shuts down."""
        return Interrupt(self.request.receive, self.ingress.live)

    async def wait(self, answer: Awaitable[T]) -> T:
        """Wait for the engine's answer, unless the client leaves or the server shuts down."""
        async with self.interrupt():
            start = time.perf_counter()
            try:
                return await answer
            finally:
                self.engine_seconds += time.perf_counter() - start

    def about(self, prefix: str, target: Target) -> dict[str, Any]:
        """The fields that most answers begin with. The id is `prefix` plus `answer_id`."""
        return {"id": prefix + self.answer_id, "created": self.created, "model": target.name}

    def json(self, body: Any) -> Response:
        return Response(msgspec.json.encode(body), media_type="application/json")

    def failed(self, caught: Exception, override: PenstockError | None = None) -> PenstockError:
        """Record the failure; log it if the client does not see its cause. Returns the error for
        the client: `override`, or `caught` as a `PenstockError`. Only operators get file paths.
        """
        error = override if override is not None else as_penstock_error(caught, self.id)
        self.error = error.kind
        if self._form is not None:
            error = in_words_of(self._form, error)
        if self.trusted:
            return error
        shown = public(error, self.ingress.sources)
        if shown is not error:
            _log.warning("request %s: %s", self.id, escaped(str(error)))
        return shown

    def finish(self) -> None:
        """Report to the metrics, and release the request's place."""
        if self._counted:
            self.ingress.answering -= 1
        self.ended = time.perf_counter()
        self.ingress.metrics.requests.labels(self.model, self.endpoint, str(self.status)).inc()
        if self.ingress.traffic is not None:
            self.ingress.traffic.note(self)
        if not self.model or not self.runs:
            return
        usage = self.usage
        metrics = self.ingress.metrics.count_tokens(self.model, usage)
        if self.status != 200:  # the latency of a refusal says nothing of the model
            return
        total = self.ended - self.started
        metrics.request_prompt_tokens.observe(usage.prompt_tokens)
        metrics.request_generation_tokens.observe(usage.completion_tokens)
        metrics.latency.observe(total)
        if self.queue_times:
            metrics.queue_time.observe(max(self.queue_times))
        metrics.engine_time.observe(self.engine_seconds)
        metrics.framework_time.observe(max(total - self.engine_seconds, 0.0))
        if self.first_token_at is not None:
            metrics.first_token.observe(self.first_token_at - self.started)
            if (between := usage.completion_tokens - 1) > 0:
                metrics.per_token.observe((self.ended - self.first_token_at) / between)


async def _never_leaves() -> Message:
    return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]


def note_on_span(current: Span, exchange: Exchange, scope: Scope) -> None:
    """Set a span's attributes from the exchange. Reads only `method` and `path` of `scope`."""
    usage = exchange.usage
    route = exchange.endpoint if exchange.endpoint != UNKNOWN_ENDPOINT else None
    current.note(
        {
            "http.request.method": scope["method"],
            "http.route": route,
            "http.response.status_code": exchange.status,
            "url.path": scope["path"],
            "error.type": exchange.error,
            "gen_ai.request.model": exchange.model or None,
            "gen_ai.usage.input_tokens": usage.prompt_tokens or None,
            "gen_ai.usage.output_tokens": usage.completion_tokens or None,
            "penstock.request_id": exchange.id,
        },
        name=f"{scope['method']} {route}" if route else "",
        failed=exchange.status >= 500 or (exchange.error is not None and exchange.status == 200),
    )


def log_access(exchange: Exchange, scope: Scope) -> None:
    """Log the exchange when it has ended. Reads only `method` and `path` of `scope`."""
    path = scope["path"][:_LOGGED_PATH]
    level = logging.DEBUG if path in _PROBES and exchange.status < 400 else logging.INFO
    if not _access.isEnabledFor(level):
        return
    first = exchange.first_token_at
    of_model = {
        "model": exchange.model,
        "engine_seconds": round(exchange.engine_seconds, 6),
        "prompt_tokens": exchange.usage.prompt_tokens,
        "completion_tokens": exchange.usage.completion_tokens,
    }
    known = {
        "method": scope["method"],
        "path": path,
        "status": exchange.status,
        "key": exchange.caller,
        "seconds": round(exchange.ended - exchange.started, 6),
        "answer_id": None if exchange.answer_id == exchange.id else exchange.answer_id,
        **(of_model if exchange.model else {}),
        "first_token_seconds": None if first is None else round(first - exchange.started, 6),
        "error": exchange.error,
    }
    fields = {name: value for name, value in known.items() if value is not None}
    line = (scope["method"], escaped(path), exchange.status)
    _access.log(level, "%s %s %s", *line, extra={"fields": fields})


def check_loaded(exchange: Exchange, model: ModelHandle) -> None:
    """Raise `UnavailableError` for a `GET` or `HEAD` to a model that is to be loaded on demand: it
    asks about the model, and must not load it.
    """
    state = model.state()
    absent = state.on_demand and state.state in ("cold", "failed")
    if exchange.request.method != "POST" and absent:
        raise UnavailableError(
            f"'{model.model_id}' is not loaded: the first request to be answered loads it"
        )
