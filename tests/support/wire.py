"""One request spoken to an ASGI application by hand."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from penstock.serve.api.ingress import IngressApp


class Wire:
    """What comes back, and when the client leaves (`left`)."""

    def __init__(
        self,
        app: IngressApp,
        body: dict[str, Any],
        path: str = "/v1/chat/completions",
        kind: str = "application/json",
    ) -> None:
        self.sent: list[dict[str, Any]] = []
        self.progress = asyncio.Event()
        self.left = asyncio.Event()
        self._request: list[bytes] = [json.dumps(body).encode()]
        scope: Any = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(b"content-type", kind.encode())],
        }
        self.task = asyncio.create_task(app(scope, self._receive, self._send))  # type: ignore[arg-type]

    async def _receive(self) -> dict[str, Any]:
        if self._request:
            return {"type": "http.request", "body": self._request.pop(), "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)
        self.progress.set()

    async def some(self) -> None:
        """Wait for something more to be sent."""
        self.progress.clear()
        await asyncio.wait_for(self.progress.wait(), 10)

    async def end(self) -> None:
        await asyncio.wait_for(self.task, 10)

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def whole(self) -> bool:
        return not self.sent[-1].get("more_body", False)
