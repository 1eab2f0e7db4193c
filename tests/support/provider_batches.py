"""A stand-in for the batch APIs of OpenAI and Anthropic, as the test has it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer


class Provider:
    """Answers each line with its last message in capitals. `paid` has the text of each line that
    was accepted for work.

    `held` batches stay in progress until the test sets `go_on`. `fate` gives what becomes of a
    line's text in place of an answer: "expired", "cancelled", a status. `at_create` is awaited when
    a batch has been made, before its maker hears of it. `refuse` gives errors of a whole file.
    """

    def __init__(self) -> None:
        self.base_url = ""
        self.files: dict[str, tuple[str, bytes]] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.paid: list[str] = []
        self.asked: list[str] = []
        self.headers: list[Any] = []
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.fate: Callable[[str], str | int | None] = lambda text: None
        self.refuse: Callable[[list[Any]], list[dict[str, Any]]] = lambda lines: []
        self.at_create: Callable[[web.Request], Awaitable[None]] | None = None
        self.failing: list[int] = []

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Provider, None]:
        app = web.Application(client_max_size=1 << 30, middlewares=[self._watch])
        app.router.add_post("/v1/files", self._upload)
        app.router.add_get("/v1/files/{id}/content", self._content)
        app.router.add_post("/v1/batches", self._create)
        app.router.add_get("/v1/batches", self._list)
        app.router.add_get("/v1/batches/{id}", self._get)
        app.router.add_post("/v1/messages/batches", self._create_messages)
        app.router.add_get("/v1/messages/batches", self._list_messages)
        app.router.add_get("/v1/messages/batches/{id}", self._get_messages)
        app.router.add_get("/v1/messages/batches/{id}/results", self._results)
        server = TestServer(app)
        await server.start_server()
        self.base_url = str(server.make_url("/v1"))
        try:
            yield self
        finally:
            await server.close()

    @web.middleware
    async def _watch(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.path}")
        self.headers.append(request.headers)
        if self.failing:
            return web.json_response({"error": {"message": "no"}}, status=self.failing.pop(0))
        answer: web.StreamResponse = await handler(request)
        return answer

    # OpenAI's
    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        file = form["file"]
        assert isinstance(file, web.FileField)
        assert form["purpose"] == "batch"
        id = f"file-{len(self.files)}"
        self.files[id] = file.filename, file.file.read()
        return web.json_response({"id": id})

    async def _content(self, request: web.Request) -> web.Response:
        return web.Response(body=self.files[request.match_info["id"]][1])

    async def _create(self, request: web.Request) -> web.Response:
        asked = await request.json()
        _, content = self.files[asked["input_file_id"]]
        lines = [json.loads(line) for line in content.splitlines()]
        assert {line["url"] for line in lines} == {asked["endpoint"]}
        texts = [_text(line["body"]) for line in lines]
        one = self._made(lines, texts)
        one |= {"object": "batch", "metadata": asked["metadata"], "asked": asked}
        if errors := self.refuse(lines):
            one |= {"status": "failed", "errors": {"data": errors}}
        else:
            self.paid += texts
        return await self._answer(request, one)

    def _made(self, lines: list[Any], texts: list[str]) -> dict[str, Any]:
        id = f"batch_{len(self.batches)}"
        one = {"id": id, "created_at": int(time.time()), "lines": lines, "texts": texts}
        self.batches[id] = {"status": "in_progress", **one}
        return self.batches[id]

    async def _answer(self, request: web.Request, one: dict[str, Any]) -> web.Response:
        if self.at_create is not None:
            await self.at_create(request)
        return web.json_response(_shown(one))

    async def _list(self, request: web.Request) -> web.Response:
        ids = list(self.batches)[::-1]
        after = request.query.get("after")
        rest = ids if after is None else ids[ids.index(after) + 1 :]
        page = [_shown(self.batches[id]) for id in rest[:2]]
        return web.json_response({"data": page, "has_more": len(rest) > 2})

    async def _get(self, request: web.Request) -> web.Response:
        one = self.batches[request.match_info["id"]]
        if one["status"] == "in_progress" and self.go_on.is_set():
            self._end(one)
        return web.json_response(_shown(one))

    def _end(self, one: dict[str, Any]) -> None:
        good, bad = [], []
        fates = [self.fate(text) for text in one["texts"]]
        for line, text, fate in zip(one["lines"], one["texts"], fates, strict=True):
            named = {"custom_id": line["custom_id"], "id": "x"}
            if fate is None:
                response = {"status_code": 200, "body": _openai(line, text)}
                good.append({**named, "response": response, "error": None})
            elif isinstance(fate, int):
                body = {"error": {"message": f"no {text}"}}
                bad.append({**named, "response": {"status_code": fate, "body": body}})
            else:
                error = {"code": f"batch_{fate}", "message": fate}
                bad.append({**named, "response": None, "error": error})
        one["status"] = next((fate for fate in fates if isinstance(fate, str)), "completed")
        good.reverse()  # results come in any order
        for name, found in (("output_file_id", good), ("error_file_id", bad)):
            if found:
                one[name] = f"file-{len(self.files)}"
                content = "\n".join(map(json.dumps, found)).encode()
                self.files[one[name]] = "out", content

    # Anthropic's
    async def _create_messages(self, request: web.Request) -> web.Response:
        lines = (await request.json())["requests"]
        texts = [_text(line["params"]) for line in lines]
        self.paid += texts
        one = self._made(lines, texts)
        one["created_at"] = datetime.now(UTC).isoformat()
        self._count(one)
        return await self._answer(request, one)

    def _count(self, one: dict[str, Any]) -> None:
        number = len(one["lines"])
        ended = one["status"] != "in_progress"
        one["processing_status"] = "ended" if ended else "in_progress"
        one["request_counts"] = {
            "processing": 0 if ended else number,
            "succeeded": number if ended else 0,
        }

    async def _list_messages(self, request: web.Request) -> web.Response:
        ids = list(self.batches)[::-1]
        after = request.query.get("after_id")
        rest = ids if after is None else ids[ids.index(after) + 1 :]
        page = [_shown(self.batches[id]) for id in rest[:2]]
        last = page[-1]["id"] if page else None
        return web.json_response({"data": page, "has_more": len(rest) > 2, "last_id": last})

    async def _get_messages(self, request: web.Request) -> web.Response:
        one = self.batches[request.match_info["id"]]
        if one["status"] == "in_progress" and self.go_on.is_set():
            one["status"] = "ended"
            one["results_url"] = f"{self.base_url}/messages/batches/{one['id']}/results"
            self._count(one)
        return web.json_response(_shown(one))

    async def _results(self, request: web.Request) -> web.Response:
        one = self.batches[request.match_info["id"]]
        found = [
            {"custom_id": line["custom_id"], "result": self._anthropic(line, text)}
            for line, text in zip(one["lines"], one["texts"], strict=True)
        ]
        return web.Response(body="".join(json.dumps(line) + "\n" for line in found).encode())

    def _anthropic(self, line: dict[str, Any], text: str) -> dict[str, Any]:
        fate = self.fate(text)
        if fate in ("expired", "canceled"):
            return {"type": fate}
        if isinstance(fate, int):
            kind = "invalid_request_error" if fate == 400 else "overloaded_error"
            error = {"type": kind, "message": f"no {text}"}
            return {"type": "errored", "error": {"type": "error", "error": error}}
        message = {
            "type": "message",
            "content": [{"type": "text", "text": text.upper()}],
            "stop_reason": "end_turn",
            "usage": {"input_tokens": 3, "output_tokens": 2, "cache_read_input_tokens": 1},
        }
        return {"type": "succeeded", "message": message}


def _shown(one: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in one.items() if name not in ("lines", "texts", "asked")}


def _text(body: dict[str, Any]) -> str:
    if "messages" in body:
        return str(body["messages"][-1]["content"])
    return str(body.get("prompt") or body["input"])


def _openai(line: dict[str, Any], text: str) -> dict[str, Any]:
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    if line["url"] == "/v1/embeddings":
        data = [{"index": 0, "embedding": [1.0, 2.0]}]
        return {"object": "list", "data": data, "usage": usage}
    message = {"role": "assistant", "content": text.upper()}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"object": "chat.completion", "choices": [choice], "usage": usage}
