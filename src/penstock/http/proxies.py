"""Finds an address's proxy in the environment: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY.

The names may be in lower case. The client does not read them itself: it would also read `~/.netrc`,
and send the credentials in it.
"""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit
from urllib.request import (  # type: ignore[attr-defined]
    getproxies_environment,
    proxy_bypass_environment,
)

from penstock.config import masked
from penstock.errors import ConfigError


def proxy_for(scheme: str, host: str, port: int | None) -> str | None:
    """The proxy's URL; None for a direct connection. Raises `ConfigError`."""
    proxies = getproxies_environment()
    name = scheme if scheme in proxies else "all"
    given = proxies.get(name)
    if (
        not given
        or _is_this_machine(host)
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


def _is_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
