"""Chats and completions of OpenAI-compatible servers as deltas: whole bodies, and chunks of a stream.

Servers differ in what they leave out or add, so only what is needed is read, and little of that is required.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct, field

from penstock.errors import UpstreamError
from penstock.types import Delta, FinishReason, TokenLogprob, ToolCallPart, Usage

DONE = b"[DONE]"
# In the text of an answer the quotes would be escaped, so these find nothing there.
_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*(?=\{)')
_REASON = b'"finish_reason"'
_UNFINISHED = re.compile(rb'"finish_reason"\s*:\s*null')
_REASONS: dict[str, FinishReason] = {
    **{"stop": "stop", "length": "length", "tool_calls": "tool_calls", "content_filter": "content_filter"},
    **{"abort": "abort", "error": "error", "function_call": "tool_calls", "max_tokens": "length", "refusal": "stop"},
}


class _Details(Struct):
    cached_tokens: int | None = None


class UsageBody(Struct):
    """`usage`, as far as the server tells it."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None

    def neutral(self) -> Usage:
        """As the engine's."""
        details = self.prompt_tokens_details or _Details()
        return Usage(self.prompt_tokens or 0, self.completion_tokens or 0, details.cached_tokens or 0)


class _Function(Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Message(Struct):
    content: str | list[Any] | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None  # DeepSeek's name, and once vLLM's
    tool_calls: list[_Call] | None = None

    @property
    def text(self) -> str:
        content = self.content
        if isinstance(content, list):
            parts = [part.get("text") for part in content if isinstance(part, dict)]
            return "".join(part for part in parts if isinstance(part, str))
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
                TokenLogprob(t.token, t.logprob, tuple((top.token, top.logprob) for top in t.top_logprobs or ()))
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
            found.append(TokenLogprob(token, 0.0 if value is None else value, tuple((top or {}).items())))
        return tuple(found)


class _Choice(Struct):
    index: int = 0
    delta: _Message | None = None
    message: _Message | None = None
    text: str | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: Any = None  # vLLM's; it may be a token id
    matched_stop: Any = None  # SGLang's name for it


class _Completion(Struct):
    """A body, or a chunk."""

    choices: list[_Choice] = field(default_factory=list)
    usage: UsageBody | None = None
    error: Any = None
    kv_transfer_params: dict[str, Any] | None = None


_decode = msgspec.json.Decoder(_Completion).decode


def whole(body: bytes, where: str) -> list[Delta]:
    """The answers of an unstreamed request, one delta each. The first one's usage is that of all."""
    parsed = _parsed(body, where)
    if parsed.error or not parsed.choices:
        shown = body[:4096].decode(errors="replace")
        raise UpstreamError(f"{where} answered without choices", http_status=200, body=shown)
    usage = parsed.usage.neutral() if parsed.usage is not None else Usage()
    deltas = []
    for choice in sorted(parsed.choices, key=lambda choice: choice.index):
        delta = _delta(choice)
        reason = _reason(choice.finish_reason) or "stop"
        deltas.append(
            msgspec.structs.replace(
                delta, finish_reason=reason, usage=usage, kv_transfer_params=parsed.kv_transfer_params
            )
        )
        usage = Usage(usage.prompt_tokens, 0, usage.cached_tokens)
    return deltas


class StreamReader:
    """Chunks in, deltas out, for a request of `n` answers.

    What one read of the network brings is joined to one delta an answer. Usage comes after the last chunk, so the
    deltas that finish answers are held back for it. With `forward`, chunks that only continue the answer are handed on
    as they are.
    """

    def __init__(self, n: int, where: str, *, forward: bool = False) -> None:
        self._missing = n
        self._where = where
        self._forward = forward and n == 1
        self._head = self._unfinished = b""
        self._finishing: list[Delta] = []
        self._usage = Usage()
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
            if event == DONE:
                self.ended = True
                return found + self._finish()
            chunk = _parsed(event, self._where)
            if chunk.error:
                raise self._failure(chunk.error, event)
            if chunk.usage is not None:
                self._usage = chunk.usage.neutral()
            for choice in chunk.choices:
                delta = _delta(choice)
                reason = _reason(choice.finish_reason)
                if reason is not None:
                    self._missing -= 1
                    told = chunk.kv_transfer_params
                    self._finishing.append(
                        msgspec.structs.replace(delta, finish_reason=reason, kv_transfer_params=told)
                    )
                elif self._forward and not self._head and self._learn_head(event):
                    if _says(delta):
                        forwarded.append(event[len(self._head) :])
                elif _says(delta):
                    self._forward = False  # once read, always read: forwarded chunks come before text
                    _add(found, delta)
        if forwarded:
            found.append(Delta(chunks=tuple(forwarded)))
        return found

    def _continues(self, event: bytes) -> bool:
        """Whether a chunk has the stream's head, and does nothing but continue the answer."""
        return (
            event.startswith(self._head)
            and self._unfinished in event
            and event.count(_REASON) == 1
            and b"\n" not in event  # which would end the event where it is written again
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

    def close(self) -> list[Delta]:
        """What is left when the connection has ended. Raises `UpstreamError` if that was too early."""
        if self.ended:
            return []
        self.ended = True
        return self._finish()

    def _finish(self) -> list[Delta]:
        if self._missing > 0:
            raise UpstreamError(f"{self._where}: the answer broke off", retryable=True)
        usage, deltas = self._usage, []
        for delta in self._finishing:
            deltas.append(msgspec.structs.replace(delta, usage=usage))
            usage = Usage(usage.prompt_tokens, 0, usage.cached_tokens)
        self._finishing = []
        return deltas

    def _failure(self, error: Any, event: bytes) -> UpstreamError:
        said = error if isinstance(error, dict) else {"message": str(error)}
        code = said.get("code")
        status: int | None = code if isinstance(code, int) else None
        theirs = said.get("type") == "invalid_request_error" or (status is not None and 400 <= status < 500)
        return UpstreamError(
            f"{self._where} broke off: {str(said.get('message'))[:500]}",
            http_status=status or (400 if theirs else 500),
            body=event[:4096].decode(errors="replace"),
            retryable=not theirs,
        )


def _add(found: list[Delta], delta: Delta) -> None:
    last = found[-1] if found else None
    if last is None or last.index != delta.index or last.chunks or last.tool_calls or delta.tool_calls:
        found.append(delta)
        return
    logprobs = last.logprobs
    if delta.logprobs is not None:
        logprobs = (*(logprobs or ()), *delta.logprobs)
    found[-1] = Delta(
        delta.index, last.text + delta.text, logprobs=logprobs, reasoning=last.reasoning + delta.reasoning
    )


def _says(delta: Delta) -> bool:
    """Whether there is anything in it."""
    return bool(delta.text or delta.tool_calls or delta.logprobs or delta.reasoning)


def _delta(choice: _Choice) -> Delta:
    message = choice.delta or choice.message
    text = choice.text if choice.text is not None else message.text if message is not None else ""
    logprobs = choice.logprobs.neutral() if choice.logprobs is not None else None
    calls: tuple[ToolCallPart, ...] = ()
    if message is not None and message.tool_calls:
        calls = tuple(
            ToolCallPart(
                number if call.index is None else call.index,
                (call.function.arguments if call.function else None) or "",
                call.id or None,
                (call.function.name if call.function else None) or None,
            )
            for number, call in enumerate(message.tool_calls)
        )
    stop = next((s for s in (choice.stop_reason, choice.matched_stop) if isinstance(s, str)), None)
    reasoning = (message.reasoning or message.reasoning_content or "") if message is not None else ""
    return Delta(choice.index, text, logprobs=logprobs, tool_calls=calls, stop=stop, reasoning=reasoning)


def _reason(given: str | None) -> FinishReason | None:
    return None if given is None else _REASONS.get(given, "stop")


def _parsed(body: bytes, where: str) -> _Completion:
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise not_openai(body, where, error) from None


def not_openai(body: bytes, where: str, error: Exception) -> UpstreamError:
    """The error for an answer that cannot be read."""
    return UpstreamError(
        f"{where} did not answer in OpenAI's form: {error}", http_status=200, body=body[:4096].decode(errors="replace")
    )
