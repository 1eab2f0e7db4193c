"""What the routes read of a request: whose it is, pages, times."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct

from penstock.errors import PenstockError, RequestError
from penstock.serve.api.exchange import Exchange
from penstock.serve.api.query import whole_number

_DURATION = re.compile(r"([0-9]{1,9})(s|m|h|d)")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST_WINDOW_S = 3650 * 86400


class ExpiresAfter(Struct, forbid_unknown_fields=True):
    """`expires_after`: so many seconds after the file was made."""

    seconds: int
    anchor: str = "created_at"


def sees(exchange: Exchange) -> str | None:
    """Whose files and batches the caller sees; None for all."""
    return None if exchange.rank == "admin" else exchange.owner


async def first_known(exchange: Exchange, models: Iterable[str]) -> str:
    """The first of these models that the server has. Empty where it has none of them: the batch
    then needs no model, and any server may end it.
    """
    for name in models:
        try:
            await exchange.ingress.models.find(name)
        except RequestError:
            continue
        except PenstockError:
            pass  # it is there, and does not answer just now
        return name
    return ""


def page_limits(exchange: Exchange, *, usual: int, most: int) -> int:
    """The size of the page that a request wants. Raises `RequestError`."""
    limit = whole_number(exchange.request.query_params.get("limit", str(usual)), "limit", least=1)
    if limit > most:
        raise RequestError(f"limit must be at most {most}", param="limit")
    return limit


def page_body(data: Sequence[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """A page, as clients of OpenAI read it."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }


def checked_expiry(given: ExpiresAfter | None, param: str, longest_s: float) -> float | None:
    """The seconds until a file expires. Raises `RequestError`."""
    if given is None:
        return None
    if given.anchor != "created_at":
        raise RequestError("anchor must be created_at", param=f"{param}.anchor")
    if not 1 <= given.seconds <= longest_s:
        raise RequestError(
            f"seconds must be from 1 to {int(longest_s)}, not {given.seconds}",
            param=f"{param}.seconds",
        )
    return float(given.seconds)


def window_seconds(text: str) -> int:
    """The seconds of a duration such as "24h". Raises `RequestError`."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or not 0 < (seconds := int(match[1]) * _UNITS[match[2]]) <= _LONGEST_WINDOW_S:
        raise RequestError(
            "completion_window must be a duration such as 24h, 90m or 7d, at most 3650d, not"
            f" '{text[:50]}'",
            param="completion_window",
        )
    return seconds
