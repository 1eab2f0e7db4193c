"""Asks an ASGI application in this process, as a client would over HTTP: for a server in Ray's
form, its own model's HTTP API.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Scope

from penstock.errors import PenstockError, by_kind
from penstock.serve.compat.forms import METHODS, body_of, form_of, headers_of, raw_headers
from penstock.serve.compat.hosts import Hosts

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
        "headers": raw_headers(headers),
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


async def answers(
    api_of: Callable[[], ASGIApp],
    method: str,
    request: Any,
    raw: Any,
    runtime: Hosts | None,
    in_lists: bool,
) -> AsyncGenerator[Any, None]:
    """What the HTTP API answers to a request for a method of Ray's servers, in Ray's form: lists of
    events, one response object, or an error object. The error of a stream is in a list too, with
    `in_lists`. Raises what `api_of()` raises.
    """
    from penstock.serve.compat import models  # needs pydantic, so only where it is used

    api = api_of()
    try:
        scope, content = _asked(method, request, raw, runtime)
    except PenstockError as error:
        yield models.error_answer(error)
        return
    answer = await ask(api, scope, content)
    kind = answer.headers.get("content-type", "")
    if answer.status == 200 and kind.startswith("text/event-stream"):
        async with aclosing(answer.parts()) as parts:
            async for part in parts:
                yield [f"{event}\n\n" for event in part.decode().split("\n\n") if event]
        return
    body = await answer.whole()
    if answer.status != 200:
        given = json.loads(body)["error"]
        refusal = by_kind(given["code"], given["message"], given.get("param"))
        refusal.status = answer.status
        failure = models.error_answer(refusal)
        yield [failure] if in_lists and _streams(request) else failure
    elif kind.startswith("application/json"):
        yield models.RESPONSES[method].model_validate_json(body)
    else:  # a transcription as text or subtitles
        yield models.TranscriptionResponse(text=body.decode())


def _asked(
    method: str, request: Any, raw: Any, runtime: Hosts | None
) -> tuple[dict[str, Any], bytes]:
    """The scope and the body that ask the HTTP API. Raises `RequestError`."""
    if method == "transcriptions" and not isinstance(request, Mapping):
        request = request.model_dump(exclude_unset=True)  # its file is no JSON
    body = body_of(request)
    id = body.pop("request_id", None) or (runtime.request_id() if runtime else None)
    if runtime is not None and (adapter := runtime.adapter()):
        body["model"] = adapter
    headers = headers_of(raw, id)
    if method == "transcriptions":
        kind, content = form_of(body)
    else:
        kind, content = "application/json", msgspec.json.encode(body)
    headers.append(("content-type", kind))
    return scope_of(METHODS[method], headers), content


def _streams(request: Any) -> bool:
    given = request.get("stream") if isinstance(request, Mapping) else request.stream
    return bool(given)
