"""A user's server as a replica behind a port of its own, and ingresses in front of it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

pytest.importorskip("pydantic")

from penstock.balance.policies.load import RoundRobin
from penstock.serve import LLMServer, OpenAiIngress as OwnIngress
from penstock.serve.api.ingress import made_ingress
from penstock.serve.compat import server as server_module
from penstock.serve.config.settings import HttpSettings
from penstock.serve.models.handle import CLIENT_HEADER
from penstock.serve.replicas.model import RemoteModel
from penstock.serve.replicas.replica import ReplicaServer
from penstock.serve.replicas.runtime import InMemoryStore
from penstock.types import ChatRequest, EmbeddingRequest, Sampling
from replica_cluster import KEY, config, until

ASK = [{"role": "user", "content": "Where is my parcel?"}]
CHAT: dict[str, Any] = {"model": "m", "messages": ASK, "max_tokens": 4, "temperature": 0}


class Loopback:
    """A runtime that has one replica, here."""

    async def replica(self, config, engine, outside, about):
        return ReplicaServer(
            config,
            replica_id="r0",
            host="127.0.0.1",
            key=KEY,
            settings=HttpSettings(),
            desired=InMemoryStore(),
            engine=engine,
            outside=outside,
        )

    def request_id(self):
        return ""

    def adapter(self):
        return ""

    def at_root(self, app):
        return app


class Brief(LLMServer):
    """Answers have two tokens."""

    async def __init__(self, llm_config, **kwargs):
        await super().__init__(llm_config, **kwargs)
        self.seen = []

    async def chat(self, request, raw_request_info=None):
        self.headers = raw_request_info.headers
        self.seen.append(self.headers["x-request-id"])
        request.max_tokens = 2
        return await super().chat(request, raw_request_info)

    async def sleep(self, **kwargs):
        self.seen.append(kwargs)
        await super().sleep(**kwargs)


class Replica:
    """The replica as a remote model finds it."""

    def __init__(self, server):
        self.info = server._host.info

    def current(self):
        return (self.info,)

    async def obtain(self):
        return self.info


@pytest.fixture
async def pair(monkeypatch):
    """The server, and the model as it is elsewhere."""
    monkeypatch.setattr(server_module, "hosts", Loopback)
    server: Any = await Brief(config())
    await until(lambda: server._host._http._uvicorn.started)
    model = RemoteModel(config(), Replica(server), key=KEY, policy=RoundRobin())
    yield server, model
    await model.stop()
    await server.stop()


def client_of(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def test_a_programs_call_goes_through_it(pair):
    server, model = pair
    request = ChatRequest(ASK, Sampling(max_tokens=9, temperature=0.0), request_id="mine")
    deltas = [delta async for delta in model.chat(request)]
    assert deltas[-1].usage.completion_tokens == 2
    assert server.seen == ["mine"]
    assert len((await model.embeddings(EmbeddingRequest(["a"]))).vectors) == 1


async def test_a_clients_request_goes_through_it(pair):
    server, model = pair
    async with client_of(OwnIngress({"m": model})) as client:
        reply = await client.post("/v1/chat/completions", json=CHAT)
        assert reply.json()["usage"]["completion_tokens"] == 2
        streamed = await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
        assert streamed.text.endswith("data: [DONE]\n\n")
        claude = {"model": "m", "max_tokens": 5, "messages": ASK}
        reply = await client.post("/v1/messages", json=claude)
        assert reply.json()["usage"]["output_tokens"] == 2
        assert len(server.seen) == 3
        assert (await client.post("/v1/completions", json={"model": "m", "prompt": "a"})).is_success


@pytest.mark.parametrize("keys", [(), ("secret",)])
async def test_it_gets_the_clients_headers_but_no_key_of_the_ingress(pair, keys):
    server, model = pair
    ingress = OwnIngress({"m": model}, settings=HttpSettings(api_keys=frozenset(keys)))
    given = {"x-team": "blue", "authorization": "Bearer secret", "x-request-id": "mine"}
    given[f"{CLIENT_HEADER}x-user"] = "forged"
    async with client_of(ingress) as client:
        assert (await client.post("/v1/chat/completions", json=CHAT, headers=given)).is_success
    assert server.headers["x-team"] == "blue"
    assert "x-user" not in server.headers
    assert server.headers["x-request-id"].startswith("mine")
    assert server.headers.get("authorization") == (None if keys else "Bearer secret")


async def test_a_replica_without_such_a_server_gets_none(monkeypatch):
    monkeypatch.setattr(server_module, "hosts", Loopback)
    server: Any = await LLMServer(config())
    assert not server._host.info.reads_headers
    await server.stop()


async def test_an_operators_call_goes_through_it(pair):
    server, model = pair
    (result,) = await model.control("sleep", {"level": 1})
    assert (result["replica"], result["ok"]) == ("r0", True)
    assert server.seen == [{"level": 1}]
    assert await server.is_sleeping()


@pytest.mark.ray  # with its extra comes FastAPI
async def test_an_ingress_in_rays_form_forwards_to_it(pair):
    pytest.importorskip("fastapi")
    from penstock.serve.ingress import OpenAiIngress
    from penstock.serve.openai_api_models import OpenAIHTTPException

    class Guarded(OpenAiIngress):
        async def chat(self, body, request):
            if request.headers.get("x-team") != "blue":
                raise OpenAIHTTPException(403, "blue only")
            return await super().chat(body, request)

    _, model = pair
    config_ = {"ingress_cls": Guarded}
    app = made_ingress(config_, {"m": model}, [config()], settings=HttpSettings())
    async with client_of(app) as client:
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 403
        blue = {"x-team": "blue"}
        reply = await client.post("/v1/chat/completions", json=CHAT, headers=blue)
        assert reply.json()["usage"]["completion_tokens"] == 2
        body = {**CHAT, "stream": True}
        streamed = await client.post("/v1/chat/completions", json=body, headers=blue)
        assert streamed.text.endswith("data: [DONE]\n\n")
        wrong = {**CHAT, "temperature": -1}
        reply = await client.post("/v1/chat/completions", json=wrong, headers=blue)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "temperature")
        assert (await client.get("/v1/models")).json()["data"][0]["id"] == "m"
