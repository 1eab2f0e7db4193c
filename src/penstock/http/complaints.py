"""Reads the body of an error in its common forms: OpenAI's, FastAPI's, plain text."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Struct

from penstock.errors import UpstreamError
from penstock.http.retries import is_retryable

KEPT_CHARS = 4096
SHOWN_CHARS = 500

_FINAL = frozenset(
    (
        *("insufficient_quota", "exceeded_current_quota_error", "credits_exhausted"),
        *("insufficient_credits", "insufficient_balance", "insufficient_user_quota", "arrearage"),
        *("billing_error", "billing_hard_limit_reached", "billing_soft_limit_reached"),
        *("billing_not_active", "payment_required", "budget_exceeded"),
        *("account_deactivated", "account_suspended", "organization_deactivated"),
        *("access_terminated", "user_suspended", "unsupported_country_region_territory"),
        *("invalid_api_key", "incorrect_api_key", "api_key_expired"),
        *("invalid_authentication_error", "authentication_error"),
        *("permission_error", "permission_denied"),
    )
)
"""Errors that only a person can fix: a retry is useless, whatever the status."""
_FINAL_TEXT = re.compile(
    r"insufficient_quota|billing_hard_limit_reached|account_deactivated|budget has been exceeded"
    r"|request too large for",  # larger than the account's limit for a minute
    re.I,
)
_STATUSES = {
    **dict.fromkeys(
        ("invalid_request_error", "badrequesterror", "bad_request", "validation_error"), 400
    ),
    **dict.fromkeys(("authentication_error", "invalid_api_key"), 401),
    **dict.fromkeys(("permission_error", "permission_denied"), 403),
    **dict.fromkeys(("not_found_error", "notfounderror", "model_not_found"), 404),
    **dict.fromkeys(("timeout", "timeout_error", "request_timeout"), 504),
    **dict.fromkeys(
        ("rate_limit_error", "rate_limit_exceeded", "ratelimiterror", "too_many_requests"), 429
    ),
    **dict.fromkeys(
        (
            "overloaded_error",
            "overloaded",
            "engine_overloaded",
            "service_unavailable",
            "unavailable",
        ),
        503,
    ),
    "context_length_exceeded": 400,
    "validation": 422,  # TGI's `error_type`
}
_DIGITS = re.compile(r"[45]\d\d")
_SECONDS = re.compile(r"(\d{1,7}(?:\.\d+)?)s")


class Complaint(Struct, frozen=True):
    """What a server complains about. `message` is for people. `code` and `kind` are the error's
    names in OpenAI's form, in lower case. `status` is the HTTP status that the body names, if any,
    `retry_after` the pause in seconds.
    """

    message: str
    code: str = ""
    kind: str = ""
    param: str | None = None
    status: int | None = None
    retry_after: float | None = None

    @property
    def line(self) -> str:
        """The message on one line, truncated if long."""
        return " ".join(self.message.split())[:SHOWN_CHARS]

    @property
    def is_final(self) -> bool:
        """Whether every retry will fail until a person has fixed the cause."""
        return not _FINAL.isdisjoint((self.code, self.kind)) or bool(
            _FINAL_TEXT.search(self.message)
        )


def complaint(text: str) -> Complaint:
    """The complaint in a body. A body in no common form is the message itself."""
    try:
        body = msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return Complaint(text)
    return complaint_in(body, text)


def complaint_in(body: Any, otherwise: str = "") -> Complaint:
    """The complaint in a decoded error: a text, an object, or a list with one. `otherwise` is the
    message if the error has none.
    """
    code = kind = ""
    param: str | None = None
    status: int | None = None
    pause: float | None = None
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    for _ in range(8):  # errors nest
        if not isinstance(body, dict):
            break
        code = _name(body.get("code")) or code
        kind = _name(body.get("type")) or _name(body.get("error_type")) or kind
        pause = pause or _pause(body.get("details"))
        param = body["param"] if isinstance(body.get("param"), str) else param
        for name in ("code", "status", "status_code", "http_status_code", "statusCode"):
            status = _status(body.get(name)) or status
        inner = [body[name] for name in ("error", "message", "detail", "msg") if body.get(name)]
        inner = [value for value in inner if isinstance(value, str | dict | list)]
        if not inner:
            break
        body = inner[0]
    message = body if isinstance(body, str) and body else otherwise or _excerpt(body)
    if status is None:
        status = _STATUSES.get(code) or _STATUSES.get(kind)
    return Complaint(message, code, kind, param, status, pause)


_WHAT = "answered with an error"


def error_inside(body: bytes, where: str, what: str = _WHAT) -> UpstreamError | None:
    """The error in a body of status 200 that holds nothing else; None for an answer."""
    if b'"error"' not in body and b'"object"' not in body:
        return None
    try:
        parsed = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return None
    error = error_in(parsed)
    return None if error is None else as_error(error, where, body, what)


def error_in(parsed: Any) -> Any:
    """The error in an answer in OpenAI's form; None for an answer without."""
    if isinstance(parsed, list) and len(parsed) == 1:
        parsed = parsed[0]
    if not isinstance(parsed, dict):
        return None
    if parsed.get("error"):
        return parsed
    groq = parsed.get("x_groq")  # in the last chunk of a stream that Groq breaks off
    if isinstance(groq, dict) and groq.get("error"):
        return groq
    return parsed if "error" in (parsed.get("object"), parsed.get("type")) else None


def as_error(error: Any, where: str, body: bytes, what: str = _WHAT) -> UpstreamError:
    """An error for a failure that came with status 200. It has the status that the body names, else
    401 for a final one and 500 for others.
    """
    found = complaint_in(error)
    status = found.status or (401 if found.is_final else 500)
    return UpstreamError(
        f"{where} {what}: {found.line}",
        http_status=status,
        body=body[:KEPT_CHARS].decode(errors="replace"),
        retryable=is_retryable(status) and not found.is_final,
        retry_after=found.retry_after,
    )


def _name(value: Any) -> str:
    return value.strip().lower() if isinstance(value, str) else ""


def _status(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    return int(text) if isinstance(text, str) and _DIGITS.fullmatch(text.strip()) else None


def _pause(details: Any) -> float | None:
    """The seconds of Google's `RetryInfo` among an error's details."""
    for detail in details if isinstance(details, list) else ():
        delay = detail.get("retryDelay") if isinstance(detail, dict) else None
        if isinstance(delay, str) and (match := _SECONDS.fullmatch(delay)):
            return float(match[1])
    return None


def _excerpt(body: Any) -> str:
    try:
        return msgspec.json.encode(body).decode()
    except (ValueError, TypeError, RecursionError):
        return str(body)[:SHOWN_CHARS]
