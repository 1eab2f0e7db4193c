"""Where a request goes and which headers it carries: addresses, proxies and keys, some of them from
the environment. Keys are never shown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit
from urllib.request import (  # type: ignore[attr-defined]
    getproxies_environment,
    proxy_bypass_environment,
)

from msgspec import Struct
from yarl import URL

from penstock.config import MASK, masked, tells_a_secret
from penstock.errors import ConfigError
from penstock.http.standard import is_this_machine

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
SHORTEST_SECRET = 6


class Endpoint(Struct, frozen=True):
    """A request's destination and its proxy. `shown` names it in messages, without user and query,
    which may hold keys; `secrets` are these keys, as servers like to repeat them.
    """

    method: str
    url: Any
    shown: str
    proxy: str | None = None
    secrets: tuple[str, ...] = ()


def endpoint(method: str, url: str, *, field: str = "url") -> Endpoint:
    """Check an address, and find its proxy in the environment. Raises `ConfigError`."""
    try:
        parsed = URL(url)
        ok = parsed.scheme in ("http", "https") and bool(parsed.host)
    except ValueError:
        ok = False
    if not ok:
        raise ConfigError("must be an http:// or https:// URL", field=field, value=masked(url))
    shown = str(parsed.with_user(None).with_query(None).with_fragment(None))
    keys = [
        parsed.password,
        *(value for name, value in parsed.query.items() if tells_a_secret(name)),
    ]
    secrets = tuple(key for key in keys if key is not None and len(key) >= SHORTEST_SECRET)
    proxy = proxy_for(parsed.scheme, parsed.host or "", parsed.port)
    return Endpoint(method.upper(), parsed, shown, proxy, secrets)


def under(base: str, path: str) -> str:
    """The address of a path under a base. A query of the base, as Azure's `api-version`, stays."""
    root, _, query = base.partition("?")
    path, _, more = path.partition("?")
    query = "&".join(part for part in (query, more) if part)
    return root.rstrip("/") + path + (f"?{query}" if query else "")


def proxy_for(scheme: str, host: str, port: int | None) -> str | None:
    """The proxy's URL; None for a direct connection. Raises `ConfigError`."""
    proxies = getproxies_environment()
    name = scheme if scheme in proxies else "all"
    given = proxies.get(name)
    if (
        not given
        or is_this_machine(host)
        or proxy_bypass_environment(f"{host}:{port}" if port else host, proxies)
    ):
        return None
    url = given if "://" in given else f"http://{given}"
    parsed = urlsplit(url)
    if parsed.scheme != "http" or not parsed.hostname:
        raise ConfigError(
            "must be an http:// URL, to which requests of both kinds go",
            field=f"{name.upper()}_PROXY",
            value=masked(given),
        )
    return url


class Headers:
    """Headers of every request to one server. `${NAME}` in a value stands for the variable of that
    name in the environment.

    Only requests carry the values; the repr, errors and logs show `***` (`scrub`). Raises
    `ConfigError` for an unset variable, or an invalid header.
    """

    def __init__(self, given: Mapping[str, str] | None = None, *, field: str = "headers") -> None:
        self.values: dict[str, str] = {}
        self._secrets: list[str] = []
        for name, value in (given or {}).items():
            where = f"{field}.{name}"
            if not isinstance(value, str):
                raise ConfigError(f"must be a text, not {type(value).__name__}", field=where)
            filled = _VARIABLE.sub(partial(_value_of, where), value)
            if any(mark in name + filled for mark in "\r\n\0"):
                raise ConfigError("must not contain line breaks", field=where)
            self.values[name] = filled
            if filled != value or masked(value, name) == MASK:
                # "Bearer KEY", and the key alone.
                self._secrets += [filled, filled.rpartition(" ")[2]]
        self._secrets = sorted(
            {text for text in self._secrets if len(text) >= SHORTEST_SECRET}, key=len, reverse=True
        )

    def scrub(self, text: str, also: Sequence[str] = ()) -> str:
        """The text without the keys and `also`, which servers like to repeat in error messages."""
        for secret in (*self._secrets, *also):
            text = text.replace(secret, MASK)
        return text

    def __repr__(self) -> str:
        shown: dict[str, Any] = {
            name: MASK if any(secret in value for secret in self._secrets) else masked(value, name)
            for name, value in self.values.items()
        }
        return f"Headers({shown!r})"


def bearer(variable: str | None, *, field: str = "api_key_env") -> dict[str, str]:
    """The header with the key from the environment's `variable`; empty for None."""
    return {"Authorization": f"Bearer {_variable(variable, field)}"} if variable else {}


def _value_of(field: str, match: re.Match[str]) -> str:
    return _variable(match[1], field)


def _variable(name: str, field: str) -> str:
    value = os.environ.get(name, "").strip()
    if not value:
        raise ConfigError(f"the environment variable {name} is not set", field=field, value=name)
    return value
