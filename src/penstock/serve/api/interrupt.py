"""Ends a request's wait from outside: its client left, or the server goes down."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from types import TracebackType
from typing import Any

from penstock.errors import ClientGoneError, PenstockError

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class Interrupt:
    """A context whose body `fire(error)` ends: what the body awaits is cancelled, and the context
    raises `error`.

    It also ends when the client leaves, if `receive` is given; the request's body must have been
    read before. `live` is the set of interrupts that the server fires when it stops waiting for its
    requests.
    """

    def __init__(self, receive: Receive | None, live: set[Interrupt]) -> None:
        self._receive = receive
        self._live = live
        self._reason: PenstockError | None = None
        self._finished = False
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Interrupt:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        if self._receive is not None:
            self._watch = asyncio.create_task(self._watch_client(self._receive))
        self._live.add(self)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.finished()
        if self._reason is None:
            return
        others = self._task.uncancel()
        if isinstance(error, asyncio.CancelledError) and not others:
            raise self._reason from None

    def fire(self, error: PenstockError) -> None:
        """End the body with `error`. Has no effect if the body has finished or was ended before."""
        if not self._finished and self._reason is None:
            self._reason = error
            self._task.cancel()

    def finished(self) -> None:
        """The answer is complete: from now on nothing interrupts, not even that the client
        leaves.
        """
        self._finished = True
        self._live.discard(self)
        if self._watch is not None:
            self._watch.cancel()

    async def _watch_client(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.fire(ClientGoneError("the client closed the connection"))
