"""What the routes have in common: the owner of a request, pages, times."""

from __future__ import annotations

import re
from collections.abc import Iterable

from msgspec import Struct

from penstock.errors import PenstockError, RequestError
from penstock.serve.api.exchange import Exchange
from penstock.serve.api.query import whole_number
from penstock.service.service import BatchService, Stores

_DURATION = re.compile(r"([0-9]{1,9})(s|m|h|d)")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST_WINDOW_S = 3650 * 86400


class ExpiresAfter(Struct, forbid_unknown_fields=True):
    """`expires_after`: so many seconds after the file was made."""

    seconds: int
    anchor: str = "created_at"


class ServiceRoutes:
    """Routes of the batch service."""

    def __init__(self, service: BatchService) -> None:
        self._service = service

    async def _named(self, exchange: Exchange) -> tuple[Stores, str]:
        """The stores, and the id that the path names."""
        (id,) = exchange.request.path_params.values()
        return await self._service.opened(), id


def sees(exchange: Exchange) -> str | None:
    """The owner whose files and batches the caller sees; None: all."""
    return None if exchange.rank == "admin" else exchange.owner


async def first_known(exchange: Exchange, models: Iterable[str]) -> str:
    """The first of these models that the server has; empty if it has none of them. The batch then
    needs no model, and any server may end it.
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
