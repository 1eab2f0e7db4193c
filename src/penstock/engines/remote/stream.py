"""Reads one streamed answer from a server: bytes into server-sent events
(https://html.spec.whatwg.org/multipage/server-sent-events.html), events into deltas.
"""

from __future__ import annotations

import asyncio
import codecs
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from penstock.engines.remote.answers import (
    SHOWN_CHARS,
    ToolCalls,
    delta_of,
    parse_chunk,
    reason_of,
    too_few,
    whole,
)
from penstock.errors import EngineDeadError, EngineTimeoutError, UpstreamError
from penstock.http.complaints import as_error, error_inside
from penstock.types import Delta, Usage

if TYPE_CHECKING:
    from penstock.engines.remote.upstreams import Upstream

_STRAY_BYTES = 4096
_LINE_END = re.compile(rb"\r\n?")
_EVENT_END = re.compile(rb"\n\n|\r\r|\n\r")
_ERROR = re.compile(rb"^event: ?error *$", re.MULTILINE)
_FIELDS = re.compile(rb"^(?::|(?:event|id|retry|data)(?::|$)).*$", re.MULTILINE)


class EventReader:
    """Turns bytes into the data of complete events. It drops names, ids, comments and events
    without data. `error` is the data of the first event named "error"; `stray` is the beginning of
    text that is no event.

    `limit` bounds the bytes of an incomplete event; `feed` raises `ValueError` beyond it. Text that
    begins like a JSON object is no stream of events: the reader buffers it, and `rest` returns it
    at the end.
    """

    def __init__(self, limit: int = 64 << 20) -> None:
        self._rest = bytearray()
        self._limit = limit
        self._begun = False
        self.is_json = False
        self.error = b""
        self.stray = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the events that `chunk` completes, in order."""
        rest = self._rest
        known = max(len(rest) - 2, 0) if self._begun else 0  # no event ends before
        rest += chunk
        if not self._begun:
            self._begin()
        if self.is_json or _EVENT_END.search(rest, known) is None:
            self._check()
            return []
        text, half = bytes(rest), b""
        if b"\r" in text:
            if text.endswith(b"\r"):  # perhaps half of a line end, so it waits
                text, half = text[:-1], b"\r"
            text = _LINE_END.sub(b"\n", text)
        *finished, left = text.split(b"\n\n")
        self._rest = bytearray(left + half)
        self._check()
        events: list[bytes] = []
        for event in finished:
            if event.startswith(b"data: ") and b"\n" not in event and len(event) > 6:
                events.append(event[6:])
            elif data := self._data(event):
                events.append(data)
        return events

    def rest(self) -> bytes:
        """The rest after the last event, once all bytes are in: the data of an unterminated event,
        or the JSON object.
        """
        rest, self._rest = bytes(self._rest), bytearray()
        return rest if self.is_json else self._data(_LINE_END.sub(b"\n", rest))

    def _data(self, event: bytes) -> bytes:
        """The data of an event; empty for an error or for text that is no event, which it keeps."""
        data = b"\n".join(
            line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")
        )
        if not data:
            text = _FIELDS.sub(b"", event).strip()
            if text and len(self.stray) < _STRAY_BYTES:
                self.stray = (self.stray + text + b"\n")[:_STRAY_BYTES]
        elif _ERROR.search(event):
            self.error, data = self.error or data, b""
        return data

    def _begin(self) -> None:
        rest = self._rest
        if len(rest) < len(codecs.BOM_UTF8) and codecs.BOM_UTF8.startswith(bytes(rest)):
            return
        if rest.startswith(codecs.BOM_UTF8):
            del rest[: len(codecs.BOM_UTF8)]
        if first := rest.lstrip()[:1]:
            self._begun, self.is_json = True, first == b"{"

    def _check(self) -> None:
        if len(self._rest) > self._limit:
            what = "an answer" if self.is_json else "an event"
            raise ValueError(f"{what} of more than {self._limit} bytes")


DONE = b"[DONE]"
# These never match inside an answer's text, where quotes are escaped.
_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*(?=\{)')
_REASON = b'"finish_reason"'
_UNFINISHED = re.compile(rb'"finish_reason"\s*:\s*null')
_TEXT, _CALLS = b'"content":"', b'"tool_calls"'
_NO_TEXT = re.compile(rb'"tool_calls"\s*:\s*\[\s*\{|"delta"\s*:\s*\{[^{}\[\]]*"content"\s*:\s*\[')
"""Chunks with calls, which may need other numbers and ids, or with a list where clients expect
text: they are parsed, not forwarded.
"""
TRAILER_S = 0.25
"""How long to read on after a finished answer, so that its connection can be reused."""
USAGE_S = 5.0
"""How long a finished answer waits for its usage and for the end of its stream: some servers send
comments for ever.
"""


class StreamReader:
    """Turns chunks into deltas, for a request with `n` answers.

    All chunks of one network read become one delta an answer. Usage follows the last chunk, so the
    deltas that finish an answer wait for it. With `forward`, chunks that only continue the answer
    are passed on unparsed.
    """

    def __init__(self, n: int, where: str, *, forward: bool = False) -> None:
        self._n = n
        self._only: int | None = None  # the server's index of the answer, if `n` is 1
        self._open: set[int] = set()  # answers that have begun and not finished
        self._ended: set[int] = set()
        self._calls = ToolCalls()
        self._where = where
        self._forward = forward and n == 1
        self._head = self._unfinished = b""
        self._finishing: list[Delta] = []
        self._usage = Usage()
        self._unread = b""
        self.ended = False

    @property
    def finished(self) -> bool:
        """Whether all answers have ended, and perhaps only their usage is to come."""
        return len(self._ended) == self._n

    def feed(self, events: Sequence[bytes]) -> list[Delta]:
        """The deltas of some events. Raises `UpstreamError` if one of them is an error."""
        found: list[Delta] = []
        forwarded: list[bytes] = []
        for event in events:
            if self._head and self._forward and self._continues(event):
                forwarded.append(event[len(self._head) :])
                continue
            if forwarded:
                found.append(Delta(chunks=tuple(forwarded)))
                forwarded = []
            if event == DONE or (len(event) < 16 and event.strip() == DONE):
                return found + self.close(done=True)
            chunk = parse_chunk(event, self._where)
            if chunk.error or not chunk.choices:
                failure = error_inside(event, self._where, "broke off")
                if failure is not None:
                    raise failure
                if chunk.usage is None and not (self._open or self._ended):
                    self._unread = event  # may explain why there is no answer
            if chunk.usage is not None:
                self._usage = chunk.usage.neutral()
            for number, choice in enumerate(chunk.choices or ()):
                if choice.error:
                    raise as_error(choice.error, self._where, event, "broke off")
                index = self._index(choice.index, number)
                if index is None:
                    continue
                if index not in self._ended:
                    self._open.add(index)
                delta = delta_of(choice, index, self._calls)
                reason = reason_of(choice, self._where)
                if reason is not None:
                    if index in self._ended:
                        continue
                    self._ended.add(index)
                    self._open.discard(index)
                    self._finishing.append(
                        msgspec.structs.replace(
                            delta,
                            finish_reason=reason,
                            kv_transfer_params=chunk.kv_transfer_params,
                        )
                    )
                    continue
                may_forward = self._forward and not self._head and choice.index == 0
                may_forward = may_forward and self._learn_head(event)
                if not (delta.text or delta.tool_calls or delta.logprobs or delta.reasoning):
                    continue
                if may_forward:
                    forwarded.append(event[len(self._head) :])
                else:
                    # Parse from now on: forwarded chunks must come before text.
                    self._forward = False
                    _add(found, delta)
        if forwarded:
            found.append(Delta(chunks=tuple(forwarded)))
        return found

    def _index(self, given: int | None, number: int) -> int | None:
        """The answer that the `number`th choice of a chunk belongs to; None for a surplus one."""
        index = number if given is None else given
        if self._n == 1:
            if self._only is None:
                self._only = index
            return 0 if index == self._only else None
        return index if 0 <= index < self._n else None

    def _continues(self, event: bytes) -> bool:
        """Whether a chunk has the stream's head, and only continues the answer."""
        return (
            event.startswith(self._head)
            and self._unfinished in event
            and event.count(_REASON) == 1
            and b"\n" not in event  # a newline would end the event when it is written again
            and ((_TEXT in event and _CALLS not in event) or _NO_TEXT.search(event) is None)
        )

    def _learn_head(self, event: bytes) -> bool:
        """Learn the head of this stream's chunks: everything before the content of `choices`.
        Returns whether chunks can be forwarded.
        """
        head, unfinished = _CHOICES.search(event), _UNFINISHED.search(event)
        if head is None or unfinished is None:
            self._forward = False
        else:
            self._head, self._unfinished = event[: head.end()], unfinished[0]
            self._forward = self._continues(event)
        return self._forward

    def whole(self, body: bytes) -> list[Delta]:
        """The deltas of an answer that the server did not stream. Raises `UpstreamError`."""
        self.ended = True
        return whole(body, self._where, self._n)

    def fail(self, data: bytes) -> NoReturn:
        """Raise the `UpstreamError` of an event named "error"."""
        try:
            words = msgspec.json.decode(data)
        except (ValueError, RecursionError):
            words = data.decode(errors="replace")
        raise as_error(words, self._where, data, "broke off")

    def close(self, stray: bytes = b"", *, done: bool = False) -> list[Delta]:
        """The last deltas, when the connection has ended, or the server says that it is `done`.

        Raises `UpstreamError` if the answer is unfinished, with the text that came instead, and
        `UnsupportedError` if the server gave fewer than `n`. `stray` holds the bytes outside of
        events.
        """
        if self.ended:
            return []
        self.ended = True
        if done:  # with or without finish reasons
            self._finishing += [
                Delta(index, "", finish_reason="stop") for index in sorted(self._open)
            ]
            self._ended |= self._open
            if 0 < len(self._ended) < self._n:
                raise too_few(len(self._ended), self._n, self._where)
        if len(self._ended) < self._n:
            text = (
                (stray or (b"" if self._open or self._ended else self._unread))[:4096]
                .decode(errors="replace")
                .strip()
            )
            words = " ".join(text.split())[:SHOWN_CHARS]
            what = f"{self._where}: the answer broke off"
            raise UpstreamError(f"{what}: {words}" if words else what, body=text, retryable=True)
        usage, deltas = self._usage, []
        for delta in self._finishing:
            deltas.append(msgspec.structs.replace(delta, usage=usage))
            usage = Usage(usage.prompt_tokens, 0, usage.cached_tokens)
        return deltas


def _add(found: list[Delta], delta: Delta) -> None:
    """Append a delta, or merge it into the last one if both are text of the same answer."""
    last = found[-1] if found else None
    if (
        last is None
        or last.index != delta.index
        or last.chunks
        or last.tool_calls
        or delta.tool_calls
    ):
        found.append(delta)
        return
    logprobs = last.logprobs
    if delta.logprobs is not None:
        logprobs = (*(logprobs or ()), *delta.logprobs)
    found[-1] = Delta(
        delta.index,
        last.text + delta.text,
        logprobs=logprobs,
        reasoning=last.reasoning + delta.reasoning,
    )


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
        self._events = EventReader(upstream.max_answer_bytes)
        self._reader = reader
        self._upstream = upstream
        self._tokens = tokens
        self._until: float | None = None
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
        """End the request. A finished stream is first read to its very end, so that its connection
        can be reused.
        """
        try:
            async with self.held:  # the exit sees the error, which counts against the server
                if self._error is not None:
                    raise self._error
                if self._reader.ended:
                    with suppress(TimeoutError, UpstreamError, EngineTimeoutError, EngineDeadError):
                        async with asyncio.timeout(TRAILER_S):
                            async for _ in self._pieces:
                                pass
        except Exception as error:
            if error is not self._error:
                raise

    async def _more(self) -> list[Delta]:
        if self._reader.finished:
            piece = await self._trailer()
        else:
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

    async def _trailer(self) -> bytes | None:
        """The next piece after the answer; None at the end, and when it is late."""
        if self._until is None:
            self._until = asyncio.get_running_loop().time() + USAGE_S
        try:
            async with asyncio.timeout_at(self._until):
                return await anext(self._pieces, None)
        except TimeoutError:
            return None

    def _last(self) -> list[Delta]:
        """The deltas after the last event: of an unterminated one, or of an unstreamed answer."""
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
