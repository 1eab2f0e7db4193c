"""Responses that run in the background of this server, and their events."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from penstock.errors import (
    ClientGoneError,
    NotStoredError,
    PenstockError,
    TooManyRequestsError,
)
from penstock.openai.response_events import response_error_events
from penstock.serve.api.exchange import Exchange, IngressState
from penstock.serve.api.sse import STREAM_HEADERS
from penstock.serve.store.responses import (
    CONTINUED,
    RUNNING,
    ResponseStore,
    StoredResponse,
    Turn,
)

_log = logging.getLogger("penstock.serve")
POLL_S = 1.0
"""How often a server checks whether another one has cancelled a response that it runs."""
_END = re.compile(rb"^event: response\.(?:completed|incomplete|failed)\ndata: (.*)$", re.MULTILINE)
_NUMBER = re.compile(rb'"sequence_number":(\d+)')


def final_response(events: bytes) -> dict[str, Any] | None:
    """The response in the last of these events; None if they do not end the stream."""
    found = _END.search(events)
    if found is None:
        return None
    response: dict[str, Any] = msgspec.json.decode(found[1])["response"]
    return response


class Run:
    """A response under way. `events` has the events so far, each as it is sent. `changed` is set
    and replaced when there are more events, and at the end.
    """

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.events: list[bytes] = []
        self.changed = asyncio.Event()
        self.ended = False
        self.task: asyncio.Task[None]
        self._refusal = b""
        self._status = 0

    def notify(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def receive(self, message: Message) -> None:
        """Take in a message that the response sends."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
        elif self._status == 200:
            parts = message.get("body", b"").split(b"\n\n")
            self.events += [part + b"\n\n" for part in parts if part]
            self.notify()
        else:
            self._refusal += message.get("body", b"")

    async def parts(self, after: int = -1) -> AsyncGenerator[bytes, None]:
        """The events after the number `after`, as they come, until the response has ended."""
        sent = 0
        while True:
            changed, ended, fresh = self.changed, self.ended, self.events[sent:]
            sent += len(fresh)
            if part := _behind(fresh, after):
                yield part  # events may come meanwhile: the client may read slowly
            if ended:
                return
            await changed.wait()

    def result(self) -> dict[str, Any]:
        """The response as it ended."""
        if self.events and (final := final_response(self.events[-1])) is not None:
            return final
        code, message = "server_error", "the answer broke off"
        with suppress(msgspec.DecodeError, KeyError, TypeError):
            about = msgspec.json.decode(self._refusal or self.events[-1].partition(b"data: ")[2])
            message = about.get("error", about)["message"]
            if 400 <= self._status < 500:
                code = "rate_limit_exceeded" if self._status == 429 else "invalid_prompt"
        error = {"code": code, "message": message}
        return {**self.turn.body, "status": "failed", "error": error}


class BackgroundRuns:
    """The responses that this server runs in the background. They count as requests under way: a
    shutdown waits for them, then ends them as failed.
    """

    def __init__(self, ingress: IngressState, store: ResponseStore) -> None:
        self._ingress = ingress
        self._store = store
        self._runs: dict[str, Run] = {}
        self._watch: asyncio.Task[None] | None = None

    def check_room(self) -> None:
        """Raise `TooManyRequestsError` if no further response may run."""
        most = self._store.settings.max_background
        if len(self._runs) >= most:
            raise TooManyRequestsError(f"{most} background responses run, as many as may")

    async def start(self, work: Exchange, answer: Response, turn: Turn) -> Run:
        """Store a queued response, and begin to run it. `answer` streams it, for `work`, which the
        run finishes. Raises `TooManyRequestsError` as `check_room`.
        """
        self.check_room()  # other responses may have started since the caller checked
        run = self._runs[turn.id] = Run(turn)
        try:
            await self._store.add_running(turn)
        except BaseException:
            self._forget(run)
            raise
        self._ingress.begin()
        run.task = asyncio.create_task(self._run(run, work, answer))
        if self._watch is None:
            self._watch = asyncio.create_task(self._watch_others())
        return run

    def stop(self, id: str) -> None:
        """End a response that was cancelled or deleted in the store, if it runs here."""
        if (run := self._runs.get(id)) is not None:
            run.task.cancel()

    async def _run(self, run: Run, work: Exchange, answer: Response) -> None:
        begun = False

        async def send(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                work.status = message["status"]
            elif not begun and work.status == 200:
                begun = True
                await self._store.begin(run.turn.id)
            run.receive(message)

        try:
            await answer(work.request.scope, work.request.receive, send)
            await self._store.finish(run.turn.id, run.result(), run.events)
        except Exception as error:
            _log.error("background response %s could not be stored", run.turn.id, exc_info=error)
        finally:
            self._forget(run)
            run.ended = True
            run.notify()
            work.status = work.status or ClientGoneError.status  # cancelled before it began
            work.finish()
            self._ingress.end()

    def _forget(self, run: Run) -> None:
        del self._runs[run.turn.id]
        self._store.running.discard(run.turn.id)
        if not self._runs and self._watch is not None:
            self._watch.cancel()
            self._watch = None

    async def _watch_others(self) -> None:
        """End responses that other servers of the same store have cancelled or deleted."""
        while True:
            await asyncio.sleep(POLL_S)
            with suppress(PenstockError):
                for id in await self._store.stopped(list(self._runs)):
                    self.stop(id)

    async def events(
        self, owner: str, stored: StoredResponse, after: int
    ) -> AsyncGenerator[bytes, None]:
        """The events of a background response after the number `after`, until it has ended."""
        id = stored.body["id"]
        if (run := self._runs.get(id)) is not None:
            async for part in run.parts(after):
                yield part
            return
        while stored.status in RUNNING:  # on another server, which stores the events at the end
            await asyncio.sleep(POLL_S)
            stored = await self._store.response(owner, id)
        yield _behind(stored.events, after)


def _behind(events: list[bytes], after: int) -> bytes:
    """The events after the number `after`. An error that breaks a stream off has no number, and is
    the last event.
    """
    if after < 0:
        return b"".join(events)
    return b"".join(
        event
        for event in events
        if (found := _NUMBER.search(event)) is None or int(found[1]) > after
    )


class EventsOf(Response):
    """Sends events to a client that may leave: the response goes on without it."""

    def __init__(self, exchange: Exchange, events: AsyncGenerator[bytes, None]) -> None:
        self._exchange = exchange
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = self._exchange
        await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
        last = b""
        try:
            async with exchange.interrupt() as interrupt, aclosing(self._events) as events:
                async for part in events:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                interrupt.finished()
        except ClientGoneError as gone:
            exchange.status, exchange.error = gone.status, gone.kind
            return
        except Exception as caught:
            last = response_error_events(exchange.failed(caught))
        await send({"type": "http.response.body", "body": last, "more_body": False})


class Kept(Response):
    """Passes another response on, and stores the final response before the client sees it. If the
    request says `store` false, only its conversation gets the output.
    """

    def __init__(self, answer: Response, turn: Turn, store: ResponseStore, *, whole: bool) -> None:
        self._answer = answer
        self._turn = turn
        self._store = store
        self._whole = whole
        """Whether the answer is one JSON body, rather than a stream of events."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        held: list[Message] = []
        status = 0

        async def keep(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            body = None
            if self._whole:
                held.append(message)
                if message["type"] == "http.response.start" or message.get("more_body"):
                    return
                if status == 200:
                    body = msgspec.json.decode(b"".join(one.get("body", b"") for one in held))
            elif status == 200:
                body = final_response(message.get("body", b""))
            if body is not None:
                await self._keep(body)
            for one in held or [message]:
                await send(one)

        await self._answer(scope, receive, keep)

    async def _keep(self, body: dict[str, Any]) -> None:
        turn = self._turn
        if body["store"]:
            await self._store.add(msgspec.structs.replace(turn, body=body))
        elif turn.conversation is not None and body["status"] in CONTINUED:
            with suppress(NotStoredError):  # it was deleted meanwhile
                await self._store.add_items(
                    turn.owner, turn.conversation, [*turn.input, *body["output"]]
                )
