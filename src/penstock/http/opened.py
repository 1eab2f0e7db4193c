"""Requests by the standard library alone: those of commands, and media that rows name."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener


def opened(request: Request | str, timeout_s: float) -> Any:
    """What `urlopen` gives and raises; but loopback addresses bypass the environment's proxies."""
    return build_opener(_Proxies()).open(request, timeout=timeout_s)


def is_this_machine(host: str) -> bool:
    """Whether a host is a loopback address, or "localhost"."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Proxies(ProxyHandler):
    def proxy_open(self, req: Request, proxy: str, type: str) -> Any:
        if is_this_machine(urlsplit(f"//{req.host}").hostname or ""):
            return None
        return super().proxy_open(req, proxy, type)
