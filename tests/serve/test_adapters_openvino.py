"""The demo model's adapters through the server, on the real engine."""

import asyncio
import json
import os
import shutil
from itertools import count
from typing import Any, NamedTuple

import httpx
import pytest

from penstock import demo
from penstock.errors import ModelNotFoundError, RequestError
from penstock.llm_config import LLMConfig
from penstock.serve import adapters as adapter_store
from penstock.serve.api.ingress import OpenAiIngress
from penstock.serve.models.local import build_local_handles

pytestmark = pytest.mark.slow

OPTIONS = {"deterministic": True, "kv_cache_memory_bytes": 64 << 20, "max_num_seqs": 16}


class Client(NamedTuple):
    """A client of the ingress, and the server behind it."""

    http: httpx.AsyncClient
    server: Any

    def post(self, path, json):
        return self.http.post(path, json=json)


@pytest.fixture
def tickets():
    with demo.tickets_path().open(encoding="utf-8") as lines:
        return [json.loads(next(lines)) for _ in range(8)]


@pytest.fixture
def adapters(tmp_path):
    """A folder of adapters, and a function that puts one of the demo's there under another name."""

    changes = count()

    def put(name, kind):
        home = tmp_path / "adapters" / name
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(demo.adapter_path(kind), home)
        # A change within the clock's grain must show as well.
        later = os.stat(home).st_mtime + next(changes)
        for file in home.iterdir():
            os.utime(file, (later, later))

    return tmp_path / "adapters", put


@pytest.fixture
async def client(adapters, tmp_path, monkeypatch):
    """A model "m" that holds two adapters at most, and a client of its ingress. The source is
    looked at every time.
    """
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(adapter_store, "RECHECK_S", 0.0)
    root, _ = adapters
    config = LLMConfig.from_dict(
        {
            "model_loading_config": {"model_id": "m", "model_source": str(demo.model_path())},
            "engine_kwargs": OPTIONS,
            "lora_config": {
                "dynamic_lora_loading_path": str(root),
                "max_num_adapters_per_replica": 2,
            },
        }
    )
    handles: Any = build_local_handles([config])
    app = OpenAiIngress(handles, lora_paths={"m": str(root)})
    await handles["m"].start()
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=120) as made:
        yield Client(made, handles["m"].server)
    await handles["m"].stop(0)


async def say(client, ticket, adapter=None):
    model = "m" if adapter is None else f"m:{adapter}"
    messages = [{"role": "user", "content": ticket["ticket"]}]
    ask = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 100}
    answer = (await client.post("/v1/chat/completions", json=ask)).json()
    return answer["choices"][0]["message"]["content"]


async def test_first_requests_at_once_load_an_adapter_once(client, adapters, tickets):
    _, put = adapters
    put("one", "summary")
    said = await asyncio.gather(*(say(client, ticket, "one") for ticket in tickets))
    assert said == [demo.expected(ticket, "summary") for ticket in tickets]
    state = client.server.state()
    assert (state.adapter_loads, state.adapters) == (1, 1)


async def test_the_least_recently_used_leaves_and_comes_back(client, adapters, tickets):
    _, put = adapters
    for name, kind in (("a", "summary"), ("b", "german"), ("c", "summary")):
        put(name, kind)
    ticket = tickets[0]
    for name, kind in (
        ("a", "summary"),
        ("b", "german"),
        ("a", "summary"),
        ("c", "summary"),
        ("b", "german"),
    ):
        assert await say(client, ticket, name) == demo.expected(ticket, kind)
        assert client.server.state().adapters <= 2
    held = [name.partition("@")[0] for name in client.server._adapters.names]
    assert (held, client.server.state().adapter_loads) == (["c", "b"], 4)
    assert len(client.server.engine.adapters) == 2


async def test_more_adapters_at_once_than_fit_are_all_served(client, adapters, tickets):
    _, put = adapters
    kinds = {f"a{number}": ("summary", "german")[number % 2] for number in range(5)}
    for name, kind in kinds.items():
        put(name, kind)
    asked = [(name, kind, ticket) for ticket in tickets[:3] for name, kind in kinds.items()]
    said = await asyncio.gather(*(say(client, ticket, name) for name, _, ticket in asked))
    assert said == [demo.expected(ticket, kind) for _, kind, ticket in asked]


async def test_a_changed_adapter_is_picked_up_and_no_prefix_of_the_old_one_is_used(
    client, adapters, tickets
):
    _, put = adapters
    ticket = tickets[0]
    for kind in ("summary", "german", "summary"):
        put("a", kind)
        for _ in range(2):  # the second time from the prefix cache
            assert await say(client, ticket, "a") == demo.expected(ticket, kind)
        assert await say(client, ticket) == demo.expected(ticket)
    assert client.server.state().adapters == 1


async def test_a_missing_adapter_is_a_404_that_names_the_nearest(client, adapters):
    _, put = adapters
    put("german", "german")
    ask = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    for model in ("m:germna", "m:../german", "germna"):
        answer = await client.post("/v1/chat/completions", json={**ask, "model": model})
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "model_not_found"
    answer = await client.post("/v1/chat/completions", json={**ask, "model": "m:germna"})
    assert "Did you mean 'german'?" in answer.json()["error"]["message"]
    shutil.rmtree(adapters[0] / "german")
    assert (
        await client.post("/v1/chat/completions", json={**ask, "model": "m:german"})
    ).status_code == 404


async def test_operators_load_replace_and_unload_an_adapter(client, tickets):
    server, ticket = client.server, tickets[0]
    with pytest.raises(ModelNotFoundError):
        await server.load_lora_adapter("op", "/nowhere")
    await server.load_lora_adapter("op", str(demo.adapter_path("summary")))
    assert server.state().adapters == 1
    assert await say(client, ticket, "op") == demo.expected(ticket, "summary")
    german = str(demo.adapter_path("german"))
    with pytest.raises(RequestError, match="load_inplace"):
        await server.load_lora_adapter("op", german)
    await server.load_lora_adapter("op", german, load_inplace=True)
    assert await say(client, ticket, "op") == demo.expected(ticket, "german")
    await server.unload_lora_adapter("op")
    assert server.state().adapters == len(server.engine.adapters) == 0
    with pytest.raises(ModelNotFoundError):
        await server.unload_lora_adapter("op")
