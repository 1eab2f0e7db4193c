"""Response bodies in OpenAI's form, built as plain dictionaries: a validation model for each would
cost more than it shows.
"""

from __future__ import annotations

import codecs
import struct
from base64 import b64encode
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from itertools import zip_longest
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from penstock.errors import PenstockError, RequestError
from penstock.openai.tool_forms import ToolForm
from penstock.types import (
    Delta,
    Embeddings,
    TokenLogprob,
    Transcription,
    TranscriptionSegment,
    Usage,
)


class UsageTotal:
    """Sums the usages of answers. `n` answers (default: all) share a prompt, which counts once."""

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
        prompts: dict[int, tuple[int, Usage]] = {}
        for index, usage in self._usages:
            prompt = index // self._n if self._n else 0
            # The first answer's last one: an image's tokens are counted exactly only at the end.
            if prompt not in prompts or prompts[prompt][0] == index:
                prompts[prompt] = index, usage
        return Usage(
            sum(usage.prompt_tokens for _, usage in prompts.values()),
            sum(usage.completion_tokens for _, usage in self._usages),
            sum(usage.cached_tokens for _, usage in prompts.values()),
            sum(usage.reasoning_tokens for _, usage in self._usages),
        )


class ToolCall(Struct):
    """A finished tool call; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


class Answers(UsageTotal):
    """Collects the deltas of one request into its finished answers, by index."""

    def __init__(self, deltas: Iterable[Delta] = ()) -> None:
        super().__init__()
        self.texts: dict[int, str] = {}
        self.logprobs: dict[int, list[TokenLogprob]] = {}
        self.reasons: dict[int, str] = {}
        self.tool_calls: dict[int, list[ToolCall]] = {}
        self.stops: dict[int, str] = {}
        self.stop_tokens: dict[int, int] = {}
        self.reasoning: dict[int, str] = {}
        self.prompt_logprobs: dict[int, tuple[TokenLogprob, ...]] = {}
        self.prompt_token_ids: tuple[int, ...] | None = None
        self.token_ids: dict[int, list[int]] = {}
        self.kv_transfer_params: dict[str, Any] | None = None
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
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs[index] = delta.prompt_logprobs
        if delta.prompt_token_ids is not None:
            self.prompt_token_ids = delta.prompt_token_ids
        if self.prompt_token_ids is not None:
            self.token_ids.setdefault(index, []).extend(delta.token_ids)
        if delta.kv_transfer_params is not None:
            self.kv_transfer_params = delta.kv_transfer_params
        if delta.finish_reason is not None:
            self.reasons[index] = delta.finish_reason
        if delta.stop is not None:
            self.stops[index] = delta.stop
        if delta.stop_token is not None:
            self.stop_tokens[index] = delta.stop_token
        if delta.reasoning:
            self.reasoning[index] = self.reasoning.get(index, "") + delta.reasoning
        if delta.tool_calls:
            calls = self.tool_calls.setdefault(index, [])
            for part in delta.tool_calls:
                if part.id is not None:
                    calls.append(ToolCall(part.id, part.name or "", part.arguments))
                else:
                    calls[part.number].arguments += part.arguments
        super().add(delta)

    @property
    def transfer(self) -> dict[str, Any]:
        """The field of an answer's body for who fetches its KV cache, if there is one."""
        params = self.kv_transfer_params
        return {"kv_transfer_params": params} if params else {}

    def stop_reason(self, index: int) -> str | int | None:
        """vLLM's `stop_reason`: the stop string or the id that ended an answer, if any."""
        return self.stops.get(index, self.stop_tokens.get(index))


class BestOf(Struct, frozen=True):
    """`best_of`: the `n` answers with the highest log probability a token stay; `logprobs`: the
    client wants to see them.
    """

    n: int
    logprobs: bool = False

    def of(self, answers: Answers) -> list[int]:
        """The indexes of the best answers, the best first."""
        score = {
            index: sum(token.logprob or 0.0 for token in tokens) / max(len(tokens), 1)
            for index, tokens in answers.logprobs.items()
        }
        return sorted(answers.texts, key=lambda index: -score.get(index, 0.0))[: self.n]


def chat_completion(
    answers: Answers, *, id: str, created: int, model: str, form: ToolForm | None = None
) -> dict[str, Any]:
    """Body of an unstreamed chat answer. `created` is in Unix seconds; `form` is that of the tools,
    where it is not the usual one.
    """
    form = form or ToolForm()
    choices: list[dict[str, Any]] = [
        {
            "index": index,
            "message": form.message(
                _message(text, answers.tool_calls.get(index), answers.reasoning.get(index))
            ),
            "logprobs": chat_logprobs(answers.logprobs.get(index)),
            "finish_reason": form.reason(answers.reasons.get(index)),
            "stop_reason": answers.stop_reason(index),
        }
        for index, text in sorted(answers.texts.items())
    ]
    body = _body(id, "chat.completion", created, model, choices, answers.usage)
    if answers.prompt_logprobs:  # the answers share their prompt
        body["prompt_logprobs"] = prompt_logprob_list(next(iter(answers.prompt_logprobs.values())))
    if answers.prompt_token_ids is not None:
        body["prompt_token_ids"] = answers.prompt_token_ids
        for choice, (_, ids) in zip(choices, sorted(answers.token_ids.items()), strict=True):
            choice["token_ids"] = ids
    return body | answers.transfer


def completion(
    answers: Iterable[Answers], *, id: str, created: int, model: str, best: BestOf | None = None
) -> dict[str, Any]:
    """Body of an unstreamed plain completion; `answers` has one element a prompt."""
    choices: list[dict[str, Any]] = []
    usage = Usage()
    for one in answers:
        usage += one.usage
        for index in sorted(one.texts) if best is None else best.of(one):
            hidden = best is not None and not best.logprobs
            choice = {
                "index": len(choices),
                "text": one.texts[index],
                "logprobs": None if hidden else completion_logprobs(one.logprobs.get(index)),
                "finish_reason": one.reasons.get(index),
                "stop_reason": one.stop_reason(index),
            }
            if index in one.prompt_logprobs:
                choice["prompt_logprobs"] = prompt_logprob_list(one.prompt_logprobs[index])
            if one.prompt_token_ids is not None:
                choice["prompt_token_ids"] = one.prompt_token_ids
                choice["token_ids"] = one.token_ids[index]
            choices.append(choice)
    return _body(id, "text_completion", created, model, choices, usage)


def embedding_list(embeddings: Embeddings, *, model: str, base64: bool = False) -> dict[str, Any]:
    """Body of an embeddings answer."""
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": encoded_vector(vector, base64),
            }
            for index, vector in enumerate(embeddings.vectors)
        ],
        "model": model,
        "usage": prompt_usage(embeddings.usage),
    }


def encoded_vector(vector: list[float], base64: bool) -> list[float] | str:
    """A vector as a list of numbers, or as the base64 of its little-endian 32-bit floats."""
    return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if base64 else vector


def prompt_usage(usage: Usage) -> dict[str, int]:
    """The `usage` object of an answer without generated tokens."""
    return {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens}


def usage_body(usage: Usage) -> dict[str, Any]:
    """The `usage` object in OpenAI's form: tokens of the prompt, of the answer, and in total.
    `completion_tokens_details` is there where reasoning was counted.
    """
    body: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
    if usage.reasoning_tokens:
        body["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return body


def usage_in(body: Mapping[str, Any]) -> Usage:
    """The counts of a `usage` object in either of OpenAI's forms, or in Anthropic's, which counts
    apart the tokens of a prompt that came from a cache or went into one. A count that is missing,
    or is no number, is 0.
    """
    cached = _number(body, "cache_read_input_tokens")
    apart = cached + _number(body, "cache_creation_input_tokens")
    return Usage(
        _number(body, "prompt_tokens") + _number(body, "input_tokens") + apart,
        _number(body, "completion_tokens") + _number(body, "output_tokens"),
        _details(body, ("prompt_tokens_details", "input_tokens_details"), "cached_tokens") + cached,
        _details(body, ("completion_tokens_details", "output_tokens_details"), "reasoning_tokens"),
    )


def _number(body: Mapping[str, Any], name: str) -> int:
    value = body.get(name)
    return value if isinstance(value, int) else 0


def _details(body: Mapping[str, Any], names: tuple[str, str], count: str) -> int:
    parts = (body.get(name) for name in names)
    return sum(_number(part, count) for part in parts if isinstance(part, Mapping))


def error_body(error: PenstockError) -> dict[str, Any]:
    """The body of a failed request: `{"error": {message, type, param, code}}`."""
    kind = "invalid_request_error" if isinstance(error, RequestError) else "server_error"
    about = {"message": str(error), "type": kind, "param": error.param, "code": error.kind}
    return {"error": about}


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


def _message(text: str, calls: Sequence[ToolCall] | None, reasoning: str | None) -> dict[str, Any]:
    head = {"role": "assistant", **reasoning_fields(reasoning)}
    if not calls:
        return {**head, "content": text}
    return {**head, "content": text or None, "tool_calls": tool_call_list(calls)}


def reasoning_fields(reasoning: str | None) -> dict[str, str]:
    """Reasoning under both names that clients read: vLLM's, and DeepSeek's and older vLLM's."""
    return {"reasoning": reasoning, "reasoning_content": reasoning} if reasoning else {}


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
    return {"content": token_logprobs(tokens), "refusal": None}


def token_logprobs(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Tokens with their log probabilities and the most likely ones, each with its bytes."""
    return [
        {
            **_token(t.token, t.logprob, t.raw),
            "top_logprobs": [
                _token(name, value, raw) for (name, value), raw in zip_longest(t.top, t.top_raw)
            ],
        }
        for t in tokens
    ]


def _token(text: str, logprob: float | None, raw: bytes | None) -> dict[str, Any]:
    return {
        "token": text,
        "logprob": logprob,
        "bytes": list(text.encode() if raw is None else raw),
    }


class TextOffsets:
    """Where each token of a text begins, in characters. The tokens of a split character all begin
    where it does.
    """

    def __init__(self) -> None:
        self._at = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def of(self, token: TokenLogprob) -> int:
        """The place of the next token."""
        begin = self._at
        text = token.token if token.raw is None else self._decoder.decode(token.raw)
        self._at += len(text)
        return begin


def completion_logprobs(
    tokens: Sequence[TokenLogprob] | None, offsets: TextOffsets | None = None
) -> dict[str, Any] | None:
    """`logprobs` of a plain completion's choice. `offsets` knows the tokens before these."""
    if tokens is None:
        return None
    offsets = offsets or TextOffsets()
    names = [_name(t.token, t.raw) for t in tokens]
    top = None
    if any(t.top for t in tokens):
        top = [
            {name: t.logprob, **_named_top(t)} if t.top else None
            for name, t in zip(names, tokens, strict=True)
        ]
    return {
        "tokens": names,
        "token_logprobs": [t.logprob for t in tokens],
        "top_logprobs": top,
        "text_offset": [offsets.of(token) for token in tokens],
    }


def _name(text: str, raw: bytes | None) -> str:
    """A token's name. Parts of characters have no text that tells them apart, so their bytes do, as
    in OpenAI's API.
    """
    if raw is None or text.strip("\ufffd"):
        return text
    try:
        raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
    return text


def _named_top(token: TokenLogprob) -> dict[str, float]:
    return {
        _name(text, raw): logprob
        for (text, logprob), raw in zip_longest(token.top, token.top_raw[: len(token.top)])
    }


def prompt_logprob_list(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any] | None]:
    """`prompt_logprobs` as vLLM has them: for each prompt token its entry and those of the most
    likely ones, by token id; null for the first.
    """
    found: list[dict[str, Any] | None] = []
    for token in tokens:
        if token.logprob is None:
            found.append(None)
            continue
        ranked = zip_longest(token.top_ids, token.top)
        entries = {
            str(number): _ranked(name, value, rank)
            for rank, (number, (name, value)) in enumerate(ranked, 1)
        }
        entries[str(token.id)] = _ranked(token.token, token.logprob, token.rank)
        found.append(entries)
    return found


def _ranked(text: str, logprob: float, rank: int | None) -> dict[str, Any]:
    return {"logprob": logprob, "rank": rank, "decoded_token": text}


TIMED_FORMATS = frozenset({"verbose_json", "srt", "vtt"})
"""The formats that need timestamps."""
TRANSCRIPT_FORMATS = ("json", "text", *sorted(TIMED_FORMATS))


def transcription(result: Transcription, form: str, task: str) -> dict[str, Any] | str:
    """A transcription in one of the formats: an object, or text. Raises `RequestError`."""
    if form == "text":
        return result.text
    if form not in TIMED_FORMATS:
        return {"text": result.text}
    if result.segments is None:
        raise RequestError(
            f"response_format '{form}' needs timestamps, which the engine does not give with this"
            " model: use json or text",
            param="response_format",
        )
    if form == "verbose_json":
        return verbose_transcription(result, result.segments, task)
    return subtitles(result.segments, form)


def verbose_transcription(
    result: Transcription, segments: Sequence[TranscriptionSegment], task: str = "transcribe"
) -> dict[str, Any]:
    """Body of `verbose_json`; `task` is "transcribe" or "translate". Times are in seconds,
    `language` is a code such as "en".
    """
    words = {} if result.words is None else {"words": [asdict(word) for word in result.words]}
    return {
        **words,
        "task": task,
        "language": result.language or "",
        "duration": result.duration
        if result.duration is not None
        else max((s.end for s in segments), default=0.0),
        "text": result.text,
        "segments": [
            {"id": n, "start": s.start, "end": s.end, "text": s.text}
            for n, s in enumerate(segments)
        ],
    }


def subtitles(segments: Sequence[TranscriptionSegment], form: str) -> str:
    """The segments as SubRip ("srt") or WebVTT ("vtt")."""
    point, head = (",", "") if form == "srt" else (".", "WEBVTT\n\n")
    cues = []
    for number, segment in enumerate(segments, 1):
        name = f"{number}\n" if form == "srt" else ""
        # A blank line would end the cue, and an arrow would begin another one.
        text = "\n".join(filter(None, map(str.strip, segment.text.splitlines()))).replace(
            "-->", "->"
        )
        cues.append(
            f"{name}{_clock(segment.start, point)} --> {_clock(segment.end, point)}\n{text}\n"
        )
    return head + "\n".join(cues)


def _clock(seconds: float, point: str) -> str:
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    minutes, seconds_left = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds_left:02}{point}{milliseconds:03}"
