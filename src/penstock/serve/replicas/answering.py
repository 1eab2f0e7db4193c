"""What a replica answers to its ingresses, beside the public API."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from msgspec import Raw
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from penstock.balance.backoff import is_served
from penstock.engines.tasks import TASKS, Batches, Task, generated
from penstock.errors import (
    ClientGoneError,
    NoKeyError,
    RequestError,
    ShuttingDownError,
    UnsupportedError,
)
from penstock.kv.cached_blocks import PROMPT_BLOCKS, Change
from penstock.observability import request_id, span
from penstock.openai.responses import UsageTotal, error_body
from penstock.serve.api.endpoints import control
from penstock.serve.api.errors import as_penstock_error
from penstock.serve.api.exchange import Exchange, IngressState, log_access, note_on_span
from penstock.serve.api.interrupt import Interrupt
from penstock.serve.api.limits import too_large
from penstock.serve.api.routes import Endpoint
from penstock.serve.api.sse import EventStream
from penstock.serve.models.pacing import joined
from penstock.serve.replicas.messages import (
    CACHED_PATH,
    CALL_PATH,
    Call,
    CallFramer,
    Failure,
    framed,
    pack,
)
from penstock.types import Delta, Usage


class CallAnswer:
    """One call and its answer. The messages are those of ASGI."""

    def __init__(self, ingress: IngressState, call: Call, receive: Receive, send: Send) -> None:
        self._ingress = ingress
        self._call = call
        self._receive = receive
        self._send = send
        self._exchange = exchange = Exchange(ingress, call.request_id)
        exchange.endpoint = ENDPOINT
        exchange.runs = exchange.trusted = True

    async def run(self) -> None:
        """Answer. The context variables that this sets are those of the call's own task."""
        exchange, scope = self._exchange, {"method": "CALL", "path": CALL_PATH + self._call.task}
        PROMPT_BLOCKS.set(tuple(self._call.blocks))
        request_id.set(exchange.id)
        is_served.set(True)
        self._ingress.begin()
        try:
            with span("CALL") as current:
                try:
                    await self._answer()
                finally:
                    if current.recording:
                        note_on_span(current, exchange, scope)
        finally:
            self._ingress.end()
            exchange.finish()
            log_access(exchange, scope)

    async def _answer(self) -> None:
        exchange = self._exchange
        try:
            async with Interrupt(None, self._ingress.live) as interrupt:
                await self._run(interrupt)
        except asyncio.CancelledError:
            exchange.status, exchange.error = ClientGoneError.status, ClientGoneError.kind
            raise
        except Exception as caught:
            error = exchange.failed(caught)
            if exchange.status:
                await self._part(pack(Failure(error.kind, str(error), error.param)), more=False)
            else:
                await self._begin(error.status)
                await self._part(msgspec.json.encode(error_body(error)), more=False)

    async def _run(self, interrupt: Interrupt) -> None:
        call, ingress, exchange = self._call, self._ingress, self._exchange
        clock = time.perf_counter
        keys = ingress.settings.admin_keys
        if not any(hmac.compare_digest(call.key.encode(), key.encode()) for key in keys):
            raise NoKeyError("the API key is wrong")
        if ingress.draining:
            raise ShuttingDownError("the server is shutting down")
        task, request = decoded(call.task, await self._body())
        handle = (await exchange.find("")).handle
        asked = clock()
        if not task.streams:
            result = await getattr(handle, call.task)(request)
            exchange.engine_seconds = clock() - asked
            exchange.usage = getattr(result, "usage", Usage())
            interrupt.finished()
            await self._begin()
            await self._part(pack(result), more=False)
            return
        total = UsageTotal(request.n)
        batches = generated(handle, request)
        async with aclosing(whole(batches) if call.whole else batches) as batches:
            async for batch in batches:
                now = clock()
                exchange.engine_seconds += now - asked
                for delta in batch:
                    if delta.finish_reason is not None:
                        total.add(delta)
                if not exchange.status:
                    exchange.first_token_at = None if call.whole else now
                    await self._begin()
                await self._part(pack(batch))
                asked = clock()
        exchange.usage = total.usage
        interrupt.finished()
        if not exchange.status:
            await self._begin()
        await self._part(b"", more=False)

    async def _body(self) -> bytes:
        most = self._ingress.settings.limits.max_body_bytes
        if self._call.length > most:
            raise too_large(most)
        parts, more = [], True
        while more:
            message = await self._receive()
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        return b"".join(parts)

    async def _begin(self, status: int = 200) -> None:
        self._exchange.status = status
        headers = self._ingress.reply_headers()
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _part(self, part: bytes, *, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": part, "more_body": more})


def decoded(name: str, body: bytes | Raw) -> tuple[Task, Any]:
    """A task and its request. Raises `RequestError`."""
    task = TASKS.get(name)
    if task is None:
        raise RequestError(f"there is no task '{name[:50]}'", param="task")
    try:
        return task, msgspec.msgpack.decode(body, type=task.request)
    except msgspec.DecodeError:
        raise RequestError("the request is not of its task's form") from None


async def whole(batches: Batches) -> Batches:
    """The same deltas in one batch at the end, one an answer."""
    answers: dict[int, list[Delta]] = {}
    async with aclosing(batches):
        async for batch in batches:
            for delta in batch:
                answers.setdefault(delta.index, []).append(delta)
    if answers:
        yield [joined(deltas) for deltas in answers.values()]


async def cached(exchange: Exchange) -> Response:
    """What the engine has cached, in the names that requests brought, and what changes of it."""
    target = await exchange.find("")
    # The handle is in this process.
    blocks = target.handle.server.engine.cached_blocks  # type: ignore[attr-defined]
    if blocks is None:
        raise UnsupportedError(
            f"the {target.handle.engine_name} engine does not tell what it has cached"
        )
    return ChangeStream(exchange, blocks.changes())


class ChangeStream(Response):
    """Sends changes until the client leaves or the server goes down."""

    def __init__(self, exchange: Exchange, changes: AsyncGenerator[list[Change], None]) -> None:
        self._exchange = exchange
        self._changes = changes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ingress = self._exchange.ingress
        await send({"type": "http.response.start", "status": 200, "headers": []})
        # Nobody waits for the end of this one: it is the first thing to end when the server drains.
        try:
            async with (
                Interrupt(self._exchange.request.receive, ingress.watchers),
                aclosing(self._changes) as source,
            ):
                async for changes in source:
                    await send(
                        {"type": "http.response.body", "body": framed(changes), "more_body": True}
                    )
        except ClientGoneError:
            pass
        except ShuttingDownError:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


# Version 1
async def call(exchange: Exchange) -> Response:
    """Call a task of the engine in the neutral types."""
    name = exchange.request.path_params["task"]
    body = await exchange.read()
    handle = (await exchange.find("")).handle
    task, request = decoded(name, body)
    if task.streams:
        return EventStream(exchange, generated(handle, request), CallFramer(), n=request.n)
    result = await exchange.wait(getattr(handle, name)(request))
    return Response(pack(result), media_type="application/msgpack")


async def group(exchange: Exchange) -> Response:
    """Answer the calls of a group side by side."""
    body = await exchange.read()
    handle = (await exchange.find("")).handle
    try:
        calls = msgspec.msgpack.decode(body, type=list[tuple[str, Raw]])
    except msgspec.DecodeError:
        raise RequestError("the body is no group of calls") from None

    async def answer(number: int, name: str, given: Raw) -> bytes:
        try:
            task, request = decoded(name, given)
            if task.streams:
                result: Any = await anext(whole(generated(handle, request)), [])
            else:
                result = await getattr(handle, name)(request)
            return framed(("result", number, result))
        except Exception as caught:
            error = as_penstock_error(caught, exchange.id)
            return framed(("error", number, error.kind, str(error)))

    answers = (answer(number, *one) for number, one in enumerate(calls))
    return Response(b"".join(await exchange.wait(asyncio.gather(*answers))))


ENDPOINT = CALL_PATH + "{task}"
"""How metrics call a call, however it came."""
ENDPOINTS = (
    Endpoint("POST", "/penstock/control", control.act_here, control.ReplicaControlBody, admin=True),
    Endpoint("GET", CACHED_PATH, cached),
    Endpoint("POST", ENDPOINT, call, runs=True),
    Endpoint("POST", "/penstock/group", group),
)
