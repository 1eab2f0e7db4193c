"""Maps a server's refusals to the errors of `penstock.errors`."""

from __future__ import annotations

import msgspec

from penstock.engines.remote.context_overflow import says_too_long
from penstock.errors import (
    ContextLengthError,
    ModelNotFoundError,
    OverloadedError,
    PenstockError,
    RequestError,
    TooManyRequestsError,
    UnsupportedError,
    UpstreamError,
)
from penstock.http.complaints import complaint
from penstock.http.retries import is_throttling


def as_refusal(error: UpstreamError) -> PenstockError:
    """The error for the engine's caller.

    A faulty request is the caller's fault. A wrong key is not: the caller supplies none.
    """
    status = error.http_status
    if is_throttling(error):
        kind = TooManyRequestsError if status == 429 else OverloadedError
        refused = kind(str(error), error.retry_after if error.retry_after is not None else 1.0)
        refused.given_up = error.given_up
        return refused
    if status is None or error.retryable:
        return error
    details = complaint(error.body)
    message = " ".join((details.message or str(error)).split())[:1000]
    if is_too_long(error):
        # A server of another API may name the prompt by another name than this request did.
        about_answer = (details.param or "").startswith("max_")
        return ContextLengthError(message, param=details.param if about_answer else None)
    lacks = status == 501 and not _is_page(error.body)
    if lacks or details.code == UnsupportedError.kind:
        return UnsupportedError(
            f"the server of the remote engine does not support this request: {message}",
            param=details.param,
        )
    if status == 404:
        return ModelNotFoundError(message, param="model")
    if status in (400, 412, 413, 415, 422):
        return RequestError(message, param=details.param)
    return error


def is_no_route(error: UpstreamError) -> bool:
    """Whether an answer says that the path does not exist. A 404 about a model has OpenAI's error
    form and names it.
    """
    if error.http_status == 405:
        return True
    if error.http_status == 501:
        return _is_page(error.body)
    if error.http_status != 404:
        return False
    details = complaint(error.body)
    return details.code == "not_found" or not (details.code or details.kind or details.status)


def is_too_long(error: UpstreamError) -> bool:
    """Whether the prompt, or prompt plus answer, exceeds the context of the server's model."""
    if error.http_status not in (400, 412, 413, 422, 500) or not error.body:
        return False
    details = complaint(error.body)
    return says_too_long(details.message, details.code, details.kind)


def _is_page(body: str) -> bool:
    """Whether a body is not JSON: it then comes from a proxy in front of the API."""
    try:
        msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return True
    return False
