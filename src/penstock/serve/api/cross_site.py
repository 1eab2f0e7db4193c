"""Keeps foreign web pages from using a keyless server through a visitor's browser.

A browser lets any page send some requests anywhere, and names the page in `Origin`. After DNS
rebinding a page's own name points to this machine: its requests have the same origin, but a foreign
name in `Host`. Programs send no `Origin`, and put the server's real name into `Host`.
"""

from __future__ import annotations

from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.types import Scope

from penstock.errors import ForbiddenError
from penstock.serve.config.settings import HttpSettings

_READING = frozenset({"GET", "HEAD", "OPTIONS"})


def check_not_cross_site(scope: Scope, headers: Headers, settings: HttpSettings) -> None:
    """Raise `ForbiddenError` for a request with side effects that may come from a
    foreign web page.
    """
    if scope["method"] in _READING or settings.api_keys:
        return
    host = headers.get("host", "")
    name = _name(host)
    if _is_loopback((scope.get("server") or ("",))[0]) and not _is_allowed(
        name, settings.allowed_hosts
    ):
        raise ForbiddenError(
            f"'{name[:100]}' is no name of this server, which has no API keys. Ask 127.0.0.1 or"
            " localhost; --allowed-host NAME lets others in, and so does --api-key-file"
        )
    origin = headers.get("origin")
    if (
        origin is None
        or origin.partition("://")[2] == host
        or {origin, "*"} & {*settings.cors_origins}
    ):
        return
    raise ForbiddenError(
        f"web pages of '{origin[:100]}' may not use this server, which has no API keys. "
        "--cors-origin ORIGIN lets them, and so does --api-key-file"
    )


def _name(host: str) -> str:
    """The host name in a `Host` header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() and ":" in host else host


def _is_allowed(name: str, allowed: tuple[str, ...]) -> bool:
    name = name.lower().rstrip(".")
    if not name or name == "localhost" or name.endswith(".localhost") or _is_loopback(name):
        return True  # HTTP/1.0 and forwarded requests name no host; browsers always do
    return "*" in allowed or name in (one.lower().rstrip(".") for one in allowed)


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False
