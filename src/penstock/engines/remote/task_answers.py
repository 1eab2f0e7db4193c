"""Parses the answers of OpenAI-compatible servers to all tasks but chats and completions.

Everything here raises `UpstreamError` for an answer that it cannot use.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct, field

from penstock.engines.remote import lenient
from penstock.engines.remote.answers import UsageBody, not_openai
from penstock.errors import UpstreamError
from penstock.http.complaints import error_inside
from penstock.types import (
    Classification,
    Classifications,
    Embeddings,
    Scores,
    Transcription,
    TranscriptionSegment,
    Usage,
)


class _Vector(Struct):
    embedding: list[float]
    index: int | None = None


class _Vectors(Struct):
    data: list[_Vector]
    usage: UsageBody = field(default_factory=UsageBody)


class _Scored(Struct):
    index: int
    score: float | None = None
    relevance_score: float | None = None


class _ScoreData(Struct):
    data: list[_Scored] = field(default_factory=list)
    results: list[_Scored] = field(default_factory=list)
    usage: UsageBody = field(default_factory=UsageBody)


class _Class(Struct):
    label: str | None = None
    probs: list[float] = field(default_factory=list)


class _Classes(Struct):
    data: list[_Class]
    usage: UsageBody = field(default_factory=UsageBody)


class _Segment(Struct):
    start: float
    end: float
    text: str


class _Speech(Struct):
    text: str
    segments: list[_Segment] | None = None
    language: str | None = None
    duration: float | None = None


class _Ids(Struct):
    tokens: list[int]


class _Prompt(Struct):
    prompt: str | None = None
    text: str | None = None  # SGLang's name for `prompt`


def read(task: str, request: Any, body: bytes, where: str) -> Any:
    """The result of `task`, parsed from the answer's body. `where` is the server's name in
    errors.
    """
    match task:
        case "embeddings":
            return _embeddings(body, where, len(request.inputs))
        case "score" | "rerank":
            return _scores(body, where, len(request.documents))
        case "classify":
            return _classifications(body, where, len(request.inputs))
        case "transcriptions":
            return _transcription(body, where)
        case "tokenize":
            return _token_ids(body, where)
        case _:
            return _prompt(body, where)


def _embeddings(body: bytes, where: str, count: int) -> Embeddings:
    """The answer of `/embeddings` to `count` texts, one vector each."""
    parsed = _as(_Vectors, body, where)
    ordered = sorted(
        enumerate(parsed.data), key=lambda pair: pair[0] if pair[1].index is None else pair[1].index
    )
    if len(ordered) != count:
        raise UpstreamError(
            f"{where} answered with {len(ordered)} vectors to {count} texts", http_status=200
        )
    return Embeddings([vector.embedding for _, vector in ordered], parsed.usage.neutral())


def _scores(body: bytes, where: str, count: int) -> Scores:
    """The answer of `/score` or `/rerank` to `count` documents, in the documents' order."""
    parsed = _as(_ScoreData | list[_Scored], body, where)
    if isinstance(parsed, list):  # SGLang sends a bare list
        parsed = _ScoreData(parsed)
    found: dict[int, float] = {}
    for item in parsed.data or parsed.results:
        value = item.score if item.score is not None else item.relevance_score
        if value is not None:
            found[item.index] = value
    if sorted(found) != list(range(count)):
        raise UpstreamError(
            f"{where} answered with {len(found)} scores to {count} documents", http_status=200
        )
    return Scores([found[number] for number in range(count)], parsed.usage.neutral())


def _classifications(body: bytes, where: str, count: int) -> Classifications:
    """The answer of vLLM's `/classify` to `count` texts, one class each."""
    parsed: _Classes = _as(_Classes, body, where)
    if len(parsed.data) != count:
        raise UpstreamError(
            f"{where} answered with {len(parsed.data)} classes to {count} texts", http_status=200
        )
    items = []
    for one in parsed.data:
        likeliest = max(range(len(one.probs)), key=one.probs.__getitem__, default=0)
        items.append(
            Classification(one.label if one.label is not None else str(likeliest), one.probs)
        )
    return Classifications(items, parsed.usage.neutral())


def _transcription(body: bytes, where: str) -> Transcription:
    """The answer of `/audio/transcriptions`; segments, language and duration only if the server
    sends them.
    """
    parsed: _Speech = _as(_Speech, body, where)
    segments = None
    if parsed.segments is not None:
        segments = tuple(
            TranscriptionSegment(one.start, one.end, one.text) for one in parsed.segments
        )
    return Transcription(parsed.text.strip(), Usage(), segments, parsed.language, parsed.duration)


def _token_ids(body: bytes, where: str) -> list[int]:
    """The token ids in the answer of `/tokenize`."""
    ids: list[int] = _as(_Ids, body, where).tokens
    return ids


def _prompt(body: bytes, where: str) -> str:
    """The text in the answer of `/detokenize`."""
    parsed: _Prompt = _as(_Prompt, body, where)
    text = parsed.prompt if parsed.prompt is not None else parsed.text
    if text is None:
        raise UpstreamError(f"{where} answered without a text", http_status=200)
    return text


def _as(form: Any, body: bytes, where: str) -> Any:
    if (failure := error_inside(body, where)) is not None:
        raise failure
    try:
        # OpenAI's API has sent numbers as text.
        return msgspec.json.decode(body, type=form, strict=False)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return lenient.read(body, form)
    except ValueError as error:
        raise not_openai(body, where, error) from None
