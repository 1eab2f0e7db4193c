"""Checks which routes a caller may use: by API keys, and without keys by where it comes from.

A browser lets any web page send some requests anywhere, and names the page in `Origin`. After DNS
rebinding the page's own host name points to this machine: its requests have the same origin, but
`Host` has that foreign name. It never has an address, as addresses are not looked up. Programs send
no `Origin`, and put the server's real name into `Host`, which may be the machine's name (Debian
maps it to 127.0.1.1).
"""

from __future__ import annotations

import hashlib
import hmac
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Literal

from starlette.datastructures import Headers
from starlette.types import Scope

from penstock.errors import ConfigError, ForbiddenError, NoKeyError
from penstock.parsing import decode_text, read_file
from penstock.serve.config.settings import HttpSettings, check_keys

Rank = Literal["admin", "user", "stranger"]
KEY_HEADERS = ("authorization", "x-api-key")
"""The headers that may hold a caller's key."""
_HOSTNAME = socket.gethostname().lower()
_OWN_NAMES = frozenset({"localhost", _HOSTNAME, _HOSTNAME.partition(".")[0]})
_READING = frozenset({"GET", "HEAD", "OPTIONS"})


def load_keys(file: str | None, listed: str, typed: Sequence[str] = ()) -> frozenset[str]:
    """The keys in `file`, one a line (a line that begins with # is a comment), those in `listed`,
    separated by commas, and those `typed`. Raises `ConfigError` for a key that is empty or cannot
    be sent, and for a file or list without keys: whoever gives one does not mean an open server.
    """
    keys = [key for part in listed.split(",") if (key := part.strip())]
    if (listed and not keys) or not all(map(str.strip, typed)):
        raise ConfigError("a key is given, and is empty", field="api keys")
    keys += map(str.strip, typed)
    if file is not None:
        try:
            lines = decode_text(read_file(file)).splitlines()
        except (OSError, ValueError) as error:
            why = (error.strerror or error) if isinstance(error, OSError) else error
            raise ConfigError(
                f"{file}: the keys cannot be read: {why}", field="api_key_file", value=file
            ) from None
        given = [key for line in lines if (key := line.strip()) and not key.startswith("#")]
        if not given:
            raise ConfigError("the file holds no keys", field="api_key_file", value=file)
        keys += given
    check_keys(keys, "api keys")
    return frozenset(keys)


def rank_of(headers: Headers, settings: HttpSettings) -> Rank:
    """The caller's rank. Keys are compared in constant time, so the time reveals nothing."""
    if not settings.api_keys and not settings.admin_keys:
        return "admin"  # without keys, every caller is the operator
    given = _key_of(headers).encode()
    admin = [hmac.compare_digest(given, key.encode()) for key in settings.admin_keys]
    user = [hmac.compare_digest(given, key.encode()) for key in settings.api_keys]
    if any(admin):
        return "admin"
    return "user" if any(user) else "stranger"


def owner_of(headers: Headers, rank: Rank, settings: HttpSettings) -> str:
    """The owner of the stored responses that a caller sees: the hash of a known key. All callers
    without a key are one owner, and so are all callers of a server without keys.
    """
    key = _known_key(headers, rank, settings)
    return hashlib.sha256(b"penstock stored responses\0" + key).hexdigest() if key else ""


def mark_of(headers: Headers, rank: Rank, settings: HttpSettings) -> str | None:
    """What the log calls the caller: the first 8 digits of the SHA-256 of a known key."""
    key = _known_key(headers, rank, settings)
    return hashlib.sha256(key).hexdigest()[:8] if key else None


def check_user(rank: Rank, headers: Headers, settings: HttpSettings) -> None:
    """Raise `NoKeyError` unless the caller has a key or the server needs none."""
    if settings.api_keys and rank == "stranger":
        raise _no_key(headers)


def check_admin(rank: Rank, headers: Headers) -> None:
    """Raise `NoKeyError` or `ForbiddenError` unless the caller may use the control routes."""
    if rank == "user":
        raise ForbiddenError("the control routes need an admin key")
    if rank == "stranger":
        raise _no_key(headers)


def check_not_cross_site(scope: Scope, headers: Headers, settings: HttpSettings) -> None:
    """Raise `ForbiddenError` for a request that a foreign web page may have sent: if the request
    has side effects, or if it names a foreign host, so that the page could read the answer.
    """
    if settings.api_keys:
        return
    host = headers.get("host", "")
    name = _name(host)
    reached = _address((scope.get("server") or ("",))[0])
    if reached and reached.is_loopback and not _is_allowed(name, settings.allowed_hosts):
        raise ForbiddenError(
            f"'{name[:100]}' is no name of this server, which has no API keys. Ask 127.0.0.1 or"
            " localhost. Its setting allowed_hosts (--allowed-host NAME) lets others in, and so do"
            " api_keys (--api-key-file)"
        )
    origin = headers.get("origin")
    if (
        scope["method"] in _READING  # a browser does not show the answer to another origin
        or origin is None
        or origin.partition("://")[2] == host
        or {origin, "*"} & {*settings.cors_origins}
    ):
        return
    raise ForbiddenError(
        f"web pages of '{origin[:100]}' may not use this server, which has no API keys. "
        "Its setting cors_origins (--cors-origin ORIGIN) lets them, and so do api_keys"
        " (--api-key-file)"
    )


def _no_key(headers: Headers) -> NoKeyError:
    given = _key_of(headers)
    return NoKeyError(
        "the API key is wrong"
        if given
        else "an API key is needed: send the header 'Authorization: Bearer KEY'"
    )


def _known_key(headers: Headers, rank: Rank, settings: HttpSettings) -> bytes:
    """The caller's key if it is one of the server's, else empty."""
    if rank == "stranger" or not (settings.api_keys or settings.admin_keys):
        return b""
    return _key_of(headers).encode()


def _key_of(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def _name(host: str) -> str:
    """The host name in a `Host` header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() and ":" in host else host


def _is_allowed(name: str, allowed: tuple[str, ...]) -> bool:
    name = name.lower().rstrip(".")
    if not name or name in _OWN_NAMES or name.endswith(".localhost") or _address(name):
        return True  # HTTP/1.0 and forwarded requests name no host; browsers always do
    return "*" in allowed or name in (one.lower().rstrip(".") for one in allowed)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        found = ip_address(text)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found  # a socket of both kinds: ::ffff:127.0.0.1
