"""Maps every error to its HTTP response: in OpenAI's form, or in Anthropic's on its route."""

from __future__ import annotations

import logging
from math import ceil

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from penstock.errors import MethodError, NoRouteError, PenstockError, RequestError
from penstock.openai.messages_api import message_error
from penstock.openai.responses import error_body

_log = logging.getLogger("penstock.serve")
ANTHROPIC_PATH = "/v1/messages"
RETRY_AFTER_S = 1.0
"""`Retry-After` of a 503 without a known duration."""
LONGEST_RETRY_AFTER_S = 86400.0


def as_penstock_error(error: BaseException) -> PenstockError:
    """Any error as a `PenstockError`. An unforeseen one tells the client no internals."""
    if isinstance(error, PenstockError):
        return error
    if isinstance(error, RecursionError):
        return RequestError("the request is nested too deeply")
    if isinstance(error, HTTPException):
        return _from_starlette(error)
    return PenstockError("the server failed to answer this request; its log says why")


def log_unforeseen(error: PenstockError, caught: BaseException, request_id: str) -> None:
    """Log the cause if `error` does not name it."""
    if error is not caught and error.status == 500:
        _log.error("request %s failed", request_id, exc_info=caught)


def error_response(path: str, error: PenstockError) -> Response:
    """The response to a request on `path` that failed with `error`."""
    body = message_error(error) if path == ANTHROPIC_PATH else error_body(error)
    headers = {}
    wait = RETRY_AFTER_S if error.retry_after is None and error.status == 503 else error.retry_after
    if wait is not None:
        headers["retry-after"] = str(ceil(min(wait, LONGEST_RETRY_AFTER_S)) if wait >= 1.0 else 1)
    if error.ends_connection:
        headers["connection"] = "close"
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(msgspec.json.encode(body), error.status, headers, "application/json")


def _from_starlette(error: HTTPException) -> PenstockError:
    if error.status_code == 404:
        return NoRouteError("there is no such path; /docs lists those that exist")
    if error.status_code == 405:
        return MethodError("this path does not take that method; /docs lists what it takes")
    wrapped = RequestError(str(error.detail))
    wrapped.status = error.status_code
    return wrapped
