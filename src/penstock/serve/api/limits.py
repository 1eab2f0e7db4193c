"""Reads request bodies and enforces the operator's limits, before any engine sees the request."""

from __future__ import annotations

import asyncio
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Sized
from itertools import chain
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace
from starlette.requests import ClientDisconnect, Request

from penstock.engines.decisions.checks import chars_of
from penstock.errors import (
    BodyTooLargeError,
    ClientGoneError,
    ContentTypeError,
    ContextLengthError,
    RequestError,
    SlowRequestError,
    TooManyRequestsError,
)
from penstock.serve.config.settings import HttpSettings, Limits
from penstock.types import ChatRequest, CompletionRequest, DecideRequest

Generating = TypeVar("Generating", ChatRequest, CompletionRequest)
SLOWEST_BODY_BYTES_S = 8192
"""A body that comes at least this fast never times out."""
MOST_PARTS, MOST_VALUES = 50_000, 1_000_000
"""The most objects and lists of a JSON body, and the most values (counted by commas)."""
MANY_PARTS = 2000
"""A body with more objects and lists goes to a thread: each takes some microseconds to check."""
_MOST_METADATA, _LONGEST_KEY, _LONGEST_VALUE = 16, 64, 512
_TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


def check_json(request: Request) -> None:
    """Refuse a body whose content type is not JSON, or which is compressed."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise ContentTypeError(f"the content type must be application/json, not '{kind[:100]}'")
    check_coding(request)


def check_coding(request: Request) -> None:
    """Refuse a body that is compressed."""
    coding = request.headers.get("content-encoding", "identity").lower()
    if coding != "identity":
        raise ContentTypeError(
            f"the content-encoding '{coding[:100]}' is not supported: send the body as it is"
        )


def check_extent(body: bytes, limits: Limits) -> int:
    """Refuse a JSON body with too many objects and lists (messages, parts, tools, prompts), or too
    many values, to check each of them in time. Brackets and commas inside texts do not count.
    Returns the number of objects and lists, to which brackets inside texts may add.
    """
    parts = _counted(body, b"{[", MOST_PARTS, "objects and lists", limits)
    _counted(body, b",", MOST_VALUES, "values", limits)
    return parts


def _counted(body: bytes, marks: bytes, most: int, what: str, limits: Limits) -> int:
    raw = sum(body.count(mark) for mark in marks)
    if raw > most + limits.max_prompt_chars or (
        raw > most and sum(map(_TEXT.sub(b"", body).count, marks)) > most
    ):
        raise RequestError(f"the request body has more than {most:,} {what}")
    return raw


def decode_body(body: bytes, form: Any) -> Any:
    """Decode a JSON body into `form`. Raises `RequestError`."""
    body = body.removeprefix(BOM_UTF8)
    try:
        return msgspec.json.decode(body, type=form)
    except RecursionError:
        raise RequestError("the request body is nested too deeply") from None
    except (ValueError, OverflowError):  # msgspec's errors and bad UTF-8 are ValueErrors
        raise RequestError(_body_fault(body, form)) from None


def _body_fault(body: bytes, form: Any) -> str:
    from penstock.parsing import json_fault  # imported only for an error
    from penstock.validation import mismatch

    try:
        value = msgspec.json.decode(body)
    except (ValueError, OverflowError):
        return f"the request body is not valid JSON: {json_fault(body)}"
    return f"the request body has a wrong form: {mismatch(form, value)}"


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body's bytes. Raises as `take_body`."""
    parts: list[bytes] = []
    await take_body(request, limits, parts.append)
    return b"".join(parts)


async def take_body(
    request: Request, limits: Limits, take: Callable[[bytes], None], beside: int = 0
) -> None:
    """Pass the pieces of the body to `take` as they come. Raises as soon as they exceed the size
    limit by more than `beside` bytes, or arrive too slowly.
    """
    most = limits.max_body_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > most + beside:
        raise too_large(most)
    size = 0
    began = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(limits.body_timeout_s) as patience:
            async for part in request.stream():
                size += len(part)
                if size > most + beside:
                    raise too_large(most)
                take(part)
                if part:
                    patience.reschedule(began + limits.body_timeout_s + size / SLOWEST_BODY_BYTES_S)
    except ClientDisconnect:
        raise ClientGoneError("the client closed the connection") from None
    except TimeoutError:
        raise SlowRequestError(f"the request body came too slowly: {size} bytes so far") from None


def too_large(most: int) -> BodyTooLargeError:
    """The error of a body of more than `most` bytes."""
    return BodyTooLargeError(f"the request body is larger than {most} bytes")


def check_inflight(answering: int, limits: Limits) -> None:
    """Refuse a request beyond the limit of concurrent requests."""
    if limits.max_inflight is not None and answering > limits.max_inflight:
        raise TooManyRequestsError(
            f"the server is answering {limits.max_inflight} requests, as many as it may"
        )


def check_texts(texts: Iterable[Sized], limits: Limits, param: str) -> None:
    """Refuse texts that are longer than any model's context. `param` is the request's field. Token
    ids count as a character each.
    """
    chars = sum(map(len, texts))
    if chars > limits.max_prompt_chars:
        raise ContextLengthError(
            f"prompt is too long: {chars} characters > {limits.max_prompt_chars} maximum of this"
            " server",
            param=param,
        )


def check_metadata(given: dict[str, str] | None) -> None:
    """Raise `RequestError` for more entries, or longer ones, than OpenAI takes."""
    if given is None:
        return
    if len(given) > _MOST_METADATA:
        raise RequestError(f"metadata has at most {_MOST_METADATA} keys", param="metadata")
    for key, value in given.items():
        if len(key) > _LONGEST_KEY or len(value) > _LONGEST_VALUE:
            raise RequestError(
                f"a key of metadata has at most {_LONGEST_KEY} characters, a value"
                f" {_LONGEST_VALUE}",
                param="metadata",
            )


def check_template(template: str | None, settings: HttpSettings) -> None:
    """Raise `RequestError` for a chat template in a request, if the settings forbid that."""
    if template is not None and not settings.trust_request_chat_template:
        raise RequestError(
            "this server takes no chat templates from requests", param="chat_template"
        )


def check_embedded(inputs: Iterable[Any], limits: Limits) -> None:
    """Refuse texts and conversations to embed that are longer than any model's context."""
    each = (texts_of(one) if isinstance(one, ChatRequest) else [one] for one in inputs)
    check_texts(chain.from_iterable(each), limits, "input")


def within_limits(request: Generating, limits: Limits, *, prompts: int = 1) -> Generating:
    """The request with a bounded answer. `prompts` is the number of prompts in the same call."""
    if isinstance(request, ChatRequest):
        check_texts(texts_of(request), limits, "messages")
        if request.tools:
            check_texts([msgspec.json.encode(request.tools)], limits, "tools")
    elif isinstance(request.prompt, str):
        check_texts([request.prompt], limits, "prompt")
    if request.n * prompts > limits.max_choices:
        raise RequestError(
            f"at most {limits.max_choices:,} answers may be asked for at once, not"
            f" {request.n * prompts:,}",
            param="prompt" if request.n == 1 else "n",
        )
    sampling, most = request.sampling, limits.max_tokens
    if most is None:
        return request
    if sampling.max_tokens is None:
        return replace(request, sampling=replace(sampling, max_tokens=most))
    if sampling.max_tokens > most:
        raise RequestError(
            f"max_tokens must be at most {most}, not {sampling.max_tokens}", param="max_tokens"
        )
    return request


def check_asked(request: DecideRequest, limits: Limits) -> None:
    """Refuse a decision whose input and questions are longer than any model's context."""
    given = request.input
    texts: list[Sized] = [given] if isinstance(given, str) else [*texts_of(ChatRequest(given))]
    texts += (range(chars_of(question)) for question in request.questions)
    check_texts(texts, limits, "input")


def texts_of(request: ChatRequest) -> Iterable[str]:
    """The texts in the messages of a conversation."""
    for message in request.messages:
        content = message.get("content")
        if isinstance(content, str):
            yield content
        elif isinstance(content, list):
            yield from (part["text"] for part in content if isinstance(part.get("text"), str))
