"""Parses chats and completions of OpenAI-compatible servers into deltas: whole bodies and chunks.

Servers omit and add fields, so only the necessary fields are read, and few are required.
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
# These never match inside an answer's text, where quotes are escaped.
_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*(?=\{)')
_REASON = b'"finish_reason"'
_UNFINISHED = re.compile(rb'"finish_reason"\s*:\s*null')
_TEXT, _CALLS = b'"content":"', b'"tool_calls"'
_NO_TEXT = re.compile(rb'"arguments"\s*:\s*[^\s"n]|"delta"\s*:\s*\{[^{}\[\]]*"content"\s*:\s*\[')
"""Chunks where a server sends an object or a list and clients expect text: they are parsed, not
forwarded.
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
    """`usage`, with whatever values the server sends."""

    prompt_tokens: Any = None
    completion_tokens: Any = None
    prompt_tokens_details: Any = None

    def neutral(self) -> Usage:
        """As `Usage`; 0 for counts that are missing or unreadable."""
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
    reasoning_content: str | None = None  # the name in DeepSeek's API and in older vLLM
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
    """Log probabilities of a chat (`content`) or of a plain completion (the other fields)."""

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
    stop_reason: Any = None  # vLLM's; may be a token id
    matched_stop: Any = None  # SGLang's name for `stop_reason`
    error: Any = None  # OpenRouter's, for an answer that failed midway
    needed: ClassVar = ("delta", "message")


class _Completion(Struct):
    """A whole body, or one chunk of a stream."""

    choices: list[_Choice] | None = None
    usage: UsageBody | None = None
    error: Any = None
    kv_transfer_params: dict[str, Any] | None = None
    needed: ClassVar = ("choices",)


_decode = msgspec.json.Decoder(_Completion).decode


def whole(body: bytes, where: str, n: int = 1) -> list[Delta]:
    """The `n` answers of an unstreamed request, one delta each. The first delta carries the usage
    of all answers.

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
    for index, choice in enumerate(ordered[:n]):  # some servers count from 1, some send no index
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
    """Turns chunks into deltas, for a request with `n` answers.

    All chunks of one network read become one delta an answer. Usage follows the last chunk, so the
    deltas that finish an answer wait for it. With `forward`, chunks that only continue the answer
    are passed on unparsed.
    """

    def __init__(self, n: int, where: str, *, forward: bool = False) -> None:
        self._missing = n
        self._n = n
        self._only: int | None = None  # the server's index of the answer, if `n` is 1
        self._open: set[int] = set()  # answers that have begun and not finished
        self._ended: set[int] = set()
        self._where = where
        self._forward = forward and n == 1
        self._head = self._unfinished = b""
        self._finishing: list[Delta] = []
        self._usage = Usage()
        self._unread = b""
        self.ended = False

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
                self.ended = True
                return found + self._finish(done=True)
            chunk = _parsed(event, self._where)
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
                delta = _delta(choice, index)
                reason = _reason(choice.finish_reason)
                if reason is not None:
                    if index in self._ended:
                        continue
                    self._ended.add(index)
                    self._open.discard(index)
                    self._missing -= 1
                    params = chunk.kv_transfer_params
                    self._finishing.append(
                        msgspec.structs.replace(
                            delta, finish_reason=reason, kv_transfer_params=params
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
                    # Parse from now on: forwarded chunks must come before text.
                    self._forward = False
                    _add(found, delta)
        if forwarded:
            found.append(Delta(chunks=tuple(forwarded)))
        return found

    def _index(self, given: int | None, number: int) -> int | None:
        """The index of the answer that the `number`th choice of a chunk belongs to; None for a
        surplus choice.
        """
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

    def close(self, stray: bytes = b"") -> list[Delta]:
        """The last deltas, when the connection has ended.

        Raises `UpstreamError` if the answer is unfinished, with the text that came instead. `stray`
        holds the bytes outside of events.
        """
        if self.ended:
            return []
        self.ended = True
        return self._finish(stray=stray)

    def _finish(self, *, done: bool = False, stray: bytes = b"") -> list[Delta]:
        if done:  # the server has finished, with or without finish reasons
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
            words = " ".join(text.split())[:_SHOWN_CHARS]
            what = f"{self._where}: the answer broke off"
            raise UpstreamError(f"{what}: {words}" if words else what, body=text, retryable=True)
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
    """Whether the delta has any content."""
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
    ended_by = (choice.stop_reason, choice.matched_stop)
    stop = next((s for s in ended_by if isinstance(s, str)), None)
    token = choice.stop_reason if type(choice.stop_reason) is int else None
    reasoning = (
        (message.reasoning or message.reasoning_content or "") if message is not None else ""
    )
    return Delta(
        index,
        text,
        logprobs=logprobs,
        tool_calls=calls,
        stop=stop,
        reasoning=reasoning,
        stop_token=token,
    )


def _reason(given: str | None) -> FinishReason | None:
    return _REASONS.get(given, "stop") if given else None  # some servers send "" before the end


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
    """The error of an answer that cannot be parsed."""
    return _unreadable(f"{where} did not answer in OpenAI's form, {error}", body)


def _unreadable(what: str, body: bytes) -> UpstreamError:
    """The error of an unusable answer, with the server's words: they may explain it."""
    text = body[:4096].decode(errors="replace")
    words = " ".join(text.split())[:_SHOWN_CHARS]
    return UpstreamError(f"{what}: {words or 'nothing'}", http_status=200, body=text)
