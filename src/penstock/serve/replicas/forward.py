"""The one answer of an ingress whose models run elsewhere: the request goes to a replica as it
came, and the reply comes back as it is. Nothing is decoded but what the choice of a replica needs.
"""

from __future__ import annotations

import asyncio
import copy
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from msgspec import UNSET, Raw, Struct, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from penstock.balance.policies.base import RouteRequest
from penstock.engines.tasks import Batches, Tasks, task_of
from penstock.errors import ClientGoneError, EngineDeadError, ReplicaLostError, RequestError
from penstock.llm_config.batch import CLASS_HEADER
from penstock.openai.framing import error_events
from penstock.openai.messages_api import message_error_events
from penstock.openai.response_events import response_error_events
from penstock.serve.api.errors import error_response
from penstock.serve.api.exchange import RESPONSE_ID, UNTRUSTED, Exchange, check_loaded
from penstock.serve.api.limits import decode_body
from penstock.serve.api.sse import EventStream
from penstock.serve.models.handle import SESSION_HEADER, ModelHandle, Target
from penstock.serve.replicas.client import Reply
from penstock.serve.replicas.model import RemoteModel
from penstock.serve.replicas.pool import ReplicaPool
from penstock.types import ChatRequest, CompletionRequest

if TYPE_CHECKING:
    from penstock.serve.api.routes import Endpoint  # which imports this module

_PASSED_ON = (
    "content-type",
    "accept",
    "traceparent",
    "tracestate",
    "anthropic-version",
    CLASS_HEADER,
)
_PASSED_BACK = frozenset(
    {
        *("content-type", "content-length", "cache-control", "x-accel-buffering"),
        *("retry-after", "x-should-retry"),
    }
)
_FORM_MODEL = re.compile(rb'name="model"\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]*)')
"""The value of a multipart form's field "model"."""
ERROR_EVENTS = {"/v1/messages": message_error_events, "/v1/responses": response_error_events}
"""How a stream ends that its replica cannot end itself, where that is not as chunks do."""


class _Head(Struct):
    """What the choice of a replica needs of a body. The replica checks all of it."""

    model: str | None = None
    messages: Raw | UnsetType = UNSET
    prompt: Raw | UnsetType = UNSET
    input: Raw | UnsetType = UNSET


async def forward(
    exchange: Exchange, body: bytes | None = None, *, endpoint: Endpoint | None = None
) -> Response:
    """Forward the request to a replica and its answer to the client. `body` takes the place of the
    request's own, which has been read: a response with its whole conversation.

    A model without a replica is woken only by a request that a replica would put to its engine:
    `endpoint`, which a replica would answer it with, is rehearsed first.
    """
    kind = exchange.request.headers.get("content-type", "")
    whole_response = body is not None
    if exchange.request.method in ("GET", "HEAD"):
        model, body, prompt = exchange.request.query_params.get("model", ""), b"", b""
    elif body is None and kind.lower().startswith("multipart/form-data"):
        body = await exchange.read()
        found = _FORM_MODEL.search(body)
        model, prompt = found[1].decode(errors="replace") if found else "", b""
    else:
        if body is None:
            body = await exchange.read_json()
        head = decode_body(body, _Head)
        model = head.model or ""
        text = next(
            (raw for raw in (head.messages, head.prompt, head.input) if raw is not UNSET), b""
        )
        prompt = bytes(text)
    target = await exchange.find(model)
    if not isinstance(target.handle, RemoteModel):
        raise RequestError(f"'{target.name}' is not reached over the network", param="model")
    if endpoint is not None and not target.handle.pool.current():
        await _rehearse(endpoint, exchange, target, body)
    pool, session = target.handle.pool, exchange.request.headers.get(SESSION_HEADER, "")
    route = pool.route(prompt, session=session, adapter=target.adapter or "")
    extra = [(RESPONSE_ID, exchange.answer_id)] if whole_response else []
    return Forwarded(exchange, pool, body, route, extra)


class _Asks(Exception):
    """The request has come as far as its model."""


class _NoModel(Tasks):
    """Stands for a model in a rehearsal."""

    def __init__(self, model: RemoteModel) -> None:
        self.model_id, self.engine_name, self.card = model.model_id, model.engine_name, model.card
        self.check_before_load, self.capabilities = model.check_before_load, model.capabilities

    async def answer(self, task: str, request: Any) -> Any:
        await self.check_before_load(task, request)
        raise _Asks

    async def generate(self, request: ChatRequest | CompletionRequest) -> Batches:
        await self.check_before_load(task_of(request), request)
        raise _Asks
        yield


async def _rehearse(endpoint: Endpoint, exchange: Exchange, target: Target, body: bytes) -> None:
    """Do what a replica does before it asks its engine. Raises what that raises, for an adapter
    that is not there `ModelNotFoundError`, and for a `GET` or `HEAD` `UnavailableError`.
    """
    model = target.handle
    assert isinstance(model, RemoteModel)
    check_loaded(exchange, model)
    if target.adapter is not None:
        await model.check_adapter(target.adapter)

    async def receive() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop()}
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    async def the_target(_: str) -> Target:
        return target._replace(handle=cast(ModelHandle, _NoModel(model)))

    unread = [body]
    rehearsal = copy.copy(exchange)
    rehearsal.request = Request(exchange.request.scope, receive)
    rehearsal.target = the_target  # type: ignore[assignment,method-assign]
    try:
        form = () if endpoint.body is None else (await rehearsal.body(endpoint.body),)
        response = await endpoint.answer(rehearsal, *form)
        if isinstance(response, EventStream):
            await anext(response.batches)
    except _Asks:
        pass
    finally:
        exchange._form = rehearsal._form


class Forwarded(Response):
    """Sends on what a replica answers.

    A replica that is lost before its answer begins is replaced by another one; a stream that breaks
    later ends with an error event.
    """

    def __init__(
        self,
        exchange: Exchange,
        pool: ReplicaPool,
        body: bytes,
        route: RouteRequest,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._exchange = exchange
        self._pool = pool
        self._body = body
        self._route = route
        self._extra = headers
        self._begun = False
        self._streams = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = self._exchange
        try:
            await self._run(scope, send)
        except ClientGoneError as gone:
            exchange.status, exchange.error = gone.status, gone.kind
        except Exception as caught:
            override = None
            if isinstance(caught, ReplicaLostError):
                override = EngineDeadError("the replica that answered this request is gone")
            error = exchange.failed(caught, override)
            if not self._begun:
                await error_response(scope, error, exchange.id)(scope, receive, send)
            elif self._streams:
                body = ERROR_EVENTS.get(scope["path"], error_events)(error)
                await send({"type": "http.response.body", "body": body, "more_body": False})
            else:
                raise  # a body of known length has begun: only the connection's end can tell

    async def _run(self, scope: Scope, send: Send) -> None:
        exchange, clock = self._exchange, time.perf_counter
        query = scope.get("query_string", b"")
        path = scope["path"] + (f"?{query.decode('latin-1')}" if query else "")
        given = exchange.request.headers
        headers = [(name, given[name]) for name in _PASSED_ON if name in given]
        headers += [("x-request-id", exchange.id), *self._extra]
        if not exchange.trusted:
            headers.append((UNTRUSTED, "1"))
        async with exchange.interrupt() as interrupt:
            asked = clock()
            method = scope["method"]
            forwarded = self._pool.forward(
                path, headers, self._body, self._route, method, client=exchange.client_headers
            )
            async with forwarded as reply:
                exchange.first_token_at = clock()
                while not reply.done:
                    part = b"".join(await reply.parts())
                    exchange.engine_seconds += clock() - asked
                    if reply.done:
                        interrupt.finished()
                    if not self._begun:
                        await send(self._start(reply))
                    await send(
                        {"type": "http.response.body", "body": part, "more_body": not reply.done}
                    )
                    asked = clock()

    def _start(self, reply: Reply) -> dict[str, Any]:
        self._begun = True
        self._streams = (reply.header("content-type") or "").startswith("text/event-stream")
        headers = [
            (name.encode("latin-1"), value.encode("latin-1"))
            for name, value in reply.headers
            if name in _PASSED_BACK
        ]
        return {"type": "http.response.start", "status": reply.status, "headers": headers}
