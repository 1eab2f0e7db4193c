"""`POST /v1/audio/transcriptions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from starlette.datastructures import FormData, UploadFile
from starlette.responses import PlainTextResponse, Response

from penstock.errors import ContentTypeError, RequestError, UnsupportedError
from penstock.serve.exchange import Exchange
from penstock.serve.limits import read_body
from penstock.types import TranscriptionRequest

_FIELDS = frozenset({"file", "model", "language", "response_format", "temperature", "prompt", "stream", "max_tokens"})


async def transcriptions(exchange: Exchange) -> Response:
    """Write down speech from an uploaded file."""
    async with _form(exchange) as form:
        return await _answer(exchange, form)


async def _answer(exchange: Exchange, form: FormData) -> Response:
    for name in form:
        if name not in _FIELDS:
            raise RequestError(f"unknown parameter '{name[:100]}'", param=name[:100])
    upload = form.get("file")
    if not isinstance(upload, UploadFile):
        raise RequestError("file is missing", param="file")
    target = await exchange.target(_text(form, "model"))
    shape = _text(form, "response_format") or "json"
    if shape not in ("json", "text"):
        raise UnsupportedError(f"response_format '{shape[:50]}' is not supported: json, text", param="response_format")
    if _text(form, "stream").lower() in ("true", "1"):
        raise UnsupportedError("streamed transcriptions are not supported", param="stream")
    request = TranscriptionRequest(
        await upload.read(),
        language=_text(form, "language") or None,
        max_tokens=_max_tokens(form),
        request_id=exchange.id,
    )
    result = await exchange.wait(target.handle.transcriptions(request))
    exchange.usage = result.usage
    return PlainTextResponse(result.text) if shape == "text" else exchange.json({"text": result.text})


@asynccontextmanager
async def _form(exchange: Exchange) -> AsyncIterator[FormData]:
    """The multipart form, its size bounded before it is parsed."""
    from starlette.formparsers import MultiPartException, MultiPartParser  # needs python-multipart

    request = exchange.request
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise ContentTypeError("the content type must be multipart/form-data")
    limits = exchange.ingress.settings.limits
    body = await read_body(request, limits)

    async def once() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(request.headers, once(), max_files=1, max_fields=20, max_part_size=limits.max_body_bytes)
    try:
        form = await parser.parse()
    except (MultiPartException, UnicodeDecodeError, KeyError, ValueError) as error:
        raise RequestError(f"the form cannot be read: {error}") from None
    try:
        yield form
    finally:
        await form.close()


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
