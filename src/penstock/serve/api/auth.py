"""API keys: where they come from, and who may do what with them."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from starlette.datastructures import Headers

from penstock.errors import ConfigError, ForbiddenError, NoKeyError
from penstock.parsing.text import decode_text, read_file
from penstock.serve.config.settings import HttpSettings


def load_keys(file: str | None, listed: str) -> frozenset[str]:
    """The keys in `file`, one a line (# opens a comment), and those in `listed`, separated by commas."""
    keys = [key.strip() for key in listed.split(",")]
    if file is not None:
        try:
            lines = decode_text(read_file(file)).splitlines()
        except (OSError, ValueError) as error:
            why = (error.strerror or error) if isinstance(error, OSError) else error
            raise ConfigError(f"{file}: the keys cannot be read: {why}", field="api_key_file", value=file) from None
        given = [line.strip() for line in lines if not line.startswith("#")]
        if not any(given):
            # An open server is not what somebody who names a file of keys wants.
            raise ConfigError("the file holds no keys", field="api_key_file", value=file)
        keys += given
    for key in keys:
        if not key.isascii() or not key.isprintable():
            raise ConfigError("keys must be printable ASCII", field="api keys")
    return frozenset(filter(None, keys))


def is_admin(headers: Headers, settings: HttpSettings) -> bool:
    """Whether the caller runs the server: has an admin key, or finds no keys at all."""
    return settings.keyless or _is_one_of(_given_key(headers), settings.admin_keys)


def check_user(headers: Headers, settings: HttpSettings) -> None:
    """Raise `NoKeyError` unless the caller has a key, where one is needed."""
    if settings.api_keys and not _is_one_of(_given_key(headers), settings.api_keys | settings.admin_keys):
        raise _no_key(headers)


def check_admin(headers: Headers, settings: HttpSettings) -> None:
    """Raise `NoKeyError` or `ForbiddenError` unless the caller may use the control routes."""
    if is_admin(headers, settings):
        return
    if _is_one_of(_given_key(headers), settings.api_keys):
        raise ForbiddenError("the control routes need an admin key")
    raise _no_key(headers)


def _no_key(headers: Headers) -> NoKeyError:
    given = _given_key(headers)
    return NoKeyError(
        "the API key is wrong" if given else "an API key is needed: send the header 'Authorization: Bearer KEY'"
    )


def _given_key(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def _is_one_of(given: str, keys: Iterable[str]) -> bool:
    """Compares with every key, each in constant time, so that the time taken tells nothing."""
    data = given.encode()
    matches = [hmac.compare_digest(data, key.encode()) for key in keys]
    return any(matches)
