"""What a server's refusal is in `penstock.errors`."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from penstock.errors import (
    ContextLengthError,
    ModelNotFoundError,
    OverloadedError,
    PenstockError,
    RequestError,
    UnsupportedError,
    UpstreamError,
)
from penstock.http.client import complaint
from penstock.http.retries import is_throttling

_TOO_LONG = re.compile(r"context.{0,20}length|maximum context|longer than the (model|maximum)|max_model_len", re.I)


def as_refusal(error: UpstreamError, task: str) -> PenstockError:
    """The error that the caller of the engine gets.

    What is wrong with the request is the caller's; a wrong key is not, as the caller has none to give.
    """
    status = error.http_status
    if is_throttling(error):
        return OverloadedError(str(error), error.retry_after if error.retry_after is not None else 1.0)
    if status is None or error.retryable:
        return error
    said = _said(error.body)
    message = complaint(error.body) or str(error)
    message = " ".join(message.split())[:1000]
    code, param = str(said.get("code") or ""), said.get("param")
    param = param if isinstance(param, str) else None
    if is_no_route(error) or status == 501:
        return UnsupportedError(f"the server of the remote engine does not support this {task} request: {message}")
    if status == 404:
        return ModelNotFoundError(message, param="model")
    if code == ContextLengthError.kind or (status in (400, 413, 422) and _TOO_LONG.search(message)):
        return ContextLengthError(message, param=param or "messages")
    if status in (400, 413, 415, 422):
        return RequestError(message, param=param)
    return error


def is_no_route(error: UpstreamError) -> bool:
    """Whether the server has no such path at all. A 404 about a model says which model, in OpenAI's form."""
    if error.http_status == 405:
        return True
    if error.http_status != 404:
        return False
    said = _said(error.body)
    return said.get("code") == "not_found" or not (said.get("code") or said.get("type"))


def _said(body: str) -> dict[str, Any]:
    try:
        parsed = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(parsed, dict):
        return {}
    inner = parsed.get("error")
    return inner if isinstance(inner, dict) else parsed
