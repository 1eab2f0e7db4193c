"""Streamed answers as server-sent events: each delta becomes the bytes of its event, once.

What all chunks of a stream have in common is encoded when the stream opens, so a token costs the
JSON of its text and one join. A framer has no clock and no socket; `penstock.serve.api.sse` sends
what it makes.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from penstock.errors import PenstockError
from penstock.openai.responses import (
    TextOffsets,
    UsageTotal,
    chat_logprobs,
    completion_logprobs,
    error_body,
    reasoning_fields,
    usage_body,
)
from penstock.openai.tool_forms import FormedCalls, ToolForm, call_chunk
from penstock.types import Delta, ToolCallPart, Usage

to_json = msgspec.json.Encoder().encode
DONE = b"data: [DONE]\n\n"


class Framer(Protocol):
    """Writes one stream: `open` once, `frame` for each delta, then `close` or `error`."""

    def open(self) -> bytes:
        """What comes before the first delta."""
        return b""

    def frame(self, delta: Delta) -> bytes:
        """The events of one delta; empty where it has nothing to show."""

    def close(self) -> bytes:
        """The end of a stream that went well."""

    def error(self, error: PenstockError) -> bytes:
        """The end of a stream that did not."""
        return error_events(error)


def data(body: Any) -> bytes:
    """An event without a name."""
    return b"data: %b\n\n" % to_json(body)


def event(name: str, body: Any) -> bytes:
    """One server-sent event with a name."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), to_json(body))


def error_events(error: PenstockError) -> bytes:
    """The end of a stream of chunks that went wrong."""
    return data(error_body(error)) + DONE


class RunningUsage:
    """Counts what a stream has used so far, for `continuous_usage_stats`. `n` answers (default:
    all) share a prompt.

    A delta without token ids, which a remote server's has not, counts as one token.
    """

    def __init__(self, n: int | None = None) -> None:
        self._n = n
        self._prompts: dict[int, Usage] = {}
        self._answers: dict[int, int] = {}

    def add(self, delta: Delta) -> bytes:
        """What stands behind a chunk's choices, this delta included."""
        index, usage = delta.index, delta.usage
        if usage is not None:
            self._prompts.setdefault(index // self._n if self._n else 0, usage)
        count = self._answers.get(index, 0) + (len(delta.token_ids) or bool(delta.text))
        if usage is not None and delta.finish_reason is not None:
            count = usage.completion_tokens
        self._answers[index] = count
        total = Usage(
            sum(one.prompt_tokens for one in self._prompts.values()),
            sum(self._answers.values()),
            sum(one.cached_tokens for one in self._prompts.values()),
        )
        return b'],"usage":%b}\n\n' % to_json(usage_body(total))


class ChatFramer(Framer):
    """Chunks of `POST /v1/chat/completions` for `n` answers. `form` is that of the tools, where it
    is not the usual one; with `continuous_usage` each chunk has the usage so far, and with
    `token_ids` the ids of its tokens, the first one the prompt's as well.
    """

    def __init__(
        self,
        *,
        id: str,
        created: int,
        model: str,
        n: int = 1,
        include_usage: bool = False,
        continuous_usage: bool = False,
        token_ids: bool = False,
        form: ToolForm | None = None,
    ) -> None:
        head, self._tail = _envelope(id, "chat.completion.chunk", created, model, include_usage)
        self._form = form or ToolForm()
        self._formed = None if self._form.plain else FormedCalls(self._form)
        self._running = RunningUsage() if continuous_usage else None
        self._token_ids = token_ids
        self._fast = not (continuous_usage or token_ids)
        self._choice = [b'%b{"index":%d,"delta":' % (head, index) for index in range(n)]
        self._content = [choice + b'{"content":' for choice in self._choice]
        self._plain_tail = b'},"logprobs":null,"finish_reason":null}' + self._tail
        self._head = head
        self._usage = UsageTotal() if include_usage else None

    def open(self) -> bytes:
        start = (
            b'{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}' + self._tail
        )
        return b"".join(choice + start for choice in self._choice)

    def frame(self, delta: Delta) -> bytes:
        if delta.chunks:
            forwarded = self._head + (b"\n\n" + self._head).join(delta.chunks) + b"\n\n"
            if delta.finish_reason is None and not (
                delta.text or delta.tool_calls or delta.reasoning
            ):
                return forwarded
            return forwarded + self.frame(msgspec.structs.replace(delta, chunks=()))
        if (
            delta.finish_reason is None
            and delta.logprobs is None
            and not delta.tool_calls
            and not delta.reasoning
            and self._fast
        ):
            # The path of nearly every token.
            return (
                self._content[delta.index] + to_json(delta.text) + self._plain_tail
                if delta.text
                else b""
            )
        return self._full(delta)

    def close(self) -> bytes:
        return _usage_chunk(self._head, self._usage) + DONE

    def _full(self, delta: Delta) -> bytes:
        content: dict[str, Any] = {"content": delta.text} if delta.text else {}
        if delta.reasoning:
            content |= reasoning_fields(delta.reasoning)
        if delta.tool_calls:
            parts = merged_parts(delta.tool_calls)
            if self._formed is not None:
                content |= self._formed.content(delta.index, parts)
            else:
                content["tool_calls"] = list(map(call_chunk, parts))
        if self._usage is not None:
            self._usage.add(delta)
        tail = self._tail if self._running is None else self._running.add(delta)
        ids = delta.token_ids if self._token_ids else ()
        if not (content or delta.finish_reason or delta.logprobs or ids):
            return b""
        logprobs = to_json(chat_logprobs(delta.logprobs))
        reason = _reason(delta, self._form.reason(delta.finish_reason))
        choice = self._choice[delta.index] + to_json(content)
        if self._token_ids:
            reason += _ids(token_ids=ids)
            if delta.prompt_token_ids is not None:
                tail = b"]" + _ids(prompt_token_ids=delta.prompt_token_ids) + tail[1:]
        return b'%b,"logprobs":%b,"finish_reason":%b}%b' % (choice, logprobs, reason, tail)


class CompletionFramer(Framer):
    """Chunks of `POST /v1/completions`, for `n` answers to each prompt by index. With
    `continuous_usage` each chunk has the usage so far, and with `token_ids` the ids of its tokens,
    an answer's first one its prompt's as well.
    """

    def __init__(
        self,
        *,
        id: str,
        created: int,
        model: str,
        n: int = 1,
        include_usage: bool = False,
        continuous_usage: bool = False,
        token_ids: bool = False,
    ) -> None:
        self._running = RunningUsage(n) if continuous_usage else None
        self._token_ids = token_ids
        self._fast = not (continuous_usage or token_ids)
        self._head, self._tail = _envelope(id, "text_completion", created, model, include_usage)
        self._plain_tail = b',"logprobs":null,"finish_reason":null}' + self._tail
        self._usage = UsageTotal(n) if include_usage else None
        self._offsets: dict[int, TextOffsets] = {}

    def frame(self, delta: Delta) -> bytes:
        choice = b'%b{"index":%d,"text":' % (self._head, delta.index)
        if delta.finish_reason is None and delta.logprobs is None and self._fast:
            return choice + to_json(delta.text) + self._plain_tail if delta.text else b""
        tail = self._tail if self._running is None else self._running.add(delta)
        ids = delta.token_ids if self._token_ids else ()
        if not (delta.text or delta.finish_reason or delta.logprobs or ids):
            return b""
        if self._usage is not None:
            self._usage.add(delta)
        offsets = self._offsets.setdefault(delta.index, TextOffsets())
        logprobs = to_json(completion_logprobs(delta.logprobs, offsets))
        reason = _reason(delta, delta.finish_reason)
        if self._token_ids:
            reason += _ids(token_ids=ids)
            if delta.prompt_token_ids is not None:
                reason += _ids(prompt_token_ids=delta.prompt_token_ids)
        return b'%b%b,"logprobs":%b,"finish_reason":%b}%b' % (
            choice,
            to_json(delta.text),
            logprobs,
            reason,
            tail,
        )

    def close(self) -> bytes:
        return _usage_chunk(self._head, self._usage) + DONE


def _envelope(
    id: str, object: str, created: int, model: str, include_usage: bool
) -> tuple[bytes, bytes]:
    """What stands before and behind the one choice of a chunk."""
    fields = to_json({"id": id, "object": object, "created": created, "model": model})
    # Where the usage was asked for, every chunk has the key.
    return b'data: %b,"choices":[' % fields[
        :-1
    ], b'],"usage":null}\n\n' if include_usage else b"]}\n\n"


def _reason(delta: Delta, name: str | None) -> bytes:
    """The finish reason, with vLLM's `stop_reason` where an answer ends."""
    if name is None:
        return b"null"
    return b'%b,"stop_reason":%b' % (
        to_json(name),
        to_json(delta.stop_token if delta.stop is None else delta.stop),
    )


def _ids(**ids: tuple[int, ...]) -> bytes:
    """Token ids as further fields of an object."""
    return b"".join(b',"%b":%b' % (name.encode(), to_json(given)) for name, given in ids.items())


def _usage_chunk(head: bytes, total: UsageTotal | None) -> bytes:
    return (
        b"" if total is None else b'%b],"usage":%b}\n\n' % (head, to_json(usage_body(total.usage)))
    )


def merged_parts(parts: tuple[ToolCallPart, ...]) -> list[ToolCallPart]:
    """The pieces of each call as one, which has all that a delta brings of it: OpenAI's Python
    client before 3.14 takes a second one in a chunk for a call of its own, and the other APIs write
    one call after another.
    """
    if len(parts) == 1:
        return list(parts)
    calls: dict[int, ToolCallPart] = {}
    for part in parts:
        if (first := calls.get(part.number)) is not None:
            part = msgspec.structs.replace(first, arguments=first.arguments + part.arguments)
        calls[part.number] = part
    return list(calls.values())
