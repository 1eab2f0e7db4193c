"""Requests with the standard library alone, for commands and for media that rows name."""

from __future__ import annotations

import time
from http.client import HTTPException
from ipaddress import ip_address
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from penstock.errors import text_of


def opened(request: Request | str, timeout_s: float) -> Any:
    """What `urlopen` gives and raises; but loopback addresses bypass the environment's proxies."""
    return build_opener(_Proxies()).open(request, timeout=timeout_s)


def content_at(url: str, timeout_s: float, most: int) -> bytes:
    """Up to `most` bytes of what stands at an URL. The call ends in time, however slowly a server
    sends. Raises `OSError`, also for a refusal and for a body that breaks off, and `ValueError` for
    what is no URL.
    """
    end, content = time.monotonic() + timeout_s, bytearray()
    try:
        with opened(url, timeout_s) as answer:
            while len(content) < most and (part := answer.read1(most - len(content))):
                content += part
                if time.monotonic() > end:
                    raise TimeoutError("the server sends too slowly")
            if len(content) < most and answer.length:
                raise OSError(f"the answer broke off {answer.length:,} bytes before its end")
            return bytes(content)
    except HTTPError as error:
        with error:  # it holds the connection
            raise OSError(f"the server answered {error.code}") from None
    except HTTPException as error:
        raise OSError(text_of(error) or type(error).__name__) from None


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
