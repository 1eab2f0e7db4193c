"""What the body of an error says, in the forms that are common: OpenAI's, FastAPI's, plain text."""

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
    {
        *("insufficient_quota", "exceeded_current_quota_error", "credits_exhausted"),
        *(
            "insufficient_credits",
            "insufficient_balance",
            "insufficient_user_quota",
            "arrearage",
            "billing_error",
        ),
        *(
            "billing_hard_limit_reached",
            "billing_soft_limit_reached",
            "billing_not_active",
            "payment_required",
        ),
        *(
            "account_deactivated",
            "account_suspended",
            "organization_deactivated",
            "access_terminated",
            "user_suspended",
        ),
        *(
            "invalid_api_key",
            "incorrect_api_key",
            "api_key_expired",
            "invalid_authentication_error",
        ),
        *("authentication_error", "permission_error", "permission_denied"),
        *("unsupported_country_region_territory", "budget_exceeded"),
    }
)
"""What only a person can mend: no use to ask again, whatever the status."""
_FINAL_TEXT = re.compile(
    r"insufficient_quota|billing_hard_limit_reached|account_deactivated|budget has been exceeded"
    r"|request too large for",  # than what the account gets in a whole minute
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
}
_DIGITS = re.compile(r"[45]\d\d")


class Complaint(Struct, frozen=True):
    """`message` is for a person; `code` and `kind` are its names in OpenAI's form, lower case;
    `status` is the HTTP status that it tells by itself, if it does.
    """

    message: str
    code: str = ""
    kind: str = ""
    param: str | None = None
    status: int | None = None

    @property
    def line(self) -> str:
        """The message on one line, cut where it is long."""
        return " ".join(self.message.split())[:SHOWN_CHARS]

    @property
    def is_final(self) -> bool:
        """Whether the same request will get the same answer until a person has done something about
        it.
        """
        return not _FINAL.isdisjoint((self.code, self.kind)) or bool(
            _FINAL_TEXT.search(self.message)
        )


def complaint(text: str) -> Complaint:
    """What a body says; what has none of the common forms says itself."""
    try:
        body = msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return Complaint(text)
    return complaint_in(body, text)


def complaint_in(body: Any, otherwise: str = "") -> Complaint:
    """What an error says that is decoded already: a text, an object, or a list of one. `otherwise`
    is the message of one that has none.
    """
    code = kind = ""
    param: str | None = None
    status: int | None = None
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    for _ in range(8):  # errors stand in errors
        if not isinstance(body, dict):
            break
        code, kind = _name(body.get("code")) or code, _name(body.get("type")) or kind
        param = body["param"] if isinstance(body.get("param"), str) else param
        for name in ("code", "status", "status_code", "http_status_code", "statusCode"):
            status = _status(body.get(name)) or status
        inner = [body[name] for name in ("error", "message", "detail", "msg") if body.get(name)]
        inner = [value for value in inner if isinstance(value, str | dict | list)]
        if not inner:
            break
        body = inner[0]
    message = body if isinstance(body, str) and body else otherwise or _shown(body)
    if status is None:
        status = _STATUSES.get(code) or _STATUSES.get(kind)
    return Complaint(message, code, kind, param, status)


_WHAT = "answered with an error"


def error_inside(body: bytes, where: str, what: str = _WHAT) -> UpstreamError | None:
    """The error that a body of status 200 holds, where it is one and nothing else."""
    if b'"error"' not in body and b'"object"' not in body:
        return None
    try:
        parsed = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return None
    error = error_in(parsed)
    return None if error is None else as_error(error, where, body, what)


def error_in(parsed: Any) -> Any:
    """The error that stands in an answer in OpenAI's form; None where it is none."""
    if isinstance(parsed, list) and len(parsed) == 1:
        parsed = parsed[0]
    if not isinstance(parsed, dict):
        return None
    if error := parsed.get("error"):
        return error if isinstance(error, str) else parsed
    return parsed if "error" in (parsed.get("object"), parsed.get("type")) else None


def as_error(said: Any, where: str, body: bytes, what: str = _WHAT) -> UpstreamError:
    """What an error that came with status 200 is: one of the status that it names, else of the
    server's own.
    """
    told = complaint_in(said)
    status = told.status or (401 if told.is_final else 500)
    return UpstreamError(
        f"{where} {what}: {told.line}",
        http_status=status,
        body=body[:KEPT_CHARS].decode(errors="replace"),
        retryable=is_retryable(status) and not told.is_final,
    )


def _name(value: Any) -> str:
    return value.strip().lower() if isinstance(value, str) else ""


def _status(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    return int(text) if isinstance(text, str) and _DIGITS.fullmatch(text.strip()) else None


def _shown(body: Any) -> str:
    try:
        return msgspec.json.encode(body).decode()
    except (ValueError, TypeError, RecursionError):
        return str(body)[:SHOWN_CHARS]
