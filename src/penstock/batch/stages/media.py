"""Loads what rows point to: images and recordings, by path, URL, data URI or as bytes."""

from __future__ import annotations

import asyncio
import os
import urllib.error
import urllib.request
from base64 import b64decode
from collections.abc import Mapping
from functools import partial
from http.client import HTTPException
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

from penstock.batch.pipeline.offload import Offload
from penstock.errors import RequestError


class Loader:
    """Loads media off the event loop, a few at a time. Make it inside a running event loop.

    `timeout_s` is for each step of a download, `max_bytes` the most that is read.
    """

    def __init__(
        self, *, threads: int = 8, timeout_s: float = 30.0, max_bytes: int = 64 << 20
    ) -> None:
        # The next disk or server may be slow, whatever these were.
        self._offload = Offload(threads, in_place=False)
        self._timeout = timeout_s
        self._most = max_bytes

    async def load(self, source: Any, what: str) -> bytes:
        """The bytes of `source`: bytes, a path, a URL, a data URI, or a mapping with `bytes` or
        `path` (as data sets of Hugging Face have it). Raises `RequestError` naming `what`.
        """
        if isinstance(source, Mapping):
            source = source.get("bytes") or source.get("path") or source.get("url")
        if isinstance(source, bytes | bytearray | memoryview):
            return bytes(source)
        if not isinstance(source, str | os.PathLike):
            raise RequestError(
                f"{what} must be bytes, a path or a URL, not a {type(source).__name__}", param=what
            )
        try:
            async with asyncio.timeout(self._timeout * 2):
                data: bytes = await self._offload.submit(partial(self._read, os.fspath(source)))
        except TimeoutError:
            raise RequestError(
                f"{what} {_short(source)} was not loaded within {self._timeout:g} s", param=what
            ) from None
        except (OSError, ValueError, HTTPException) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            raise RequestError(
                f"{what} {_short(source)} cannot be loaded: {reason}", param=what
            ) from None
        if len(data) > self._most:
            raise RequestError(
                f"{what} {_short(source)} has more than {self._most:,} bytes", param=what
            )
        return data

    def close(self) -> None:
        self._offload.close()

    def _read(self, source: str) -> bytes:
        if source.startswith("data:"):
            head, _, body = source.partition(",")
            return b64decode(body) if head.endswith(";base64") else unquote_to_bytes(body)
        if source.startswith(("http://", "https://")):
            try:
                with urllib.request.urlopen(source, timeout=self._timeout) as answer:
                    return bytes(answer.read(self._most + 1))
            except urllib.error.HTTPError as error:
                with error:  # it holds the connection
                    raise OSError(f"the server answered {error.code}") from None
        if "://" in source and not source.startswith("file://"):
            import fsspec

            with fsspec.open(source, "rb").open() as file:
                return bytes(file.read(self._most + 1))
        with open(
            unquote(source.removeprefix("file://")) if source.startswith("file://") else source,
            "rb",
        ) as local:
            return local.read(self._most + 1)


def _short(source: object) -> str:
    text = str(source)
    return f"'{text}'" if len(text) <= 96 else f"'{text[:60]}…'"
