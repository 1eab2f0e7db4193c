"""Parses the results of OpenAI-compatible servers: the answers of tasks that generate no text."""

from __future__ import annotations

import io
import wave
from typing import Any

import msgspec
from msgspec import Struct, field
from msgspec.structs import asdict

from penstock.engines.remote.answers import UsageBody, leniently
from penstock.engines.remote.decisions import DecisionAnswer, read_decisions
from penstock.errors import UpstreamError
from penstock.http.complaints import error_inside
from penstock.types import (
    Classification,
    Classifications,
    Embeddings,
    Scores,
    Speech,
    TokenizerInfo,
    Tokens,
    Transcription,
    TranscriptionSegment,
    TranscriptionWord,
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


class _Transcript(Struct):
    text: str
    segments: list[TranscriptionSegment] | None = None
    language: str | None = None
    duration: float | None = None
    words: list[TranscriptionWord] | None = None


class _Ids(Struct):
    tokens: list[int]
    token_strs: list[str] | None = None


class _Tokenizer(Struct):
    tokenizer_class: str = ""
    chat_template: str | None = None
    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    unk_token: str | None = None

    def neutral(self) -> TokenizerInfo:
        tokens = {name: text for name, text in asdict(self).items() if name.endswith("_token")}
        special = {name: text for name, text in tokens.items() if text}
        return TokenizerInfo(self.tokenizer_class, self.chat_template, special)


class _Prompt(Struct):
    prompt: str | None = None
    text: str | None = None  # SGLang's name for `prompt`


def read_task(task: str, request: Any, body: bytes, where: str) -> Any:
    """The result of `task` in a body. Raises `UpstreamError`, which calls the server `where`."""
    match task:
        case "decide":
            return read_decisions(request, _as(DecisionAnswer, body, where), where)
        case "embeddings":
            return _embeddings(body, where, len(request.inputs))
        case "score" | "rerank":
            return _scores(body, where, len(request.documents))
        case "classify":
            return _classifications(body, where, len(request.inputs))
        case "transcriptions":
            return _transcription(body, where)
        case "speech":
            return _spoken(body, where)
        case "tokenize":
            return _as(_Ids, body, where).tokens
        case "tokens":
            found = _as(_Ids, body, where)
            return Tokens(found.tokens, found.token_strs)
        case "tokenizer_info":
            return _as(_Tokenizer, body, where).neutral()
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
        label = one.label if one.label is not None else str(likeliest)
        items.append(Classification(label, one.probs))
    return Classifications(items, parsed.usage.neutral())


def _transcription(body: bytes, where: str) -> Transcription:
    """The answer of `/audio/transcriptions`. Only some servers send more than the text."""
    parsed: _Transcript = _as(_Transcript, body, where)
    return Transcription(
        parsed.text.strip(),
        Usage(),
        None if parsed.segments is None else tuple(parsed.segments),
        parsed.language,
        parsed.duration,
        None if parsed.words is None else tuple(parsed.words),
    )


def _spoken(body: bytes, where: str) -> Speech:
    """The answer of `/audio/speech`, a WAV file of 16-bit mono samples. One that was written as a
    stream does not know its length.
    """
    try:
        with wave.open(io.BytesIO(body)) as file:
            form = file.getsampwidth(), file.getnchannels()
            speech = Speech(file.readframes(file.getnframes()), file.getframerate())
    except (wave.Error, EOFError):
        raise UpstreamError(f"{where} sent no WAV file", http_status=200) from None
    if form != (2, 1):
        raise UpstreamError(
            f"{where} sent a WAV file with other samples than 16-bit mono", http_status=200
        )
    return speech


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
        return leniently(form, body, where)
