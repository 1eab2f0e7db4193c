"""What a server's refusal is in `penstock.errors`."""

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
    """The error that the caller of the engine gets.

    What is wrong with the request is the caller's; a wrong key is not, as the caller has none to
    give.
    """
    status = error.http_status
    if is_throttling(error):
        kind = TooManyRequestsError if status == 429 else OverloadedError
        refused = kind(str(error), error.retry_after if error.retry_after is not None else 1.0)
        refused.given_up = error.given_up
        return refused
    if status is None or error.retryable:
        return error
    said = complaint(error.body)
    message = " ".join((said.message or str(error)).split())[:1000]
    if is_too_long(error):
        return ContextLengthError(message, param=said.param or "messages")
    if status == 501 and not _is_page(error.body):
        return UnsupportedError(
            f"the server of the remote engine does not support this request: {message}"
        )
    if status == 404:
        return ModelNotFoundError(message, param="model")
    if status in (400, 412, 413, 415, 422):
        return RequestError(message, param=said.param)
    return error


def is_no_route(error: UpstreamError) -> bool:
    """Whether an answer says that there is no such path. A 404 about a model says which, in
    OpenAI's form.
    """
    if error.http_status == 405:
        return True
    if error.http_status == 501:
        return _is_page(error.body)
    if error.http_status != 404:
        return False
    said = complaint(error.body)
    return said.code == "not_found" or not (said.code or said.kind or said.status)


def is_too_long(error: UpstreamError) -> bool:
    """Whether the prompt, or prompt and answer together, are too long for the server's model."""
    if error.http_status not in (400, 412, 413, 422, 500) or not error.body:
        return False
    said = complaint(error.body)
    return says_too_long(said.message, said.code, said.kind)


def _is_page(body: str) -> bool:
    """Whether it is no JSON: what speaks is no API, but something in front of it."""
    try:
        msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return True
    return False
