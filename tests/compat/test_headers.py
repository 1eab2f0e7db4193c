"""The headers of a request, for a user's own server and engine in Ray's form."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

pytest.importorskip("pydantic")

from penstock.serve import LLMServer, OpenAiIngress
from penstock.serve.compat.forms import RawRequestInfo
from penstock.serve.config.settings import HttpSettings
from penstock.serve.models.handle import CLIENT_HEADER
from penstock.serve.models.local import build_local_handles
from penstock.serve.openai_api_models import ChatCompletionResponse
from replica_cluster import config

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
GIVEN = {"x-team": "blue", "authorization": "Bearer secret"}


class Reading(LLMServer):
    seen: dict[str, str]

    async def chat(self, request, raw_request_info=None):
        type(self).seen = raw_request_info.headers
        return await super().chat(request, raw_request_info)


class ReadingEngine:
    seen: dict[str, str]

    def __init__(self, llm_config):
        pass

    async def start(self):
        pass

    async def chat(self, request, raw_request_info=None):
        type(self).seen = raw_request_info.headers
        choice = {"index": 0, "message": {"role": "assistant", "content": "a"}}
        yield ChatCompletionResponse.model_validate(
            {"choices": [{**choice, "finish_reason": "stop"}]}
        )


@pytest.mark.parametrize("keys", [(), ("secret",)])
async def test_a_server_in_the_ingresss_process(keys):
    model: Any = build_local_handles([config(server_cls=Reading)])["m"]
    app: Any = OpenAiIngress({"m": model}, settings=HttpSettings(api_keys=frozenset(keys)))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://test"
    ) as client:
        assert (await client.post("/v1/chat/completions", json=CHAT, headers=GIVEN)).is_success
    assert Reading.seen["x-team"] == "blue"
    assert Reading.seen.get("authorization") == (None if keys else "Bearer secret")
    await model.stop()


async def test_a_client_passes_on_no_headers_of_another_one():
    model: Any = build_local_handles([config(server_cls=Reading)])["m"]
    app: Any = OpenAiIngress({"m": model})
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://test"
    ) as client:
        forged = {"x-user": "me", f"{CLIENT_HEADER}x-user": "admin"}
        assert (await client.post("/v1/chat/completions", json=CHAT, headers=forged)).is_success
    assert Reading.seen["x-user"] == "me"
    await model.stop()


async def test_an_engine_behind_a_handle():
    server: Any = await LLMServer(config(), engine_cls=ReadingEngine)
    given = {**GIVEN, "x-user": "Zo\xeb", "x-sent": "Zoë".encode().decode("latin-1")}
    raw = RawRequestInfo(given)
    again = RawRequestInfo.from_starlette_request(raw.to_starlette_request())
    assert again.headers == given
    assert (
        RawRequestInfo({"x-user": "中"}).to_starlette_request().headers.raw[0][1] == "中".encode()
    )
    async for _ in await server.chat(CHAT, raw):
        pass
    assert given.items() <= ReadingEngine.seen.items()
    async for _ in await server.chat(CHAT):
        pass
    assert "x-team" not in ReadingEngine.seen
    await server.stop()
