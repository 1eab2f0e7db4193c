"""A client's connection, with a timeout for the head of each request."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from penstock.errors import PenstockError, SlowRequestError
from penstock.openai.responses import error_body
from penstock.serve.config.settings import Limits


# Uvicorn chooses the class at import.
class HttpConnection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """Uvicorn's connection. It closes unless a request's head is complete within `head_timeout_s`
    of its start, and the first request begins within that time.
    """

    def __init__(
        self, *args: Any, head_timeout_s: float = Limits().head_timeout_s, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._head_timeout_s = head_timeout_s
        self._head_timer: asyncio.TimerHandle | None = None
        self._begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the timeout for the first request's head."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timeout for a head."""
        self._head_is_there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Restart or cancel the timeout for a head, whichever the data calls for."""
        self._begun = True
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._head_is_there()
        elif self._head_timer is None and not self.transport.is_closing():
            self._await_head()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self._head_timeout_s, self._too_slow)

    def _head_is_there(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        if self._begun and (self.cycle is None or self.cycle.response_complete):
            self.transport.write(_TOO_SLOW)
        self.transport.close()


def _answer(error: PenstockError) -> bytes:
    body = msgspec.json.encode(error_body(error))
    head = (
        f"HTTP/1.1 {error.status} Request Timeout\r\ncontent-type:"
        f" application/json\r\ncontent-length: {len(body)}"
    )
    return f"{head}\r\nconnection: close\r\n\r\n".encode() + body


_TOO_SLOW = _answer(SlowRequestError("the head of the request came too slowly"))
