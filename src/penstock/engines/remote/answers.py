"""Parses what OpenAI-compatible servers generate: bodies and chunks of chats and completions into
deltas.

Servers omit and add fields, so only the necessary fields are read, and few are required.
"""

from __future__ import annotations

import contextlib
import re
import uuid
from collections import Counter
from collections.abc import Iterable
from itertools import islice, zip_longest
from typing import Any, ClassVar

import msgspec
from msgspec import Struct

from penstock.engines.remote import lenient
from penstock.engines.remote.lenient import as_text, count
from penstock.errors import UnsupportedError, UpstreamError
from penstock.http.complaints import as_error, error_inside
from penstock.types import (
    Delta,
    FinishReason,
    TokenLogprob,
    ToolCallPart,
    Usage,
)

SHOWN_CHARS = 200
_BYTES = re.compile(r"bytes:(\\x[0-9a-f]{2})+")
_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
    "abort": "abort",
    "function_call": "tool_calls",
    "tool_use": "tool_calls",
    **dict.fromkeys(("max_tokens", "max_output_tokens", "max_length"), "length"),
    **dict.fromkeys(("model_length", "model_context_window_exceeded"), "length"),
    **dict.fromkeys(("safety", "recitation", "prohibited_content", "blocklist"), "content_filter"),
    **dict.fromkeys(("spii", "sensitive", "content_filtered"), "content_filter"),
    "refusal": "stop",
}
"""By a server's finish reason, in lower case and without what follows a colon, ours. An unknown
reason counts as "stop".
"""
_FAILED = frozenset(("error", "insufficient_system_resource", "network_error"))
"""Reasons of an answer that is not whole, as its server failed midway."""


class UsageBody(Struct):
    """`usage`, with whatever values the server sends."""

    prompt_tokens: Any = None
    completion_tokens: Any = None
    prompt_tokens_details: Any = None
    completion_tokens_details: Any = None

    def neutral(self) -> Usage:
        """As `Usage`; 0 for counts that are missing or unreadable."""
        return Usage(
            count(self.prompt_tokens),
            count(self.completion_tokens),
            _detail(self.prompt_tokens_details, "cached_tokens"),
            _detail(self.completion_tokens_details, "reasoning_tokens"),
        )


class _Function(Struct):
    name: str | None = None
    arguments: Any = None


_NO_FUNCTION = _Function()


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


_NO_MESSAGE = _Message()


class _Top(Struct):
    token: str
    logprob: float | None
    bytes: Any = None


class _Token(_Top):
    top_logprobs: list[_Top] | None = None


class _Logprobs(Struct):
    """Log probabilities of a chat (`content`) or of a plain completion (the other fields)."""

    content: list[_Token] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float | None] | None] | None = None

    def neutral(self) -> tuple[TokenLogprob, ...] | None:
        if self.content is not None:
            return tuple(_logprob(one, one.top_logprobs or ()) for one in self.content)
        if self.tokens is None:
            return None
        # Servers may send fewer probabilities than tokens, or more.
        rows = zip_longest(self.tokens, self.token_logprobs or (), self.top_logprobs or ())
        return tuple(
            _logprob(_Top(token, value), [_Top(*other) for other in (top or {}).items()])
            for token, value, top in islice(rows, len(self.tokens))
        )


def _logprob(one: _Top, top: Iterable[_Top]) -> TokenLogprob:
    """One token. Nulls and NaN are unknown probabilities."""
    known = [(t, t.logprob) for t in top if t.logprob is not None and t.logprob == t.logprob]
    raw = [_raw(other) for other, _ in known]
    return TokenLogprob(
        one.token,
        one.logprob if one.logprob == one.logprob else None,
        tuple((other.token, value) for other, value in known),
        raw=_raw(one),
        top_raw=(
            tuple(part or t.token.encode() for (t, _), part in zip(known, raw, strict=True))
            if any(raw)
            else ()
        ),
    )


def _raw(one: _Top) -> bytes | None:
    """The bytes of a token that is no text but part of a character: OpenAI's API states them, and
    names such tokens by them in completions.
    """
    if _BYTES.fullmatch(one.token):
        return bytes.fromhex(one.token[6:].replace("\\x", ""))
    with contextlib.suppress(TypeError, ValueError):
        stated = bytes(one.bytes) if isinstance(one.bytes, list) else b""
        return stated if stated and stated != one.token.encode() else None
    return None


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


def parse_chunk(body: bytes, where: str) -> _Completion:
    """A body, or a chunk of a stream. Raises `UpstreamError` about the server `where`."""
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found: _Completion = leniently(_Completion, body, where)
        return found


def whole(body: bytes, where: str, n: int = 1) -> list[Delta]:
    """The `n` answers of an unstreamed request, one delta each. The first delta carries the usage
    of all answers.

    Raises `UpstreamError`, and `UnsupportedError` for a server that gives fewer.
    """
    parsed = parse_chunk(body, where)
    if parsed.error or not parsed.choices:
        raise error_inside(body, where) or _unreadable(f"{where} answered without choices", body)
    usage = parsed.usage.neutral() if parsed.usage is not None else Usage()
    deltas = []
    ordered = sorted(parsed.choices, key=lambda choice: choice.index or 0)
    for index, choice in enumerate(ordered[:n]):  # some servers count from 1, some send no index
        if choice.error:
            raise as_error(choice.error, where, body)
        reason = reason_of(choice, where) or "stop"
        missing = choice.message is None and choice.delta is None and choice.text is None
        if missing and reason == "stop":  # another says why
            raise as_error("a choice without a message", where, body, "gave no answer")
        for call in choice.message.tool_calls or () if choice.message else ():
            call.index = None  # whole calls differ by their place; some servers send 0 for each
        delta, kept = delta_of(choice, index, ToolCalls()), parsed.kv_transfer_params
        deltas.append(
            msgspec.structs.replace(
                delta, finish_reason=reason, usage=usage, kv_transfer_params=kept
            )
        )
        usage = Usage(usage.prompt_tokens, 0, usage.cached_tokens)
    if len(deltas) < n:
        raise too_few(len(deltas), n, where)
    return deltas


def too_few(given: int, n: int, where: str) -> UnsupportedError:
    """The error for a server that ignores `n`."""
    what = f"{where} gave {given} of {n} answers; some servers do not take n"
    return UnsupportedError(what, param="n")


class ToolCalls:
    """Numbers the tool calls of one request's answers from the pieces that a server sends.

    Each call's first piece, and no other, has an id and a name: some servers repeat them, or send
    no id. Some send the same index, or none, for calls that follow each other, so a piece that
    names another id or function begins a new call.
    """

    def __init__(self) -> None:
        # By answer and index: the number, id and name of the call that began last.
        self._last: dict[tuple[int, int], tuple[int, str | None, str]] = {}
        self._counts: Counter[int] = Counter()

    def part(self, answer: int, place: int, call: _Call) -> ToolCallPart:
        """The piece at one place of a chunk."""
        function = call.function or _NO_FUNCTION
        arguments, name = as_text(function.arguments), function.name or ""
        key = answer, place if call.index is None else call.index
        number, id, known = self._last.get(key, (None, None, ""))
        if number is not None and (not name or (call.id or id, name) == (id, known)):
            return ToolCallPart(number, arguments)
        number = self._counts[answer]
        self._counts[answer] += 1
        self._last[key] = number, call.id, name
        return ToolCallPart(number, arguments, call.id or f"call_{uuid.uuid4().hex[:24]}", name)


def delta_of(choice: _Choice, index: int, calls: ToolCalls) -> Delta:
    """A choice as the delta of answer `index`, whether it ends the answer or not."""
    message = choice.delta or choice.message or _NO_MESSAGE
    text = message.text if choice.text is None else as_text(choice.text)
    logprobs = choice.logprobs.neutral() if choice.logprobs is not None else None
    pieces: tuple[ToolCallPart, ...] = ()
    if message.tool_calls:
        pieces = tuple(calls.part(index, *placed) for placed in enumerate(message.tool_calls))
    ended_by = (choice.stop_reason, choice.matched_stop)
    stop = next((s for s in ended_by if isinstance(s, str)), None)
    token = choice.stop_reason if type(choice.stop_reason) is int else None
    reasoning = message.reasoning or message.reasoning_content or ""
    return Delta(
        index,
        text,
        logprobs=logprobs,
        tool_calls=pieces,
        stop=stop,
        reasoning=reasoning,
        stop_token=token,
    )


def reason_of(choice: _Choice, where: str) -> FinishReason | None:
    """Why the answer ends; None while it goes on. Raises `UpstreamError` if the server failed."""
    given = choice.finish_reason  # some servers send "" before the end
    if not given:
        return None
    reason = given.partition(":")[0].strip().lower()  # Gemini's "content_filter: SAFETY"
    if reason in _FAILED:
        raise UpstreamError(
            f"{where}: the answer broke off, with the finish reason '{given[:SHOWN_CHARS]}'",
            retryable=True,
        )
    return _REASONS.get(reason, "stop")


def _detail(details: Any, name: str) -> int:
    return count(details.get(name)) if isinstance(details, dict) else 0


def leniently(form: Any, body: bytes, where: str) -> Any:
    """A body in its form, as far as it keeps that. Raises `UpstreamError`."""
    try:
        return lenient.read(body, form)
    except ValueError as error:
        raise error_inside(body, where) or _unreadable(
            f"{where} did not answer in OpenAI's form, {error}", body
        ) from None


def _unreadable(what: str, body: bytes) -> UpstreamError:
    """The error of an unusable answer, with the server's words: they may explain it."""
    text = body[:4096].decode(errors="replace")
    words = " ".join(text.split())[:SHOWN_CHARS]
    is_page = text.lstrip()[:1] not in ("{", "[")  # nothing, or a proxy's: it may pass
    what = f"{what}: {words or 'nothing'}"
    return UpstreamError(what, http_status=200, body=text, retryable=is_page)
