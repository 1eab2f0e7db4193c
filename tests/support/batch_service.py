"""An ingress with batches over a simulated engine, in the test's own loop, and clients for it."""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import httpx
import openai

from penstock.llm_config import LLMConfig
from penstock.serve.api.ingress import OpenAiIngress
from penstock.serve.config.settings import BatchSettings, HttpSettings
from penstock.serve.models.local import build_local_handles
from penstock.service.routes import add_batches

ENDED = ("completed", "failed", "expired", "cancelled")


def line(custom_id: str, text: str = "", url: str = "/v1/chat/completions", **body: Any) -> Any:
    """A line that asks the simulated model."""
    asked = {"model": "sim", "messages": [{"role": "user", "content": text or custom_id}]}
    given = {"max_tokens": 4, **asked, **body}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": given}


def lines(many: Iterable[Any]) -> bytes:
    """The content of a file of lines; texts and bytes stay as they are."""
    return b"".join(
        (one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in many
    )


class Service:
    """The ingress `app`, and clients that hold `key`."""

    def __init__(self, app: OpenAiIngress, service: Any) -> None:
        self.app = app
        self.service = service
        self.handles = app.ingress.models.handles

    def http(self, key: str = "none") -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        headers = {"authorization": f"Bearer {key}"}
        return httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers)

    def openai(self, key: str = "none") -> Any:
        """OpenAI's client."""
        http: Any = self._http_of(openai.DefaultAsyncHttpxClient)
        return openai.AsyncOpenAI(
            api_key=key, base_url="http://test/v1", max_retries=0, http_client=http
        )

    def anthropic(self, key: str = "none") -> Any:
        """Anthropic's client."""
        http: Any = self._http_of(anthropic.DefaultAsyncHttpxClient)
        return anthropic.AsyncAnthropic(
            auth_token=key, base_url="http://test", max_retries=0, http_client=http
        )

    def _http_of(self, client: Any) -> Any:
        """A client in the form of this one, whose library depends on its version."""
        names = [cls.__module__.partition(".")[0] for cls in client.__mro__]
        library = importlib.import_module(next(one for one in names if one.startswith("httpx")))
        return client(transport=library.ASGITransport(app=self.app, raise_app_exceptions=False))

    async def submit(self, given: Iterable[Any], key: str = "none", **options: Any) -> Any:
        """A new batch of these lines."""
        client = self.openai(key)
        file = await client.files.create(file=("in.jsonl", lines(given)), purpose="batch")
        return await client.batches.create(
            input_file_id=file.id,
            **{"endpoint": "/v1/chat/completions", "completion_window": "24h", **options},
        )

    async def under_way(self, id: str) -> None:
        """Return when a line of the batch is answered."""
        async with asyncio.timeout(60):
            while not (await self.openai().batches.retrieve(id)).request_counts.completed:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def ended(self, id: str, key: str = "none") -> Any:
        """The batch when it has ended, and this server is done with what comes after the end."""
        client = self.openai(key)
        async with asyncio.timeout(60):
            while (batch := await client.batches.retrieve(id)).status not in ENDED:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            while id in self.service._stores.runner._runs:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return batch

    async def read(self, id: str | None) -> list[Any]:
        """The lines of a file; none without one."""
        if id is None:
            return []
        text = (await self.openai().files.content(id)).text
        return [json.loads(one) for one in text.splitlines()]


@asynccontextmanager
async def batch_service(
    folder: Any,
    *,
    engine: dict[str, Any] | None = None,
    http: dict[str, Any] | None = None,
    models: Iterable[str] = ("sim",),
    **settings: Any,
) -> AsyncGenerator[Service, None]:
    """The service with its state in `folder`."""
    configs = [
        LLMConfig.from_dict(
            {
                "model_loading_config": {"model_id": model, "model_source": "simulated"},
                "llm_engine": "simulated",
                "engine_kwargs": engine or {},
            }
        )
        for model in models
    ]
    handles = build_local_handles(configs)
    batches = BatchSettings(path=str(folder), **settings)
    app = OpenAiIngress(handles, settings=HttpSettings(batches=batches, **(http or {})))
    service = add_batches(app)
    assert service is not None
    for handle in handles.values():
        await handle.start()
    await service.start()
    try:
        yield Service(app, service)
    finally:
        await app.ingress.drain(5.0)
        service.close()
        for handle in handles.values():
            await handle.stop(0.0)
