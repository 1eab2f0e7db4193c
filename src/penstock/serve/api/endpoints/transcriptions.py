"""`POST /v1/audio/transcriptions` and `/v1/audio/translations`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Literal

from starlette.datastructures import FormData, UploadFile
from starlette.responses import PlainTextResponse, Response

from penstock.errors import ContentTypeError, RequestError, UnsupportedError, nearest
from penstock.openai.responses import (
    TIMED_FORMATS,
    TRANSCRIPT_FORMATS,
    subtitles,
    verbose_transcription,
)
from penstock.serve.api.exchange import Exchange
from penstock.types import TranscriptionRequest

FORM: dict[str, Any] = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {"type": "string", "contentMediaType": "application/octet-stream"},
        "model": {"type": "string"},
        "language": {"type": "string"},
        "response_format": {"enum": list(TRANSCRIPT_FORMATS)},
        "max_tokens": {"type": "integer", "minimum": 1},
    },
}
"""The JSON Schema of the multipart form, for the API's description."""
_GRANULARITIES = "timestamp_granularities[]"
_MOST_FIELDS = 20
_FIELDS = {*FORM["properties"], "temperature", "prompt", "stream", _GRANULARITIES}


async def transcriptions(exchange: Exchange) -> Response:
    """Write down speech from an uploaded file."""
    form = await _form(exchange)
    try:
        return await _answer(exchange, form, "transcribe")
    finally:
        await form.close()


async def translations(exchange: Exchange) -> Response:
    """Write down speech from an uploaded file in English, whatever its language."""
    form = await _form(exchange)
    try:
        if _text(form, "to_language") not in ("", "en"):
            raise UnsupportedError("speech is translated to English only", param="to_language")
        return await _answer(exchange, form, "translate")
    finally:
        await form.close()


async def _answer(
    exchange: Exchange, form: FormData, task: Literal["transcribe", "translate"]
) -> Response:
    for name in form:
        if name not in _FIELDS and (name, task) != ("to_language", "translate"):
            raise RequestError(f"unknown parameter '{name[:100]}'", param=name[:100])
    upload = form.get("file")
    if not isinstance(upload, UploadFile):
        raise RequestError("file is missing", param="file")
    target = await exchange.target(_text(form, "model"))
    shape = _text(form, "response_format") or "json"
    if shape not in TRANSCRIPT_FORMATS:
        hint = nearest(shape[:50], TRANSCRIPT_FORMATS)
        raise RequestError(
            f"unknown response_format '{shape[:50]}'. {hint}", param="response_format"
        )
    _check_unsupported(form)
    timed = shape in TIMED_FORMATS
    request = TranscriptionRequest(
        await upload.read(),
        language=_text(form, "language") or None,
        task=task,
        max_tokens=_max_tokens(form),
        request_id=exchange.answer_id,
        timestamps=timed,
    )
    result = await exchange.wait(target.handle.transcriptions(request))
    exchange.usage = result.usage
    if shape == "text":
        return PlainTextResponse(result.text)
    if not timed:
        return exchange.json({"text": result.text})
    if result.segments is None:
        raise RequestError(
            f"response_format '{shape}' needs timestamps, which the {target.handle.engine_name}"
            " engine does not give with this model: use json or text",
            param="response_format",
        )
    if shape == "verbose_json":
        return exchange.json(verbose_transcription(result, result.segments))
    return PlainTextResponse(subtitles(result.segments, shape))


def _check_unsupported(form: FormData) -> None:
    """Refuse parameters that would otherwise be ignored silently."""
    if _text(form, "stream").lower() in ("true", "1"):
        raise UnsupportedError("streamed transcriptions are not supported", param="stream")
    if _text(form, "prompt"):
        raise UnsupportedError("a prompt for a transcription is not supported", param="prompt")
    if _text(form, "temperature") not in ("", "0", "0.0"):
        raise UnsupportedError(
            "transcriptions are greedy: temperature can only be 0", param="temperature"
        )
    if any(wanted != "segment" for wanted in form.getlist(_GRANULARITIES)):
        raise UnsupportedError("timestamps are given for segments only", param=_GRANULARITIES)


async def _form(exchange: Exchange) -> FormData:
    """The multipart form, its size bounded before it is parsed."""
    from starlette.formparsers import MultiPartException, MultiPartParser  # needs python-multipart

    request = exchange.request
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise ContentTypeError("the content type must be multipart/form-data")
    body = await exchange.read()

    async def once() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(
        request.headers,
        once(),
        max_files=1,
        max_fields=_MOST_FIELDS,
        max_part_size=exchange.limits.max_body_bytes,
    )
    try:
        return await parser.parse()
    except (MultiPartException, UnicodeDecodeError, KeyError, ValueError):
        raise RequestError(
            "the multipart form cannot be read: it must be whole, with at most one file and"
            f" {_MOST_FIELDS} fields"
        ) from None


def _text(form: FormData, name: str) -> str:
    value = form.get(name, "")
    if not isinstance(value, str):
        raise RequestError(f"{name} must be a text", param=name)
    return value


def _max_tokens(form: FormData) -> int | None:
    text = _text(form, "max_tokens")
    if not text:
        return None
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:12]) < 2**31:
        raise RequestError("max_tokens must be a positive whole number", param="max_tokens")
    return int(text[:12])
