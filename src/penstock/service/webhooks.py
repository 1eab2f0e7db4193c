"""Webhooks: tells other servers that a batch has ended, by a POST with OpenAI's event, signed as in
Standard Webhooks (https://www.standardwebhooks.com).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from functools import partial
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

import msgspec

from penstock.batch.read.sources import in_daemon_thread
from penstock.config import masked
from penstock.engines.side_by_side import begin, end_all
from penstock.errors import ConfigError
from penstock.serve.config.settings import WebhookSettings
from penstock.service.batches import Batch
from penstock.service.files import new_id

PREFIX = "whsec_"
TIMEOUT_S = 15.0
MOST_POSTS = 4
"""How many posts to one address may be under way. Each has a daemon thread of its own: a host that
does not answer holds up neither other posts nor the end of the server.
"""
PAUSES_S = (0.0, 5.0, 60.0, 600.0)
"""The pauses before the attempts, in seconds."""
_SHORTEST, _LONGEST = 24, 64
_log = logging.getLogger("penstock.service")


def key_of(secret: str) -> bytes:
    """The key in a webhook's secret. Raises `ConfigError`."""
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except ValueError:
        key = b""
    if not secret.startswith(PREFIX) or not _SHORTEST <= len(key) <= _LONGEST:
        raise ConfigError(
            f"must be {PREFIX} and {_SHORTEST} to {_LONGEST} bytes in base64",
            field="webhook secret",
        )
    return key


def signed(key: bytes, id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers that sign a message."""
    text = b".".join((id.encode(), str(timestamp).encode(), body))
    signature = base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()
    return {
        "content-type": "application/json",
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{signature}",
    }


class Webhooks:
    """The addresses to tell that batches have ended. Raises `ConfigError` for a wrong address or
    secret.

    An event that is not accepted is sent again, three times in eleven minutes, unless this server
    ends.
    """

    def __init__(self, settings: Sequence[WebhookSettings]) -> None:
        self._places = [
            (_checked(one.url), key_of(one.secret), asyncio.Semaphore(MOST_POSTS))
            for one in settings
        ]
        self._sending: set[asyncio.Task[None]] = set()

    def tell(self, batch: Batch) -> None:
        """Begin to send the event of a batch that has ended."""
        event = {
            "id": new_id("evt_"),
            "object": "event",
            "created_at": int(time.time()),
            "type": f"batch.{batch.status}",
            "data": {"id": batch.id},
        }
        for place in self._places:
            begin(self._send(*place, event), self._sending)

    async def close(self) -> None:
        """Stop sending."""
        await end_all(self._sending)

    async def _send(
        self, url: str, key: bytes, posts: asyncio.Semaphore, event: dict[str, Any]
    ) -> None:
        body = msgspec.json.encode(event)
        why: Exception | None = None
        for pause in PAUSES_S:
            await asyncio.sleep(pause)
            headers = signed(key, event["id"], int(time.time()), body)
            try:
                async with posts:
                    await in_daemon_thread(partial(_post, url, body, headers))
                return
            except (OSError, HTTPException, ValueError) as error:
                why = error
        _log.warning("webhook %s took no %s: %s", masked(url), event["type"], why)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


_open = urllib.request.build_opener(_NoRedirects).open


def _post(url: str, body: bytes, headers: dict[str, str]) -> None:
    request = urllib.request.Request(url, body, headers, method="POST")
    try:
        _open(request, timeout=TIMEOUT_S).close()
    except urllib.error.HTTPError as refused:
        refused.close()
        raise


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        works = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # for example a port that is no number
        works = False
    if not works:
        raise ConfigError("must be an http:// or https:// URL", field="webhook", value=masked(url))
    return url
