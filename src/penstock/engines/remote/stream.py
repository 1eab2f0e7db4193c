"""Reads one streamed answer from a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, suppress
from typing import Any

from penstock.engines.remote.answers import StreamReader
from penstock.engines.remote.upstreams import Upstream
from penstock.errors import EngineDeadError, EngineTimeoutError, UpstreamError
from penstock.http.event_stream import EventReader
from penstock.types import Delta

TRAILER_S = 0.25
"""How long to read on after a finished answer, so that its connection can be reused."""


class AnswerStream:
    """One streamed answer. `held` is the open request: closing it ends the request."""

    def __init__(
        self,
        held: AsyncExitStack,
        pieces: AsyncGenerator[bytes, None],
        reader: StreamReader,
        upstream: Upstream,
        tokens: float,
    ) -> None:
        self.held = held
        self._pieces = pieces
        self._events = EventReader()
        self._reader = reader
        self._upstream = upstream
        self._tokens = tokens
        self._first: list[Delta] = []
        self._error: Exception | None = None

    async def begin(self) -> None:
        """Read until the first delta."""
        while not self._first and not self._reader.ended:
            self._first = await self._more()

    async def batches(self) -> AsyncGenerator[list[Delta], None]:
        """Yield the deltas as they arrive, one list a network read."""
        deltas = self._first
        while True:
            if deltas:
                if self._tokens and deltas[-1].usage is not None:
                    charge(self._upstream, deltas[-1], self._tokens)
                    self._tokens = 0.0
                yield deltas
            if self._reader.ended:
                break
            try:
                deltas = await self._more()
            except Exception as error:
                self._error = error
                raise

    async def aclose(self) -> None:
        """End the request. Reads a finished stream to its very end first, so that its connection
        can be reused.
        """
        try:
            async with self.held:  # the exit sees the error, which counts against the server
                if self._error is not None:
                    raise self._error
                if self._reader.ended:
                    await self._read_trailer()
        except Exception as error:
            if error is not self._error:
                raise

    async def _read_trailer(self) -> None:
        with suppress(TimeoutError, UpstreamError, EngineTimeoutError, EngineDeadError):
            async with asyncio.timeout(TRAILER_S):
                async for _ in self._pieces:
                    pass

    async def _more(self) -> list[Delta]:
        piece = await anext(self._pieces, None)
        if piece is None:
            return self._last()
        try:
            deltas = self._reader.feed(self._events.feed(piece))
        except ValueError as error:
            raise UpstreamError(f"{self._upstream.shown} sent {error}") from None
        if self._events.error and not self._reader.ended:
            self._reader.fail(self._events.error)
        return deltas

    def _last(self) -> list[Delta]:
        """The deltas after the connection's end: of a last event without an end, or of an answer
        that is no stream.
        """
        rest, found = self._events.rest(), []
        if rest and not self._reader.ended:
            if self._events.is_json:
                return self._reader.whole(rest)
            with suppress(UpstreamError):  # half an event
                found = self._reader.feed([rest])
        if self._events.error and not self._reader.ended:
            self._reader.fail(self._events.error)
        return found + self._reader.close(self._events.stray)


def charge(upstream: Upstream, answer: Any, estimate: float) -> None:
    """Correct the limiter's estimate of tokens if the answer states the true number."""
    usage = getattr(answer, "usage", None)
    if usage is not None and (used := usage.prompt_tokens + usage.completion_tokens):
        upstream.limiter.charge(used - estimate)
