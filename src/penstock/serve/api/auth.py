"""API keys: where they come from, and who may do what with them."""

from __future__ import annotations

import hmac
from typing import Literal

from starlette.datastructures import Headers

from penstock.errors import ConfigError, ForbiddenError, NoKeyError
from penstock.parsing.text import decode_text, read_file
from penstock.serve.config.settings import HttpSettings

Rank = Literal["admin", "user", "stranger"]


def load_keys(file: str | None, listed: str) -> frozenset[str]:
    """The keys in `file`, one a line (# opens a comment), and those in `listed`, separated by
    commas.
    """
    keys = [key.strip() for key in listed.split(",")]
    if file is not None:
        try:
            lines = decode_text(read_file(file)).splitlines()
        except (OSError, ValueError) as error:
            why = (error.strerror or error) if isinstance(error, OSError) else error
            raise ConfigError(
                f"{file}: the keys cannot be read: {why}", field="api_key_file", value=file
            ) from None
        given = [line.strip() for line in lines if not line.startswith("#")]
        if not any(given):
            # An open server is not what somebody who names a file of keys wants.
            raise ConfigError("the file holds no keys", field="api_key_file", value=file)
        keys += given
    for key in keys:
        if not key.isascii() or not key.isprintable():
            raise ConfigError("keys must be printable ASCII", field="api keys")
    return frozenset(filter(None, keys))


def rank_of(headers: Headers, settings: HttpSettings) -> Rank:
    """What the caller of a request may do. Its key is compared with every key, each in constant
    time, so that the time taken tells nothing.
    """
    if settings.keyless:
        return "admin"  # whoever finds no keys runs the server
    given = _given_key(headers).encode()
    admin = [hmac.compare_digest(given, key.encode()) for key in settings.admin_keys]
    user = [hmac.compare_digest(given, key.encode()) for key in settings.api_keys]
    if any(admin):
        return "admin"
    return "user" if any(user) else "stranger"


def check_user(rank: Rank, headers: Headers, settings: HttpSettings) -> None:
    """Raise `NoKeyError` unless the caller has a key, where one is needed."""
    if settings.api_keys and rank == "stranger":
        raise _no_key(headers)


def check_admin(rank: Rank, headers: Headers) -> None:
    """Raise `NoKeyError` or `ForbiddenError` unless the caller may use the control routes."""
    if rank == "admin":
        return
    if rank == "user":
        raise ForbiddenError("the control routes need an admin key")
    raise _no_key(headers)


def _no_key(headers: Headers) -> NoKeyError:
    given = _given_key(headers)
    return NoKeyError(
        "the API key is wrong"
        if given
        else "an API key is needed: send the header 'Authorization: Bearer KEY'"
    )


def _given_key(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
