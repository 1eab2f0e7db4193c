"""Asks an ASGI application in this process, as a client would over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Scope

READ_AHEAD = 2
"""Parts of an answer that wait for their reader; then the application waits."""


def scope_of(
    path: str, headers: Iterable[tuple[str, str]] = (), *, method: str = "POST"
) -> dict[str, Any]:
    """The ASGI scope of a request from this process."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
        "client": None,
        "server": None,
    }


class Answer:
    """An answer whose head is here. Close its parts, or read them to the end."""

    def __init__(self, app: ASGIApp, scope: Scope, body: bytes) -> None:
        self._body: bytes | None = body
        self._gone = asyncio.Event()
        self._messages: asyncio.Queue[Message | Exception | None] = asyncio.Queue(READ_AHEAD)
        self._task = asyncio.create_task(self._run(app, scope))
        self.status = 0
        self.headers = Headers()

    async def begin(self) -> Answer:
        """Wait for the head. Raises what the application raises."""
        try:
            start = await self._next()
        except BaseException:
            await self.close()
            raise
        if start is None:
            raise RuntimeError("the application gave no answer")
        self.status = start["status"]
        self.headers = Headers(raw=[tuple(pair) for pair in start.get("headers", ())])
        return self

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """The body, part by part. Closing this early is a client that leaves."""
        try:
            more = True
            while more and (message := await self._next()) is not None:
                if part := message.get("body", b""):
                    yield part
                more = message.get("more_body", False)
            await self._task  # its resources are free when the caller has the whole answer
        finally:
            await self.close()

    async def whole(self) -> bytes:
        return b"".join([part async for part in self.parts()])

    async def close(self) -> None:
        """End the request, wherever it is."""
        self._gone.set()
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _next(self) -> Message | None:
        message = await self._messages.get()
        if isinstance(message, Exception):
            raise message
        return message

    async def _run(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self._receive, self._messages.put)
        except Exception as error:
            await self._messages.put(error)
        else:
            await self._messages.put(None)

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}


async def ask(app: ASGIApp, scope: Scope, body: bytes) -> Answer:
    """The answer of `app`, as soon as it has begun."""
    return await Answer(app, scope, body).begin()
