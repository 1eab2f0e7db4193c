"""The load generator's HTTP client: one asyncio protocol that reads answers as they arrive.

It is written for its cost: a client library takes as long for a streamed token as a fast server
does. `penstock bench serve null` shows what it can do.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from penstock.errors import ConfigError

_MOST_HEAD_BYTES = 64 << 10
_SHOWN_CHARS = 200


@dataclass(slots=True)
class Sample:
    """One request. Times are those of `time.perf_counter`, in seconds; `due` is when the request
    was to be sent. `error` is its kind, None for a whole answer.
    """

    due: float
    sent: float = 0.0
    first: float = 0.0
    last: float = 0.0
    end: float = 0.0
    gaps: list[float] = field(default_factory=list)
    pieces: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None
    why: str = ""


class _Delta(Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(Struct):
    delta: _Delta | None = None
    message: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Usage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Chunk(Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


class Server:
    """The address of a server, its headers, and the idle connections to it.

    `timeout_s` bounds a whole request. Raises `ConfigError` for an address that is none.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 600.0) -> None:
        self.url = url if "://" in url else f"http://{url}"
        self.url = self.url.rstrip("/").removesuffix("/v1")
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"'{url}' is no address: {error}", field="URL", value=url) from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                f"must be an address such as http://127.0.0.1:8000, not '{url}'",
                field="URL",
                value=url,
            )
        self._host = parts.hostname
        self._port = port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        head = f"Host: {parts.netloc.rpartition('@')[2]}\r\nContent-Type: application/json\r\n"
        if api_key:
            if not api_key.isascii() or not api_key.isprintable():
                raise ConfigError("must be printable ASCII", field="--api-key")
            head += f"Authorization: Bearer {api_key}\r\n"
        self._path = parts.path
        self._head = head
        self._timeout_s = timeout_s
        self._idle: list[_Connection] = []

    def request(self, path: str, body: Any) -> bytes:
        """The bytes of a POST, made before the clock runs."""
        data = msgspec.json.encode(body)
        head = f"POST {self._path}{path} HTTP/1.1\r\n{self._head}Content-Length: {len(data)}\r\n"
        return f"{head}\r\n".encode() + data

    async def ask(self, request: bytes, due: float | None = None) -> Sample:
        """Send a request and read its answer. Failures are in the sample, none is raised."""
        sample = Sample(time.perf_counter() if due is None else due)
        reused = True
        while reused:
            reused = bool(self._idle)
            try:
                connection = self._idle.pop() if reused else await self._connect()
            except (OSError, TimeoutError) as error:
                number = getattr(error, "errno", None) or 0
                sample.sent = sample.end = time.perf_counter()
                sample.error = "connect"
                sample.why = os.strerror(number) if number > 0 else str(error) or "timed out"
                return sample
            await connection.exchange(request, sample, self._timeout_s)
            if connection.usable:
                self._idle.append(connection)
            else:
                connection.close()
            # A server may close an idle connection at any time; that is no failure of the request.
            if sample.error != "disconnected" or connection.answered:
                break
            if reused:
                sample = Sample(sample.due)
        return sample

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._timeout_s):
            _, connection = await loop.create_connection(
                _Connection, self._host, self._port, ssl=self._tls
            )
        return connection

    async def close(self) -> None:
        """Close the connections that carry no request."""
        while self._idle:
            self._idle.pop().close()
        await asyncio.sleep(0)  # the loop closes them in its next turn


class _Connection(asyncio.Protocol):
    """A connection with at most one request on it."""

    def __init__(self) -> None:
        self.usable = True
        self.answered = False
        self._transport: Any = None
        self._sample: Sample | None = None
        self._done: asyncio.Future[None] | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def close(self) -> None:
        self._transport.abort()

    async def exchange(self, request: bytes, sample: Sample, timeout_s: float) -> None:
        """Until the answer is whole, or fails."""
        loop = asyncio.get_running_loop()
        self._sample, self._done = sample, loop.create_future()
        self._raw = bytearray()
        self._status = 0
        self._event = bytearray()
        self._finished = False
        self.answered = False
        timer = loop.call_later(timeout_s, self._fail, "timeout", f"no answer in {timeout_s:g} s")
        sample.sent = time.perf_counter()
        if self._transport.is_closing():
            self._fail("disconnected", "the server closed the connection")
        else:
            self._transport.write(request)
        try:
            await self._done
        except asyncio.CancelledError:
            self.usable = False
            self.close()
            raise
        finally:
            timer.cancel()
            self._sample = None

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if self._sample is None:
            self.usable = False  # bytes that nobody asked for
            return
        self.answered = True
        self._raw += data
        try:
            if self._status or self._read_head():
                self._read_body(now)
        except ValueError as error:
            self._fail("not HTTP", str(error))

    def connection_lost(self, error: Exception | None) -> None:
        self.usable = False
        if self._sample is None:
            return
        if self._status and self._left is None and not self._chunked:
            self._end(time.perf_counter())  # a body without a length ends with its connection
        else:
            self._fail("disconnected", str(error or "the server closed the connection"))

    def _read_head(self) -> bool:
        end = self._raw.find(b"\r\n\r\n")
        if end < 0:
            if len(self._raw) > _MOST_HEAD_BYTES:
                raise ValueError("the headers do not end")
            return False
        first, *lines = self._raw[:end].decode("latin-1").split("\r\n")
        del self._raw[: end + 4]
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1."):
            raise ValueError(f"the answer begins with {first[:40]!r}")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        self._status = int(rest[:3])
        if self._status < 200:  # an interim answer, such as 100
            self._status = 0
            return self._read_head() if self._raw else False
        self._stream = headers.get("content-type", "").startswith("text/event-stream")
        self._chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        length = headers.get("content-length")
        self._left = None if length is None or self._chunked else int(length)
        self._chunk = -1  # bytes that are left of a chunk; -1: its size comes next
        if headers.get("connection", "").lower() == "close" or version == "HTTP/1.0":
            self.usable = False
        return True

    def _read_body(self, now: float) -> None:
        raw = self._raw
        if not self._chunked:
            self._event += raw
            if self._left is not None:
                self._left -= len(raw)
            raw.clear()
            self._read_events(now)
            if self._sample is not None and self._left is not None and self._left <= 0:
                self._end(now)
            return
        while self._sample is not None:
            if self._chunk == -1:
                end = raw.find(b"\r\n")
                if end < 0:
                    break
                self._chunk = int(bytes(raw[:end]).partition(b";")[0], 16)
                del raw[: end + 2]
                if self._chunk == 0:
                    self._read_events(now)
                    self._chunk = -2
                    continue  # the last event may have ended the request
            if self._chunk == -2:  # the trailers, and an empty line
                end = raw.find(b"\r\n")
                if end < 0:
                    break
                del raw[: end + 2]
                if end == 0:
                    self._end(now)
                continue
            if len(raw) < self._chunk + 2:
                break
            self._event += raw[: self._chunk]
            del raw[: self._chunk + 2]
            self._chunk = -1
        if self._sample is not None:
            self._read_events(now)

    def _read_events(self, now: float) -> None:
        sample = self._sample
        if not self._stream or self._status != 200 or sample is None:
            return
        *lines, rest = self._event.split(b"\n")
        if lines:
            self._event = bytearray(rest)
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                self._finished = True
                continue
            try:
                chunk = _decode(data)
            except msgspec.MsgspecError as error:
                return self._fail("not OpenAI's form", str(error))
            if chunk.error is not None:
                return self._fail("error event", _text_of(chunk.error))
            if any(map(_has_text, chunk.choices)):
                if sample.pieces:
                    sample.gaps.append(now - sample.last)
                else:
                    sample.first = now
                sample.last = now
                sample.pieces += 1
            if any(choice.finish_reason for choice in chunk.choices):
                self._finished = True
            if chunk.usage is not None:
                sample.input_tokens = chunk.usage.prompt_tokens
                sample.output_tokens = chunk.usage.completion_tokens

    def _end(self, now: float) -> None:
        sample = self._sample
        assert sample is not None
        sample.end = now
        if self._status != 200:
            text = self._event.decode(errors="replace")
            return self._fail(f"HTTP {self._status}", _message(text), usable=self.usable)
        if not self._stream:
            self._read_whole(sample, now)
        elif not self._finished:
            return self._fail("cut off", "the stream ended without a finish reason")
        self._settle()

    def _read_whole(self, sample: Sample, now: float) -> None:
        try:
            answer = _decode(self._event)
        except msgspec.MsgspecError as error:
            return self._fail("not OpenAI's form", str(error), usable=self.usable)
        if answer.error is not None:
            return self._fail("error answer", _text_of(answer.error), usable=self.usable)
        if not answer.choices:
            return self._fail("not OpenAI's form", "there are no choices", usable=self.usable)
        sample.first = sample.last = now
        sample.pieces = len(answer.choices)
        if answer.usage is not None:
            sample.input_tokens = answer.usage.prompt_tokens
            sample.output_tokens = answer.usage.completion_tokens

    def _fail(self, kind: str, why: str, *, usable: bool = False) -> None:
        self.usable = usable
        if self._sample is not None:
            self._sample.error, self._sample.why = kind, " ".join(why.split())[:_SHOWN_CHARS]
            self._sample.end = time.perf_counter()
        self._settle()

    def _settle(self) -> None:
        self._sample = None
        if self._done is not None and not self._done.done():
            self._done.set_result(None)


def _has_text(choice: _Choice) -> bool:
    delta = choice.delta
    if delta is None:
        return bool(choice.text)
    return bool(delta.content or delta.reasoning_content or delta.reasoning or delta.tool_calls)


def _message(text: str) -> str:
    try:
        return _text_of(msgspec.json.decode(text)["error"])
    except (msgspec.MsgspecError, KeyError, TypeError, UnicodeError):
        return text


def _text_of(error: Any) -> str:
    return str(error.get("message", error) if isinstance(error, dict) else error)
