"""Loads API keys, and checks which routes a caller may use."""

from __future__ import annotations

import hmac
from typing import Literal

from starlette.datastructures import Headers

from penstock.errors import ConfigError, ForbiddenError, NoKeyError
from penstock.parsing import decode_text, read_file
from penstock.serve.config.settings import HttpSettings

Rank = Literal["admin", "user", "stranger"]


def load_keys(file: str | None, listed: str) -> frozenset[str]:
    """The keys in `file`, one a line (# starts a comment), and in `listed`, separated by commas."""
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
            # The operator named a file of keys, so an open server is not meant.
            raise ConfigError("the file holds no keys", field="api_key_file", value=file)
        keys += given
    for key in keys:
        if not key.isascii() or not key.isprintable():
            raise ConfigError("keys must be printable ASCII", field="api keys")
    return frozenset(filter(None, keys))


def rank_of(headers: Headers, settings: HttpSettings) -> Rank:
    """The caller's rank. Compares the key with every known key, each in constant time, so that the
    time reveals nothing.
    """
    if settings.keyless:
        return "admin"  # without keys, every caller is the operator
    given = _key_of(headers).encode()
    admin = [hmac.compare_digest(given, key.encode()) for key in settings.admin_keys]
    user = [hmac.compare_digest(given, key.encode()) for key in settings.api_keys]
    if any(admin):
        return "admin"
    return "user" if any(user) else "stranger"


def check_user(rank: Rank, headers: Headers, settings: HttpSettings) -> None:
    """Raise `NoKeyError` unless the caller has a key or the server needs none."""
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
    given = _key_of(headers)
    return NoKeyError(
        "the API key is wrong"
        if given
        else "an API key is needed: send the header 'Authorization: Bearer KEY'"
    )


def _key_of(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
