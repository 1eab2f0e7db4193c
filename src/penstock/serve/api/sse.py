"""Sends an engine's deltas to the client: as events while they come, or as one answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from penstock.engines.side_by_side import all_of
from penstock.engines.tasks import Batches
from penstock.errors import ClientGoneError
from penstock.openai.framing import Framer
from penstock.openai.responses import Answers, UsageTotal
from penstock.serve.api.errors import error_response
from penstock.serve.api.exchange import Exchange
from penstock.types import Delta, Usage

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # asks nginx not to buffer events
]


class StreamUsage(UsageTotal):
    """The usage of a stream that may break off. Answers without an end count with the tokens that
    came, or the pieces where an engine gives no ids.
    """

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self._prompts: dict[int, Usage] = {}
        self._tokens: dict[int, int] = {}

    def take(self, batch: Sequence[Delta]) -> int:
        """Count deltas. Returns how many answers end with them."""
        tokens, ended = self._tokens, 0
        for delta in batch:
            index = delta.index
            if delta.finish_reason is not None:
                ended += 1
                tokens.pop(index, None)
                self.add(delta)
                continue
            if delta.usage is not None:
                self._prompts[index] = delta.usage
            came = len(delta.token_ids) or len(delta.chunks) or bool(delta.text)
            tokens[index] = tokens.get(index, 0) + came
        return ended

    def end(self) -> Usage:
        """The usage when no more deltas come."""
        for index, count in self._tokens.items():
            known = self._prompts.get(index, Usage())
            self._usages.append((index, known + Usage(completion_tokens=count)))
        return self.usage


class EventStream(Response):
    """Sends deltas as server-sent events.

    The response starts with the first delta. An earlier failure has an HTTP status of its own; a
    later one ends the stream with an error event. Deltas that the engine has ready go out in one
    write. `n` is the number of answers for each prompt, `prompts` the number of prompts.
    """

    def __init__(
        self, exchange: Exchange, batches: Batches, framer: Framer, *, n: int = 1, prompts: int = 1
    ) -> None:
        self._exchange = exchange
        self.batches = batches
        self._framer = framer
        self._open = n * prompts
        self._usage = StreamUsage(n)
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = self._exchange
        try:
            await self._run(send)
        except ClientGoneError as gone:
            exchange.status, exchange.error = gone.status, gone.kind
        except Exception as caught:
            error = exchange.failed(caught)
            if not self._begun:
                await error_response(scope, error, exchange.id)(scope, receive, send)
            else:
                await send(
                    {
                        "type": "http.response.body",
                        "body": self._framer.error(error),
                        "more_body": False,
                    }
                )
        finally:
            exchange.usage = self._usage.end()

    async def _run(self, send: Send) -> None:
        exchange, framer, clock = self._exchange, self._framer, time.perf_counter
        async with exchange.interrupt() as interrupt, aclosing(self.batches) as batches:
            more = True
            while more:
                asked = clock()
                batch: list[Delta] = await anext(batches, [])
                now = clock()
                exchange.engine_seconds += now - asked
                exchange.deltas += len(batch)
                self._open -= self._usage.take(batch)
                # A framer numbers its events, so the first events must be made first.
                chunk = b"" if self._begun else framer.open()
                chunk += b"".join([framer.frame(delta) for delta in batch])
                more = bool(batch) and self._open > 0
                if not more:
                    # Read to the end, so that the slot is free when the client has its full answer.
                    async for _ in batches:
                        pass
                    chunk += framer.close()
                    interrupt.finished()
                if not self._begun:
                    await send(
                        {"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS}
                    )
                    self._begun = True
                    exchange.first_token_at = now
                if chunk:
                    await send({"type": "http.response.body", "body": chunk, "more_body": more})


async def collect(exchange: Exchange, requests: Sequence[Batches]) -> list[Answers]:
    """The finished answers of concurrent requests. The first failure cancels the others."""
    answers = await exchange.wait(_collect_all(requests))
    exchange.usage = sum((one.usage for one in answers), Usage())
    return answers


async def _collect_all(requests: Sequence[Batches]) -> list[Answers]:
    if len(requests) == 1:
        return [await Answers.of(requests[0])]
    return await all_of(map(Answers.of, requests))
