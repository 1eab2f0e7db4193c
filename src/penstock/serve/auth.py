"""API keys: where they come from, and who may do what with them."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import Scope

from penstock.errors import ConfigError, ForbiddenError, NoKeyError
from penstock.serve.settings import HttpSettings

CONTROL_PATHS = frozenset(
    {
        *("/sleep", "/wakeup", "/is_sleeping", "/pause", "/resume", "/is_paused"),
        *("/reset_prefix_cache", "/start_profile", "/stop_profile", "/collective_rpc"),
    }
)


def load_keys(file: str | None, listed: str) -> frozenset[str]:
    """The keys in `file`, one a line (# opens a comment), and those in `listed`, separated by commas."""
    keys = [key.strip() for key in listed.split(",")]
    if file is not None:
        try:
            lines = Path(file).read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the file of keys cannot be read: {error}", field="api_key_file", value=file) from None
        given = [line.strip() for line in lines if not line.startswith("#")]
        if not any(given):
            # An open server is not what somebody who names a file of keys wants.
            raise ConfigError("the file holds no keys", field="api_key_file", value=file)
        keys += given
    for key in keys:
        if not key.isascii() or not key.isprintable():
            raise ConfigError("keys must be printable ASCII", field="api keys")
    return frozenset(filter(None, keys))


def check_key(scope: Scope, settings: HttpSettings) -> None:
    """Raise `NoKeyError` or `ForbiddenError` unless the request may use its path."""
    if not settings.api_keys and not settings.admin_keys:
        return
    given = _given_key(Headers(scope=scope))
    control = scope["path"] in CONTROL_PATHS
    if control:
        if _is_one_of(given, settings.admin_keys):
            return
        if _is_one_of(given, settings.api_keys):
            raise ForbiddenError("the control routes need an admin key")
    elif not settings.api_keys or _is_one_of(given, settings.api_keys | settings.admin_keys):
        return
    raise NoKeyError(
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
