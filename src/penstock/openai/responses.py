"""Response bodies in OpenAI's form, built as plain dictionaries: a validation model for each would
cost more than it shows.
"""

from __future__ import annotations

import struct
from base64 import b64encode
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import Any

from msgspec import Struct

from penstock.errors import PenstockError, RequestError
from penstock.types import Delta, Embeddings, TokenLogprob, Usage


class UsageTotal:
    """Sums the usages of answers. `n` answers share a prompt, which counts once."""

    def __init__(self, n: int | None = None) -> None:
        self._n = n
        self._usages: list[tuple[int, Usage]] = []

    def add(self, delta: Delta) -> None:
        """Add a delta's usage, if it has one."""
        if delta.usage is not None:
            self._usages.append((delta.index, delta.usage))

    @property
    def usage(self) -> Usage:
        if len(self._usages) == 1:
            return self._usages[0][1]
        prompts: dict[int, Usage] = {}
        for index, usage in self._usages:
            prompts.setdefault(index // self._n if self._n else 0, usage)
        return Usage(
            sum(usage.prompt_tokens for usage in prompts.values()),
            sum(usage.completion_tokens for _, usage in self._usages),
            sum(usage.cached_tokens for usage in prompts.values()),
        )


class ToolCall(Struct):
    """A finished tool call; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


class Answers:
    """Collects the deltas of one request into its finished answers, by index."""

    def __init__(self, deltas: Iterable[Delta] = ()) -> None:
        self.texts: dict[int, str] = {}
        self.logprobs: dict[int, list[TokenLogprob]] = {}
        self.reasons: dict[int, str] = {}
        self.tool_calls: dict[int, list[ToolCall]] = {}
        self.stops: dict[int, str] = {}
        self.reasoning: dict[int, str] = {}
        self._total = UsageTotal()
        for delta in deltas:
            self.add(delta)

    @classmethod
    async def of(cls, batches: AsyncGenerator[Sequence[Delta], None]) -> Answers:
        """The answers of one request, read to its end."""
        answers = cls()
        async with aclosing(batches):
            async for batch in batches:
                for delta in batch:
                    answers.add(delta)
        return answers

    def add(self, delta: Delta) -> None:
        """Append a delta's text, calls and logprobs to its answer."""
        index = delta.index
        self.texts[index] = self.texts.get(index, "") + delta.text
        if delta.logprobs is not None:
            self.logprobs.setdefault(index, []).extend(delta.logprobs)
        if delta.finish_reason is not None:
            self.reasons[index] = delta.finish_reason
        if delta.stop is not None:
            self.stops[index] = delta.stop
        if delta.reasoning:
            self.reasoning[index] = self.reasoning.get(index, "") + delta.reasoning
        if delta.tool_calls:
            calls = self.tool_calls.setdefault(index, [])
            for part in delta.tool_calls:
                if part.id is not None:
                    calls.append(ToolCall(part.id, part.name or "", part.arguments))
                else:
                    calls[part.number].arguments += part.arguments
        self._total.add(delta)

    @property
    def usage(self) -> Usage:
        """Tokens of all answers. The prompt, which they share, counts once."""
        return self._total.usage


def chat_completion(answers: Answers, *, id: str, created: int, model: str) -> dict[str, Any]:
    """Body of an unstreamed chat answer. `created` is in Unix seconds."""
    choices = [
        {
            "index": index,
            "message": _message(text, answers.tool_calls.get(index), answers.reasoning.get(index)),
            "logprobs": chat_logprobs(answers.logprobs.get(index)),
            "finish_reason": answers.reasons.get(index),
        }
        for index, text in sorted(answers.texts.items())
    ]
    return _body(id, "chat.completion", created, model, choices, answers.usage)


def completion(answers: Iterable[Answers], *, id: str, created: int, model: str) -> dict[str, Any]:
    """Body of an unstreamed plain completion; `answers` has one element a prompt."""
    choices: list[dict[str, Any]] = []
    usages: list[Usage] = []
    for one in answers:
        usages.append(one.usage)
        for index, text in sorted(one.texts.items()):
            choices.append(
                {
                    "index": len(choices),
                    "text": text,
                    "logprobs": completion_logprobs(one.logprobs.get(index)),
                    "finish_reason": one.reasons.get(index),
                }
            )
    usage = Usage(
        sum(u.prompt_tokens for u in usages),
        sum(u.completion_tokens for u in usages),
        sum(u.cached_tokens for u in usages),
    )
    return _body(id, "text_completion", created, model, choices, usage)


def embedding_list(embeddings: Embeddings, *, model: str, base64: bool = False) -> dict[str, Any]:
    """Body of an embeddings answer. A vector is a list of numbers, or the base64 of its
    little-endian 32-bit floats.
    """
    tokens = embeddings.usage.prompt_tokens
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": _base64(vector) if base64 else vector,
            }
            for index, vector in enumerate(embeddings.vectors)
        ],
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def usage_body(usage: Usage) -> dict[str, Any]:
    """The `usage` object in OpenAI's form: tokens of the prompt, of the answer, and in total."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def error_body(error: PenstockError) -> dict[str, Any]:
    """The body of a failed request: `{"error": {message, type, param, code}}`."""
    kind = "invalid_request_error" if isinstance(error, RequestError) else "server_error"
    param = error.param if isinstance(error, RequestError) else None
    return {"error": {"message": str(error), "type": kind, "param": param, "code": error.kind}}


def _body(
    id: str, object: str, created: int, model: str, choices: Sequence[dict[str, Any]], usage: Usage
) -> dict[str, Any]:
    return {
        "id": id,
        "object": object,
        "created": created,
        "model": model,
        "choices": choices,
        "usage": usage_body(usage),
    }


def _base64(vector: Sequence[float]) -> str:
    return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _message(text: str, calls: Sequence[ToolCall] | None, reasoning: str | None) -> dict[str, Any]:
    head = {"role": "assistant", **({"reasoning": reasoning} if reasoning else {})}
    if not calls:
        return {**head, "content": text}
    return {**head, "content": text or None, "tool_calls": tool_call_list(calls)}


def tool_call_list(calls: Sequence[ToolCall] | None) -> list[dict[str, Any]] | None:
    """`tool_calls` of a message; None for a message without calls."""
    if not calls:
        return None
    return [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in calls
    ]


def chat_logprobs(tokens: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    """`logprobs` of a chat choice; None where the request did not ask."""
    if tokens is None:
        return None
    return {
        "content": [
            {
                **_token(t.token, t.logprob),
                "top_logprobs": [_token(name, value) for name, value in t.top],
            }
            for t in tokens
        ],
        "refusal": None,
    }


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def completion_logprobs(
    tokens: Sequence[TokenLogprob] | None, offset: int = 0
) -> dict[str, Any] | None:
    """`logprobs` of a plain completion's choice. `offset` is the first token's position in the
    answer, in characters.
    """
    if tokens is None:
        return None
    offsets: list[int] = []
    at = offset
    for token in tokens:
        offsets.append(at)
        at += len(token.token)
    return {
        "tokens": [t.token for t in tokens],
        "token_logprobs": [t.logprob for t in tokens],
        "top_logprobs": [dict(t.top) for t in tokens] if any(t.top for t in tokens) else None,
        "text_offset": offsets,
    }
