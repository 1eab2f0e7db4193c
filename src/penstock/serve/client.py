"""A client of the API for commands in the terminal, from the standard library alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

from penstock.errors import UpstreamError


class Client:
    """Calls the server at `url`, with or without a trailing `/v1`."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        if not url.startswith(("http://", "https://")):
            url = f"http://{url}"
        self._url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"content-type": "application/json"}
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"

    def models(self) -> list[dict[str, Any]]:
        with self._open("/v1/models") as answer:
            return list(json.load(answer)["data"])

    def chat(self, model: str, messages: list[dict[str, Any]], **options: Any) -> Iterator[str]:
        """The pieces of an answer as they arrive."""
        body = {"model": model, "messages": messages, "stream": True, **options}
        with self._open("/v1/chat/completions", body) as answer:
            for line in answer:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                chunk = json.loads(line[len(b"data: ") :])
                if "error" in chunk:
                    raise UpstreamError(chunk["error"]["message"])
                for choice in chunk["choices"]:
                    yield choice["delta"].get("content") or ""

    def batches(self) -> Iterator[dict[str, Any]]:
        """All batches of the server, newest first, page by page."""
        after = ""
        while True:
            with self._open(f"/v1/batches?limit=100{after}") as answer:
                page = json.load(answer)
            yield from page["data"]
            if not page.get("has_more") or not page["data"]:
                return
            after = f"&after={quote(page['data'][-1]['id'], safe='')}"

    def batch(self, name: str) -> dict[str, Any]:
        with self._open(f"/v1/batches/{quote(name, safe='')}") as answer:
            return dict(json.load(answer))

    def cancel_batch(self, name: str) -> dict[str, Any]:
        with self._open(f"/v1/batches/{quote(name, safe='')}/cancel", {}) as answer:
            return dict(json.load(answer))

    def file_lines(self, name: str) -> Iterator[str]:
        """The lines of a file of the server."""
        with self._open(f"/v1/files/{quote(name, safe='')}/content") as answer:
            for line in answer:
                yield line.decode().rstrip("\n")

    def _open(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        try:
            return urlopen(Request(self._url + path, data, self._headers))
        except HTTPError as error:
            with error:
                raise UpstreamError(
                    _message(error.read()) or f"the server answered with {error.code}"
                ) from None
        except (URLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise UpstreamError(f"no server answers at {self._url}: {reason}") from None


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""
