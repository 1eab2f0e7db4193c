"""A client of the API for commands in the terminal, from the standard library alone."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request

from penstock.errors import UpstreamError, class_and_text
from penstock.http.standard import opened

MESSAGE_BATCH = "msgbatch_"
"""How the ids of Anthropic's batches begin."""
_BATCHES, _MESSAGE_BATCHES = "/v1/batches", "/v1/messages/batches"
_KEY_HINT = "A command takes the key as --api-key KEY or PENSTOCK_API_KEY, Python as api_key"
_PATIENCE_S = 600.0
"""How long a server may say nothing: it may have to load a model first."""


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
        return self._objects(self._json("/v1/models"), "/v1/models")

    def chat(self, model: str, messages: list[dict[str, Any]], **options: Any) -> Iterator[str]:
        """The pieces of an answer as they arrive."""
        body = {"model": model, "messages": messages, "stream": True, **options}
        with self._open("/v1/chat/completions", body) as answer:
            for line in answer:
                data = line.removeprefix(b"data:").strip()
                if not line.startswith(b"data:") or not data or data == b"[DONE]":
                    continue
                chunk = json.loads(data)
                if "error" in chunk:
                    raise UpstreamError(chunk["error"]["message"])
                for choice in chunk["choices"]:
                    yield choice["delta"].get("content") or ""

    def batches(self) -> Iterator[dict[str, Any]]:
        """All batches of the server, newest first, page by page; then those of messages, which not
        each server has.
        """
        yield from self._pages(_BATCHES, "after")
        try:
            yield from self._pages(_MESSAGE_BATCHES, "after_id")
        except UpstreamError as error:
            if error.http_status not in (404, 405):
                raise

    def batch(self, name: str) -> dict[str, Any]:
        return self._json(_path_of(name))

    def steer_batch(self, name: str, word: str) -> dict[str, Any]:
        """Have a batch do "cancel", "pause" or "resume"; the latter two are Penstock's own."""
        return self._json(f"{_path_of(name)}/{word}", {})

    def results(self, name: str) -> Iterator[str]:
        """The lines of a batch of messages that has ended."""
        return self._lines(f"{_path_of(name)}/results")

    def file_lines(self, name: str) -> Iterator[str]:
        """The lines of a file of the server."""
        return self._lines(f"/v1/files/{quote(name, safe='')}/content")

    def _pages(self, path: str, behind: str) -> Iterator[dict[str, Any]]:
        after = ""
        while True:
            page = self._json(f"{path}?limit=100{after}")
            data = self._objects(page, path)
            yield from data
            if not page.get("has_more") or not data:
                return
            before, after = after, f"&{behind}={quote(str(data[-1].get('id')), safe='')}"
            if after == before:  # it would go on for ever
                raise self._strange(path)

    def _json(self, path: str, body: Any = None) -> dict[str, Any]:
        with self._open(path, body) as answer:
            found = json.load(answer)
        if not isinstance(found, dict):
            raise self._strange(path)
        return found

    def _objects(self, page: dict[str, Any], path: str) -> list[dict[str, Any]]:
        data = page.get("data")
        if not isinstance(data, list) or not all(isinstance(one, dict) for one in data):
            raise self._strange(path)
        return data

    def _lines(self, path: str) -> Iterator[str]:
        with self._open(path) as answer:
            for line in answer:
                yield line.decode(errors="replace").rstrip("\n")

    @contextlib.contextmanager
    def _open(self, path: str, body: Any = None) -> Iterator[Any]:
        """The server's answer, to be read inside. Raises `UpstreamError`, also for what is read."""
        data = None if body is None else json.dumps(body).encode()
        try:
            answer = opened(Request(self._url + path, data, self._headers), _PATIENCE_S)
        except HTTPError as error:
            with error:
                why = _message(error.read()) or f"the server answered with {error.code}"
                if error.code == 401:
                    why += f". {_KEY_HINT}"
                raise UpstreamError(why, http_status=error.code) from None
        except (OSError, ValueError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise UpstreamError(f"no server answers at {self._url}: {reason}") from None
        try:
            with answer:
                yield answer
        except (OSError, HTTPException) as error:
            what = class_and_text(error)
            raise UpstreamError(f"{self._url}{path}: the answer broke off: {what}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self._strange(path) from None

    def _strange(self, path: str) -> UpstreamError:
        return UpstreamError(f"what {self._url}{path} answers is not of an OpenAI API")


def _path_of(batch: str) -> str:
    place = _MESSAGE_BATCHES if batch.startswith(MESSAGE_BATCH) else _BATCHES
    return f"{place}/{quote(batch, safe='')}"


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""
