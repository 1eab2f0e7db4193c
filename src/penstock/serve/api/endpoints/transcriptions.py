"""Speech: `POST /v1/audio/transcriptions`, `/v1/audio/translations` and `/v1/audio/speech`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.responses import PlainTextResponse, Response

from penstock.engines.media.audio import CONTENT_TYPES, audio_file, check_form, window_listener
from penstock.engines.side_by_side import end_all
from penstock.engines.tasks import Batches
from penstock.errors import ContentTypeError, MissingExtraError, RequestError, UnsupportedError
from penstock.openai.audio import (
    SpeechBody,
    TranscriptFramer,
    TranscriptionBody,
    TranslationBody,
    as_values,
)
from penstock.openai.parameters.body import parse_body
from penstock.openai.responses import TRANSCRIPT_FORMATS, transcription
from penstock.serve.api.exchange import Exchange
from penstock.serve.api.limits import check_coding, check_texts
from penstock.serve.api.sse import EventStream
from penstock.serve.models.handle import ModelHandle
from penstock.types import Delta, Transcription, TranscriptionRequest

FORM: dict[str, Any] = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {"type": "string", "contentMediaType": "application/octet-stream"},
        "model": {"type": "string"},
        "language": {"type": "string"},
        "response_format": {"enum": list(TRANSCRIPT_FORMATS)},
        "max_tokens": {"type": "integer", "minimum": 1},
        "max_completion_tokens": {"type": "integer", "minimum": 1},
        "prompt": {"type": "string"},
        "hotwords": {"type": "string"},
        "stream": {"type": "boolean"},
        "timestamp_granularities[]": {"type": "array", "items": {"enum": ["segment", "word"]}},
    },
}
"""The JSON Schema of the multipart form, for the API's description."""
_MOST_FIELDS = 40


async def transcriptions(exchange: Exchange) -> Response:
    """Write down speech from an uploaded file."""
    return await _answer(exchange, TranscriptionBody)


async def translations(exchange: Exchange) -> Response:
    """Write down speech from an uploaded file in English, whatever its language."""
    return await _answer(exchange, TranslationBody)


async def speech(exchange: Exchange, body: SpeechBody) -> Response:
    """Speak a text, in one file."""
    target = await exchange.target(body.model)
    request = body.request(request_id=exchange.answer_id)
    check_texts([request.text], exchange.limits, "input")
    try:
        check_form(body.response_format)
    except MissingExtraError as error:
        raise UnsupportedError(f"{error}; or ask for wav or pcm", param="response_format") from None
    result = await exchange.wait(target.handle.speech(request))
    exchange.usage = result.usage
    file = await asyncio.to_thread(audio_file, result, body.response_format)
    return Response(file, media_type=CONTENT_TYPES[body.response_format])


async def _answer(exchange: Exchange, kind: type[TranscriptionBody]) -> Response:
    form = await _form(exchange)
    try:
        body = parse_body(kind, as_values(form.multi_items()))
        if not isinstance(body.file, UploadFile):
            raise RequestError("file is missing", param="file")
        target = await exchange.target(body.model)
        request = body.request(await body.file.read(), request_id=exchange.answer_id)
    finally:
        await form.close()
    if body.stream:
        if request.timestamps:
            raise UnsupportedError(
                f"a stream has text only: response_format '{body.response_format}' comes whole",
                param="stream",
            )
        return EventStream(exchange, _streamed(target.handle, request), TranscriptFramer())
    result = await exchange.wait(target.handle.transcriptions(request))
    exchange.usage = result.usage
    made = transcription(result, body.response_format, body.task)
    return PlainTextResponse(made) if isinstance(made, str) else exchange.json(made)


async def _streamed(handle: ModelHandle, request: TranscriptionRequest) -> Batches:
    """The text of each window of a recording as soon as it has been heard."""
    windows: asyncio.Queue[Transcription | None] = asyncio.Queue()
    heard = 0

    def take(window: int, part: Transcription) -> None:
        nonlocal heard
        if window == heard:  # else it is heard again, after a death of the engine
            heard += 1
            windows.put_nowait(part)

    async def run() -> Transcription:
        window_listener.set(take)
        try:
            return await handle.transcriptions(request)
        finally:
            windows.put_nowait(None)

    running = asyncio.create_task(run())
    try:
        between = ""
        while (part := await windows.get()) is not None:
            if part.text:
                yield [Delta(text=between + part.text)]
                between = " "
        result = await running
        text = "" if heard else result.text
        yield [Delta(text=text, finish_reason="stop", usage=result.usage)]
    finally:
        await end_all([running])


async def _form(exchange: Exchange) -> FormData:
    """The multipart form, its size bounded before it is parsed."""
    from starlette.formparsers import MultiPartException, MultiPartParser  # needs python-multipart

    request = exchange.request
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise ContentTypeError("the content type must be multipart/form-data")
    check_coding(request)
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
