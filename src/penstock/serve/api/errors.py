"""Maps every error to its HTTP response: in OpenAI's form, or in Anthropic's for its clients.

Paths of local files are for operators only: other callers get their last components.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping
from copy import copy
from functools import lru_cache
from math import ceil

import msgspec
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from penstock.errors import PenstockError, RequestError
from penstock.openai.messages_api import message_error
from penstock.openai.responses import error_body
from penstock.serve.models.handle import ModelHandle

_log = logging.getLogger("penstock.serve")
_ANTHROPIC_PATH = "/v1/messages"
RETRY_AFTER_S = 1.0
"""`Retry-After` of a 503 whose duration is unknown."""
LONGEST_RETRY_AFTER_S = 86400.0
_QUOTED = re.compile(
    r"""(?P<quote>["'`])(?P<path>(?:file:/{1,2})?(?:/|~[\w.-]*/|\.\.?/)[^"'`\n]*)(?P=quote)"""
)
_BARE = re.compile(
    r"""(?<![\w/.~@-])(?:file:/{1,2})?(?:/(?!/)|~[\w.-]*/|\.\.?/)[^\s"'`,;()<>\[\]{}|]+"""
)


def as_penstock_error(caught: BaseException, request_id: str) -> PenstockError:
    """Any error as a `PenstockError`. An unforeseen error is logged; the client sees no
    internals.
    """
    if isinstance(caught, PenstockError):
        return caught
    if isinstance(caught, RecursionError):
        return RequestError("the request is nested too deeply")
    if isinstance(caught, HTTPException):
        return _from_starlette(caught)
    _log.error("request %s failed", request_id, exc_info=caught)
    return PenstockError("the server failed to answer this request; its log says why")


def is_anthropic(scope: Scope) -> bool:
    """Whether a request is for Anthropic's API, by its path or by a header of that API's
    clients.
    """
    path: str = scope["path"]
    return (
        path == _ANTHROPIC_PATH
        or path.startswith(_ANTHROPIC_PATH + "/")
        or "anthropic-version" in Headers(scope=scope)
    )


def error_response(scope: Scope, error: PenstockError, request_id: str) -> Response:
    """The response to a request that failed with `error`."""
    body = message_error(error, request_id) if is_anthropic(scope) else error_body(error)
    wait = RETRY_AFTER_S if error.retry_after is None and error.status == 503 else error.retry_after
    final = isinstance(error, RequestError) and not error.ends_connection
    seconds = ceil(min(wait, LONGEST_RETRY_AFTER_S)) if wait and wait >= 1.0 else 1  # not for nan
    given = {
        "retry-after": None if wait is None else str(seconds),
        "x-should-retry": "false" if final else None,  # the SDKs of OpenAI and Anthropic obey it
        "connection": "close" if error.ends_connection else None,
        "www-authenticate": "Bearer" if error.status == 401 else None,
        **(error.headers if isinstance(error, RequestError) else {}),
    }
    headers = {name: value for name, value in given.items() if value is not None}
    return Response(msgspec.json.encode(body), error.status, headers, "application/json")


def _from_starlette(error: HTTPException) -> PenstockError:
    wrapped = RequestError(str(error.detail))
    wrapped.status = error.status_code
    return wrapped


def model_sources(handles: Iterable[ModelHandle]) -> dict[str, str]:
    """Sources of models, as configured → the models' names."""
    return {
        source: handle.model_id
        for handle in handles
        if isinstance(source := getattr(getattr(handle, "config", None), "model_source", None), str)
        and os.sep in source
    }


def without_paths(text: str, sources: Mapping[str, str]) -> str:
    """The text with each path cut to its last component. `sources` maps known paths to names."""
    if "/" not in text:
        return text
    for source, name in sources.items():
        text = text.replace(source, name)
    text = _QUOTED.sub(
        lambda found: f"{found['quote']}{_last_component(found['path'])}{found['quote']}", text
    )
    return _BARE.sub(lambda found: _last_component(found[0]), text)


def public(error: PenstockError, sources: Mapping[str, str]) -> PenstockError:
    """The error without local paths: the same object if it has none."""
    shown = without_paths(str(error), sources)
    if shown == str(error):
        return error
    stripped = copy(error)
    stripped.args = (shown,)
    return stripped


def _last_component(path: str) -> str:
    plain = re.sub(r"^file:/{1,2}(?=/)", "", path)
    if not plain.startswith("/") or _is_of_this_machine(plain.split("/")[1]):
        end = plain.rstrip("/")
        tail = end.rpartition("/")[2]
        return tail if tail not in ("", "~", ".", "..") else "…"
    return path  # such as a route of the API


@lru_cache(maxsize=256)
def _is_of_this_machine(first: str) -> bool:
    """Whether `first` is an entry of this machine's root folder."""
    return bool(first) and os.path.lexists(f"/{first}")
