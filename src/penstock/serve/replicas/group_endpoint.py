"""A group of calls, each answered as soon as it is there."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from penstock.engines.tasks import TASKS, generated
from penstock.errors import ClientGoneError, PenstockError, RequestError
from penstock.kv.cached_blocks import PROMPT_BLOCKS
from penstock.openai.responses import UsageTotal
from penstock.serve.api.errors import as_penstock_error, error_response, log_unforeseen
from penstock.serve.api.exchange import Exchange
from penstock.serve.models.handle import ModelHandle
from penstock.serve.models.pacing import joined
from penstock.serve.replicas.calls import framed, pack
from penstock.serve.replicas.grouped_calls import CallFailure, CallResult, GroupedCall
from penstock.types import Delta, Usage


async def group(exchange: Exchange) -> Response:
    """Answer the calls of a group side by side."""
    body = await exchange.read()
    target = await exchange.target("")
    try:
        calls = msgspec.msgpack.decode(body, type=list[GroupedCall])
    except msgspec.DecodeError:
        raise RequestError("the body is no group of calls") from None
    return GroupResponse(exchange, target.handle, calls)


class GroupResponse(Response):
    """Sends each call's frame when it has ended, those that end together in one write."""

    def __init__(self, exchange: Exchange, handle: ModelHandle, calls: list[GroupedCall]) -> None:
        self._exchange = exchange
        self._handle = handle
        self._calls = calls
        self._left = set(range(len(calls)))
        self._ended: list[bytes] = []
        self._news = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = self._exchange
        tasks: list[asyncio.Task[None]] = []
        begun = False
        try:
            async with exchange.interrupt() as interrupt:
                tasks = [
                    asyncio.create_task(self._run(*numbered)) for numbered in enumerate(self._calls)
                ]
                await asyncio.sleep(0)  # so that they count when the head tells of the load
                begun = True
                await send({"type": "http.response.start", "status": 200, "headers": []})
                more = True
                while more:
                    if self._left:
                        await self._news.wait()
                    self._news.clear()
                    chunk, more = self._taken(), bool(self._left)
                    if not more:
                        interrupt.finished()
                    await send({"type": "http.response.body", "body": chunk, "more_body": more})
        except ClientGoneError as gone:
            exchange.status, exchange.error = gone.status, gone.kind
        except PenstockError as error:  # the server goes down
            exchange.error = error.kind
            if not begun:
                await error_response(scope["path"], error)(scope, receive, send)
                return
            for number in sorted(self._left):
                self._end(number, CallFailure(number, error.kind, str(error)))
            await send({"type": "http.response.body", "body": self._taken(), "more_body": False})
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _taken(self) -> bytes:
        ended, self._ended = self._ended, []
        return b"".join(ended)

    def _end(self, number: int, told: CallResult | CallFailure) -> None:
        if number in self._left:
            self._left.discard(number)
            self._ended.append(framed(told))
            self._news.set()

    async def _run(self, number: int, call: GroupedCall) -> None:
        if number:
            PROMPT_BLOCKS.set(())  # the router has named the blocks of the first call's prompt
        try:
            result = msgspec.Raw(pack(await self._result(call)))
        except Exception as caught:
            error = as_penstock_error(caught)
            log_unforeseen(error, caught, self._exchange.id)
            self._end(number, CallFailure(number, error.kind, str(error)))
        else:
            self._end(number, CallResult(number, result))

    async def _result(self, call: GroupedCall) -> Any:
        task = TASKS.get(call.task)
        if task is None:
            raise RequestError(f"there is no task '{call.task[:50]}'", param="task")
        try:
            request: Any = msgspec.msgpack.decode(call.request, type=task.request)
        except msgspec.DecodeError:
            raise RequestError("the request is not of its task's form") from None
        if not task.streams:
            result = await getattr(self._handle, call.task)(request)
            self._count(getattr(result, "usage", Usage()))
            return result
        answers: dict[int, list[Delta]] = {}
        total = UsageTotal(request.n)
        async with aclosing(generated(self._handle, request)) as batches:
            async for batch in batches:
                for delta in batch:
                    answers.setdefault(delta.index, []).append(delta)
                    if delta.finish_reason is not None:
                        total.add(delta)
        self._count(total.usage)
        return [joined(deltas) for deltas in answers.values()]

    def _count(self, usage: Usage) -> None:
        """Report a call's tokens to the metrics, where a group has no latency of its own."""
        metrics = self._exchange.ingress.metrics.of(self._handle.model_id)
        metrics.prompt_tokens.inc(usage.prompt_tokens)
        metrics.cached_tokens.inc(usage.cached_tokens)
        metrics.generation_tokens.inc(usage.completion_tokens)
