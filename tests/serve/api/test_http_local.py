"""The ingress over the local runtime's own handles, as `penstock serve` puts them together."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from typing import Any

import httpx
import pytest

from penstock.llm_config import LLMConfig
from penstock.serve.api.exchange import Exchange
from penstock.serve.api.ingress import OpenAiIngress
from penstock.serve.config.settings import HttpSettings
from penstock.serve.models.local import build_local_handles
from replica_cluster import config

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "temperature": 0}


@pytest.fixture
async def local() -> Any:
    """Starts models by their configurations, and gives a client of the ingress in front of them."""
    opened: list[Any] = []

    async def start(*configs: LLMConfig) -> httpx.AsyncClient:
        handles = build_local_handles(configs)
        app = OpenAiIngress(handles, settings=HttpSettings(dev=True))
        await asyncio.gather(*(handle.start() for handle in handles.values()))
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")
        opened.extend([*handles.values(), client])
        return client

    yield start
    for one in opened:
        await (one.aclose() if isinstance(one, httpx.AsyncClient) else one.stop(0))


async def test_a_model_that_loads_on_demand_is_cold_until_it_is_called(local: Any) -> None:
    client = await local(config(deployment_config={"autoscaling_config": {"min_replicas": 0}}))
    assert (await client.get("/v1/models/m")).json()["state"] == "cold"
    assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
    assert (await client.get("/v1/models/m")).json()["state"] == "ready"


async def test_a_model_holds_nothing_of_the_request_that_loaded_it(
    local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[Exchange]] = []
    begin = Exchange.__init__

    def init(exchange: Exchange, *args: Any) -> None:
        begin(exchange, *args)
        made.append(weakref.ref(exchange))

    monkeypatch.setattr(Exchange, "__init__", init)
    client = await local(config(deployment_config={"autoscaling_config": {"min_replicas": 0}}))
    asking = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT))
    assert (await asking).status_code == 200
    del asking
    gc.collect()
    assert [one() for one in made] == [None]


async def test_the_control_routes_change_the_state(local: Any) -> None:
    client = await local(config())
    paused = (await client.post("/pause", json={"model": "m"})).json()
    assert paused["replicas"][0]["ok"] is True
    assert (await client.get("/v1/models/m")).json()["state"] == "paused"
    asked = (await client.get("/is_paused", params={"model": "m"})).json()
    assert asked["replicas"][0]["result"] is True
    await client.post("/resume", json={"model": "m"})
    assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
    wrong = await client.post("/pause", json={"model": "m", "options": {"mode": "maybe"}})
    assert wrong.status_code == 400


@pytest.mark.parametrize("interval", [0, 1])
async def test_tool_calls_survive_the_server(local: Any, interval: int) -> None:
    experimental = {"stream_batching_interval_ms": interval} if interval else {}
    client = await local(config(experimental_configs=experimental))
    ask = {**CHAT, "tools": [TOOL], "tool_choice": "required", "stream": True}
    answer = await client.post("/v1/chat/completions", json=ask)
    arguments = ""
    for line in answer.text.splitlines():
        if line.startswith("data: {"):
            for part in json.loads(line[6:])["choices"][0]["delta"].get("tool_calls", []):
                arguments += part["function"]["arguments"]
    assert set(json.loads(arguments)) == {"city"}


@pytest.mark.parametrize("interval", [0, 1])
async def test_the_stop_sequence_survives_the_server(local: Any, interval: int) -> None:
    client = await local(config(experimental_configs={"stream_batching_interval_ms": interval}))
    ask = {"model": "m", "max_tokens": 50, "messages": CHAT["messages"], "temperature": 0}
    text = (await client.post("/v1/messages", json=ask)).json()["content"][0]["text"]
    answer = await client.post(
        "/v1/messages", json={**ask, "stop_sequences": [text[6:9]], "stream": True}
    )
    (ending,) = (
        json.loads(line[6:])["delta"]
        for line in answer.text.splitlines()
        if '"type":"message_delta"' in line
    )
    assert ending == {"stop_reason": "stop_sequence", "stop_sequence": text[6:9]}
    assert answer.text.count("event: message_start") == 1


async def test_replicas_are_counted_one_by_one_and_keep_sessions(local: Any) -> None:
    router = {"request_router_class": "session_affinity"}
    client = await local(
        config(deployment_config={"num_replicas": 2, "request_router_config": router})
    )
    for _ in range(8):
        reply = await client.post(
            "/v1/chat/completions", json=CHAT, headers={"x-session-id": "ours"}
        )
        assert reply.status_code == 200
    text = (await client.get("/metrics")).text
    for name in ("local-0", "local-1"):
        assert (
            f'penstock_replica_state{{model_name="m",replica="{name}",state="ready"}} 1.0' in text
        )
        assert f'penstock_replica_model_loads_total{{model_name="m",replica="{name}"}} 1.0' in text
    assert 'penstock_model_loads_total{model_name="m"} 2.0' in text
    asked = (await client.get("/is_paused", params={"model": "m"})).json()
    assert [one["replica"] for one in asked["replicas"]] == ["local-0", "local-1"]


async def test_a_batch_request_goes_to_a_replica(local: Any) -> None:
    client = await local(config(deployment_config={"num_replicas": 2}))
    reply = await client.post(
        "/v1/chat/completions",
        json=CHAT,
        headers={"x-penstock-class": "batch", "x-session-id": "ours"},
    )
    assert reply.status_code == 200
