"""Sends requests and maps failures to `penstock.errors`. Only this file knows aiohttp."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from io import BytesIO
from types import TracebackType
from typing import Any, NamedTuple

import aiohttp
from msgspec import Struct
from yarl import URL

from penstock.balance.backoff import WORTH_TELLING_S, span
from penstock.balance.limiter import Limiter, Verdict
from penstock.config import Seconds
from penstock.errors import (
    ConfigError,
    EngineDeadError,
    EngineTimeoutError,
    PenstockError,
    UpstreamError,
)
from penstock.http.complaints import KEPT_CHARS, SHOWN_CHARS, complaint
from penstock.http.endpoint import Endpoint, Headers
from penstock.http.retries import is_retryable, is_throttling, retry_after

KEPT_ALIVE_S = 4.0
"""Keep-alive of an idle connection. Common servers close theirs after 5 s, and lose a request that
meets the close.
"""
_JSON = "application/json"
LARGE_BYTES = 1 << 20
"""Larger bodies are written in pieces, so that one request does not hold up the others."""


class Timeouts(Struct, frozen=True, kw_only=True):
    """In seconds: `connect_s` bounds a connection, `idle_s` the wait for the first and for each
    next piece of an answer, `try_s` one whole try (None: no limit of its own).
    """

    connect_s: Seconds = 10.0
    idle_s: Seconds | None = None
    try_s: Seconds | None = 300.0


class Reply(NamedTuple):
    """A successful answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpClient:
    """A session with one server, or with several that get the same headers: `await open()`, use
    it, `await close()`.

    `session_factory` makes the aiohttp session (default: one without a limit of its own); the
    client closes it. Answers of more than `max_body_bytes` are refused.
    """

    def __init__(
        self,
        headers: Headers,
        *,
        timeouts: Timeouts | None = None,
        max_body_bytes: int = 64 << 20,
        session_factory: Callable[[], aiohttp.ClientSession] | None = None,
    ) -> None:
        given = timeouts or Timeouts()
        self._headers = headers
        # For JSON bodies only: a multipart body brings its own type, with its boundary.
        self._json = next(
            (value for name, value in headers.values.items() if name.lower() == "content-type"),
            _JSON,
        )
        self._values = {
            name: value for name, value in headers.values.items() if name.lower() != "content-type"
        }
        self._timeout = aiohttp.ClientTimeout(
            given.try_s, sock_connect=given.connect_s, sock_read=given.idle_s
        )
        self._without_total = aiohttp.ClientTimeout(
            None, sock_connect=given.connect_s, sock_read=given.idle_s
        )
        self._in_time: AbstractContextManager[None] = nullcontext()
        self._max_body_bytes = max_body_bytes
        self._make_session = session_factory or self._own_session
        # Else the session has them.
        self._each_time = self._values if session_factory is not None else None
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Make the session. Raises `ConfigError` if `session_factory` makes anything else."""
        if self._session is None:
            session: Any = self._make_session()
            if not hasattr(session, "request"):
                made = type(session).__name__
                raise ConfigError(
                    f"must make an aiohttp session, not a {made}", field="session_factory"
                )
            self._session = session
            if self._timeout.total is not None:
                self._in_time = Deadline(self._timeout.total)

    async def close(self) -> None:
        """Close the session; idempotent. Requests under way end with `EngineDeadError`."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def __repr__(self) -> str:
        return f"HttpClient({self._headers!r})"

    async def send(
        self,
        to: Endpoint,
        limiter: Limiter,
        *,
        data: Any = None,
        headers: Mapping[str, str] | None = None,
        tokens: float = 0.0,
    ) -> Reply:
        """One try. `data` as bytes is JSON.

        Raises `UpstreamError` for a lost connection or a status other than 2xx,
        `EngineTimeoutError` after a timeout.
        """
        # Calling `stream`, or entering aiohttp's own context, would cost a batch some 5 % of its
        # time each.
        ticket = limiter.try_acquire() or await limiter.acquire(tokens)
        verdict: Verdict = "unknown"
        pause = None
        try:
            with self._in_time:
                response = await self._open(to, data, headers, self._without_total)
                content = response.content
                # Reading to the end returns the connection to the pool; else it is closed. Most
                # answers have arrived whole.
                body = content.read_nowait() if content.is_eof() else await self._read(response, to)
                if len(body) > self._max_body_bytes:
                    raise self._too_large(response, to)
            verdict = "answered"
            if 200 <= response.status < 300:
                return Reply(response.status, response.headers, body)
            error = self._refusal(response, body, to)
            pause = error.retry_after
            limiter.charge(-tokens)  # it used none
            if is_throttling(error):
                verdict = "throttled"
            raise error
        except PenstockError:
            raise
        except Exception as error:
            if isinstance(error, TimeoutError):
                verdict = "late"
            raise self._failure(error, to) from None
        finally:
            limiter.release(ticket, verdict, pause)

    def not_json(self, reply: Reply, to: Endpoint) -> UpstreamError:
        """The error for an answer that is not JSON, without keys that it repeats."""
        kind = reply.headers.get("content-type", "an unnamed type")
        why = f"{to.shown} answered {reply.status} with {kind}, not JSON"
        return UpstreamError(
            why, http_status=reply.status, body=self._text(reply.body, to)[:KEPT_CHARS]
        )

    def without_keys(self, error: UpstreamError, to: Endpoint) -> UpstreamError:
        """Returns another reader's error, without keys that the server repeated."""
        error.args = (self._headers.scrub(str(error), to.secrets),)
        error.body = self._headers.scrub(error.body, to.secrets)
        return error

    @asynccontextmanager
    async def stream(
        self,
        to: Endpoint,
        limiter: Limiter,
        *,
        data: Any = None,
        headers: Mapping[str, str] | None = None,
        tokens: float = 0.0,
    ) -> AsyncIterator[AsyncGenerator[bytes, None]]:
        """One try whose answer is read as it arrives: yields the pieces. Leaving the context early
        ends the request.

        Raises as `send` does, from the pieces too. The request holds its place in the limiter
        until the end.
        """
        ticket = await limiter.acquire(tokens)
        verdict: Verdict = "unknown"
        pause = None
        try:
            async with self._open(to, data, headers, self._timeout) as response:
                if not 200 <= response.status < 300:
                    error = self._refusal(response, await self._read(response, to), to)
                    pause, verdict = error.retry_after, "answered"
                    limiter.charge(-tokens)  # it used none
                    raise error
                verdict = "answered"
                pieces = self._pieces(response, to)
                try:
                    yield pieces
                finally:
                    await pieces.aclose()
                    if not response.content.at_eof():
                        # The server has to stop, so the connection cannot be used again.
                        response.close()
        except PenstockError as error:
            if is_throttling(error):  # a stream may carry it, too
                verdict = "throttled"
            raise
        except (aiohttp.ClientError, TimeoutError, OSError) as caught:
            if isinstance(caught, TimeoutError):
                verdict = "late"
            raise self._failure(caught, to) from None
        finally:
            limiter.release(ticket, verdict, pause)

    def _open(
        self,
        to: Endpoint,
        data: Any,
        headers: Mapping[str, str] | None,
        timeout: aiohttp.ClientTimeout,
    ) -> Any:
        session = self._session
        if session is None:
            raise EngineDeadError(f"{to.shown}: the connection was closed", suspects=False)
        if self._each_time is not None:
            headers = self._each_time if headers is None else {**self._each_time, **headers}
        if isinstance(data, bytes):
            if len(data) < LARGE_BYTES:
                data = aiohttp.BytesPayload(data, content_type=self._json)
            else:
                data = aiohttp.BytesIOPayload(BytesIO(data), content_type=self._json)
        options: dict[str, Any] = {"data": data, "headers": headers, "timeout": timeout}
        # A user's own session has its own headers, and may raise for a status.
        if self._each_time is not None:
            options["raise_for_status"] = False
        elif to.proxy is not None:
            options["proxy"] = to.proxy
        # A redirect would carry the body, and headers with keys, to an address that nobody
        # configured.
        return session.request(to.method, to.url, allow_redirects=False, **options)

    def _own_session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_ALIVE_S)
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._values,
            timeout=self._timeout,
        )

    async def _read(self, response: aiohttp.ClientResponse, to: Endpoint) -> bytes:
        body = bytearray()
        try:
            if (response.content_length or 0) > self._max_body_bytes:
                raise self._too_large(response, to)
            async for part in response.content.iter_any():
                body += part
                if len(body) > self._max_body_bytes:
                    raise self._too_large(response, to)
        finally:
            if not response.content.at_eof():
                response.close()
        return bytes(body)

    def _too_large(self, response: aiohttp.ClientResponse, to: Endpoint) -> UpstreamError:
        return UpstreamError(
            f"{to.shown} answered with more than {self._max_body_bytes} bytes",
            http_status=response.status,
        )

    async def _pieces(
        self, response: aiohttp.ClientResponse, to: Endpoint
    ) -> AsyncGenerator[bytes, None]:
        content = response.content
        try:
            while piece := await content.readany():
                yield piece
        # RuntimeError: aiohttp raises it for a connection closed between two reads
        except (aiohttp.ClientError, TimeoutError, OSError, RuntimeError) as error:
            raise self._failure(error, to) from None

    def _text(self, body: bytes, to: Endpoint) -> str:
        return self._headers.scrub(body[: 4 * KEPT_CHARS].decode(errors="replace"), to.secrets)

    def _refusal(
        self, response: aiohttp.ClientResponse, body: bytes, to: Endpoint
    ) -> UpstreamError:
        status = response.status
        text = self._text(body, to)
        found = complaint(text)
        why = found.line or response.reason or ""
        if 300 <= status < 400:
            why = "redirects are not followed"
            with suppress(ValueError):
                target = URL(response.headers.get("location", ""))
                bare = str(target.with_query(None).with_fragment(None))
                why += f"; it names {self._headers.scrub(bare, to.secrets)}"
        pause = retry_after(response.headers)
        if pause is None:
            pause = found.retry_after
        if pause is not None and pause >= WORTH_TELLING_S:
            why += f" (it asks for a pause of {span(pause)})"
        return UpstreamError(
            f"{to.shown} answered {status}: {why}",
            http_status=status,
            body=text[:KEPT_CHARS],
            retryable=is_retryable(status) and not found.is_final,
            retry_after=pause,
        )

    def _failure(self, error: BaseException, to: Endpoint) -> PenstockError:
        if self._session is None:
            return EngineDeadError(f"{to.shown}: the connection was closed", suspects=False)
        found: UpstreamError | EngineTimeoutError
        if isinstance(error, TimeoutError):
            limits = self._timeout
            reached = not isinstance(error, aiohttp.ConnectionTimeoutError)
            known = [limits.sock_read, limits.total] if reached else [limits.sock_connect]
            seconds = min((one for one in known if one is not None), default=None)
            within = "" if seconds is None else f" within {seconds:g} s"
            found = EngineTimeoutError(
                f"{to.shown}: no {'answer' if reached else 'connection'}{within}"
            )
        else:
            why, passing, reached = _what_broke(error)
            found = UpstreamError(
                f"{to.shown}: {self._headers.scrub(why, to.secrets)}", retryable=passing
            )
        found.reached = reached
        return found


def _what_broke(error: BaseException) -> tuple[str, bool, bool]:
    """The error's description, whether a retry may help, and whether a connection existed."""
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno or 0  # negative if a name cannot be resolved
        reason = (
            os.strerror(number) if number > 0 else error.os_error.strerror or str(error.os_error)
        )
        what = "its proxy " if isinstance(error, aiohttp.ClientProxyConnectionError) else ""
        passing = not isinstance(error, aiohttp.ClientConnectorCertificateError)
        return f"{what}cannot be reached: {reason}", passing, False
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return (
            f"its proxy answered {error.status}: {error.message}",
            is_retryable(error.status),
            False,
        )
    if _undecodable(error):
        return "the answer is not in the encoding that its headers name", False, True
    if isinstance(error, aiohttp.ClientResponseError):  # its text would show the whole address
        return (
            f"the answer is not HTTP: {' '.join(error.message.split())[:SHOWN_CHARS]}",
            False,
            True,
        )
    if isinstance(
        error, (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError, RuntimeError)
    ):
        return "the connection was lost", True, True
    return f"{type(error).__name__}: {error}", False, True


def _undecodable(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, aiohttp.http_exceptions.ContentEncodingError):
            return True
        error = error.__cause__ or error.__context__
    return False


def multipart(fields: Mapping[str, Any]) -> aiohttp.FormData:
    """A multipart body of texts and files. A list of texts is one field for each. A file is bytes,
    or a mapping with bytes or an open file as `content` and, if known, `filename` and
    `content_type`. The body can be sent once.
    """
    data = aiohttp.FormData()
    for name, value in fields.items():
        if isinstance(value, str | list):
            for text in [value] if isinstance(value, str) else value:
                data.add_field(name, text)
            continue
        file = value if isinstance(value, Mapping) else {"content": value}
        kind = file.get("content_type") or "application/octet-stream"
        content = file["content"]
        data.add_field(
            name,
            BytesIO(content) if isinstance(content, bytes | bytearray) else content,
            filename=file.get("filename") or name,
            content_type=kind,
        )
    return data


class Deadline:
    """Within `with deadline:` a task has `seconds`; then it gets a `TimeoutError`, as
    `asyncio.timeout` raises it.

    One object serves all tasks of an event loop. A task may enter it once at a time.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        # In order of expiry: all tasks have the same limit.
        self._running: dict[asyncio.Task[Any], tuple[float, int]] = {}
        self._late: dict[asyncio.Task[Any], int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        task = asyncio.current_task(self._loop)
        assert task is not None
        at = self._loop.time() + self._seconds
        self._running[task] = at, task.cancelling()
        if self._timer is None:
            self._timer = self._loop.call_at(at, self._look)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        task = asyncio.current_task(self._loop)
        assert task is not None
        if self._running.pop(task, None) is None:
            cancellations = self._late.pop(task)
            # A task that somebody else has cancelled as well stays cancelled.
            if task.uncancel() <= cancellations and kind is asyncio.CancelledError:
                raise TimeoutError from error

    def _look(self) -> None:
        now = self._loop.time()
        self._timer = None
        for task, (at, cancellations) in list(self._running.items()):
            if at > now:
                self._timer = self._loop.call_at(at, self._look)
                return
            del self._running[task]
            self._late[task] = cancellations
            task.cancel()
