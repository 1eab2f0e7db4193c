"""Chats and completions of OpenAI-compatible servers as deltas: whole bodies, and chunks of a
stream.

Servers differ in what they leave out or add, so only what is needed is read, and little of that is
required.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn

import msgspec
from msgspec import Struct

from penstock.engines.remote import lenient
from penstock.engines.remote.lenient import as_text
from penstock.errors import UpstreamError
from penstock.http.complaints import as_error, error_inside
from penstock.types import Delta, FinishReason, TokenLogprob, ToolCallPart, Usage

DONE = b"[DONE]"
_SHOWN_CHARS = 200
# In the text of an answer the quotes would be escaped, so these find nothing there.
_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*(?=\{)')
_REASON = b'"finish_reason"'
_UNFINISHED = re.compile(rb'"finish_reason"\s*:\s*null')
_TEXT, _CALLS = b'"content":"', b'"tool_calls"'
_NO_TEXT = re.compile(rb'"arguments"\s*:\s*[^\s"n]|"delta"\s*:\s*\{[^{}\[\]]*"content"\s*:\s*\[')
"""Where clients expect text, and some servers send an object or a list: such chunks are not
forwarded but read.
"""
_REASONS: dict[str, FinishReason] = {
    **{
        "stop": "stop",
        "length": "length",
        "tool_calls": "tool_calls",
        "content_filter": "content_filter",
    },
    **{
        "abort": "abort",
        "error": "error",
        "function_call": "tool_calls",
        "max_tokens": "length",
        "refusal": "stop",
    },
}


class UsageBody(Struct):
    """`usage`, as far as the server tells it, in whatever form."""

    prompt_tokens: Any = None
    completion_tokens: Any = None
    prompt_tokens_details: Any = None

    def neutral(self) -> Usage:
        """As the engine's."""
        details = self.prompt_tokens_details
        cached = details.get("cached_tokens") if isinstance(details, dict) else None
        return Usage(_tokens(self.prompt_tokens), _tokens(self.completion_tokens), _tokens(cached))


class _Function(Struct):
    name: str | None = None
    arguments: Any = None

    @property
    def text(self) -> str:
        return as_text(self.arguments)


class _Call(Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None
    needed: ClassVar = ("function",)


class _Message(Struct):
    content: Any = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None  # DeepSeek's name, and once vLLM's
    tool_calls: list[_Call] | None = None
    needed: ClassVar = ("tool_calls",)

    @property
    def text(self) -> str:
        content = self.content
        if content.__class__ is not str:
            content = as_text(content)
        return content or self.refusal or ""


class _Top(Struct):
    token: str
    logprob: float


class _Token(Struct):
    token: str
    logprob: float
    top_logprobs: list[_Top] | None = None


class _Logprobs(Struct):
    """Of a chat (`content`), or of a plain completion (the rest)."""

    content: list[_Token] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None

    def neutral(self) -> tuple[TokenLogprob, ...] | None:
        if self.content is not None:
            return tuple(
                TokenLogprob(
                    t.token,
                    t.logprob,
                    tuple((top.token, top.logprob) for top in t.top_logprobs or ()),
                )
                for t in self.content
            )
        if self.tokens is None:
            return None
        values = self.token_logprobs or []
        tops = self.top_logprobs or []
        found = []
        for number, token in enumerate(self.tokens):
            value = values[number] if number < len(values) else None
            top = tops[number] if number < len(tops) else None
            found.append(
                TokenLogprob(token, 0.0 if value is None else value, tuple((top or {}).items()))
            )
        return tuple(found)


class _Choice(Struct):
    index: int | None = None
    delta: _Message | None = None
    message: _Message | None = None
    text: Any = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: Any = None  # vLLM's; it may be a token id
    matched_stop: Any = None  # SGLang's name for it
    error: Any = None  # OpenRouter's, where the answer failed on its way
    needed: ClassVar = ("delta", "message")


class _Completion(Struct):
    """A body, or a chunk."""

    choices: list[_Choice] | None = None
    usage: UsageBody | None = None
    error: Any = None
    kv_transfer_params: dict[str, Any] | None = None
    needed: ClassVar = ("choices",)


_decode = msgspec.json.Decoder(_Completion).decode


def whole(body: bytes, where: str, n: int = 1) -> list[Delta]:
    """The `n` answers of an unstreamed request, one delta each. The first one's usage is that of
    all.

    Raises `UpstreamError`.
    """
    parsed = _parsed(body, where)
    if parsed.error or not parsed.choices:
        if (failure := error_inside(body, where)) is not None:
            raise failure
        raise _unreadable(f"{where} answered without choices", body)
    usage = parsed.usage.neutral() if parsed.usage is not None else Usage()
    deltas = []
    ordered = parsed.choices
    if len(ordered) > 1:
        ordered = sorted(ordered, key=lambda choice: choice.index or 0)
    for index, choice in enumerate(ordered[:n]):  # some count from 1, some do not count
        if choice.error:
            raise as_error(choice.error, where, body)
        reason = _reason(choice.finish_reason) or "stop"
        deltas.append(
            msgspec.structs.replace(
                _delta(choice, index),
                finish_reason=reason,
                usage=usage,
                kv_transfer_params=parsed.kv_transfer_params,
            )
        )
        usage = Usage(usage.prompt_tokens, 0, usage.cached_tokens)
    return deltas


class StreamReader:
    """Chunks in, deltas out, for a request of `n` answers.

    What one read of the network brings is joined to one delta an answer. Usage comes after the last
    chunk, so the deltas that finish answers are held back for it. With `forward`, chunks that only
    continue the answer are handed on as they are.
    """

    def __init__(self, n: int, where: str, *, forward: bool = False) -> None:
        self._missing = n
        self._n = n
        self._only: int | None = None  # what the server calls the answer, where it is one
        self._open: set[int] = set()  # answers that have begun and not ended
        self._ended: set[int] = set()
        self._where = where
        self._forward = forward and n == 1
        self._head = self._unfinished = b""
        self._finishing: list[Delta] = []
        self._usage = Usage()
        self._unread = b""
        self.ended = False

    def feed(self, events: Sequence[bytes]) -> list[Delta]:
        """The deltas of some events. Raises `UpstreamError` for an error among them."""
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
                self.ended = True
                return found + self._finish(done=True)
            chunk = _parsed(event, self._where)
            if chunk.error or not chunk.choices:
                failure = error_inside(event, self._where, "broke off")
                if failure is not None:
                    raise failure
                if chunk.usage is None and not (self._open or self._ended):
                    self._unread = event  # it may say why there is no answer
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
                delta = _delta(choice, index)
                reason = _reason(choice.finish_reason)
                if reason is not None:
                    if index in self._ended:
                        continue
                    self._ended.add(index)
                    self._open.discard(index)
                    self._missing -= 1
                    told = chunk.kv_transfer_params
                    self._finishing.append(
                        msgspec.structs.replace(
                            delta, finish_reason=reason, kv_transfer_params=told
                        )
                    )
                elif (
                    self._forward
                    and not self._head
                    and choice.index == 0
                    and self._learn_head(event)
                ):
                    if _has_content(delta):
                        forwarded.append(event[len(self._head) :])
                elif _has_content(delta):
                    # Once read, always read: forwarded chunks come before text.
                    self._forward = False
                    _add(found, delta)
        if forwarded:
            found.append(Delta(chunks=tuple(forwarded)))
        return found

    def _index(self, given: int | None, number: int) -> int | None:
        """Which answer a choice belongs to, the `number`th of its chunk; None for one that nobody
        asked for.
        """
        index = number if given is None else given
        if self._n == 1:
            if self._only is None:
                self._only = index
            return 0 if index == self._only else None
        return index if 0 <= index < self._n else None

    def _continues(self, event: bytes) -> bool:
        """Whether a chunk has the stream's head, and does nothing but continue the answer."""
        return (
            event.startswith(self._head)
            and self._unfinished in event
            and event.count(_REASON) == 1
            and b"\n" not in event  # which would end the event where it is written again
            and ((_TEXT in event and _CALLS not in event) or _NO_TEXT.search(event) is None)
        )

    def _learn_head(self, event: bytes) -> bool:
        """What all chunks of this stream begin with: all before the content of `choices`."""
        head, unfinished = _CHOICES.search(event), _UNFINISHED.search(event)
        if head is None or unfinished is None:
            self._forward = False
        else:
            self._head, self._unfinished = event[: head.end()], unfinished[0]
            self._forward = self._continues(event)
        return self._forward

    def whole(self, body: bytes) -> list[Delta]:
        """The deltas of an answer that came in one piece after all. Raises `UpstreamError`."""
        self.ended = True
        return whole(body, self._where, self._n)

    def fail(self, data: bytes) -> NoReturn:
        """The stream had an event named "error". Raises `UpstreamError`."""
        try:
            said = msgspec.json.decode(data)
        except (ValueError, RecursionError):
            said = data.decode(errors="replace")
        raise as_error(said, self._where, data, "broke off")

    def close(self, stray: bytes = b"") -> list[Delta]:
        """What is left when the connection has ended. Raises `UpstreamError` if that was too early,
        with what came in place of an answer: `stray` is what was no event.
        """
        if self.ended:
            return []
        self.ended = True
        return self._finish(stray=stray)

    def _finish(self, *, done: bool = False, stray: bytes = b"") -> list[Delta]:
        if done:  # the server is through, whether it has told reasons or not
            self._finishing += [
                Delta(index, "", finish_reason="stop") for index in sorted(self._open)
            ]
            self._missing -= len(self._open)
        if self._missing > 0:
            text = (
                (stray or (b"" if self._open or self._ended else self._unread))[:4096]
                .decode(errors="replace")
                .strip()
            )
            said = " ".join(text.split())[:_SHOWN_CHARS]
            what = f"{self._where}: the answer broke off"
            raise UpstreamError(f"{what}: {said}" if said else what, body=text, retryable=True)
        usage, deltas = self._usage, []
        for delta in self._finishing:
            deltas.append(msgspec.structs.replace(delta, usage=usage))
            usage = Usage(usage.prompt_tokens, 0, usage.cached_tokens)
        self._finishing = []
        return deltas


def _add(found: list[Delta], delta: Delta) -> None:
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


def _has_content(delta: Delta) -> bool:
    """Whether there is anything in it."""
    return bool(delta.text or delta.tool_calls or delta.logprobs or delta.reasoning)


def _delta(choice: _Choice, index: int) -> Delta:
    message = choice.delta or choice.message
    if choice.text is not None:
        text = choice.text if choice.text.__class__ is str else as_text(choice.text)
    else:
        text = message.text if message is not None else ""
    logprobs = choice.logprobs.neutral() if choice.logprobs is not None else None
    calls: tuple[ToolCallPart, ...] = ()
    if message is not None and message.tool_calls:
        calls = tuple(
            ToolCallPart(
                number if call.index is None else call.index,
                call.function.text if call.function else "",
                call.id or None,
                (call.function.name if call.function else None) or None,
            )
            for number, call in enumerate(message.tool_calls)
        )
    stop = next((s for s in (choice.stop_reason, choice.matched_stop) if isinstance(s, str)), None)
    reasoning = (
        (message.reasoning or message.reasoning_content or "") if message is not None else ""
    )
    return Delta(index, text, logprobs=logprobs, tool_calls=calls, stop=stop, reasoning=reasoning)


def _reason(given: str | None) -> FinishReason | None:
    return _REASONS.get(given, "stop") if given else None  # some say "" while there is more to come


def _tokens(value: Any) -> int:
    return value if value.__class__ is int and value >= 0 else lenient.count(value)


def _parsed(body: bytes, where: str) -> _Completion:
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        found: _Completion = lenient.read(body, _Completion)
    except ValueError as error:
        raise error_inside(body, where) or not_openai(body, where, error) from None
    return found


def not_openai(body: bytes, where: str, error: Exception) -> UpstreamError:
    """The error for an answer that cannot be read."""
    return _unreadable(f"{where} did not answer in OpenAI's form, {error}", body)


def _unreadable(what: str, body: bytes) -> UpstreamError:
    """The error, with what the server said: it may have been an error in words of its own."""
    text = body[:4096].decode(errors="replace")
    said = " ".join(text.split())[:_SHOWN_CHARS]
    return UpstreamError(f"{what}: {said or 'nothing'}", http_status=200, body=text)
