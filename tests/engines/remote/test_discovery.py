"""What the engine finds out of a scripted server when it starts."""

import asyncio
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from penstock.engines.remote.engine import RemoteEngine
from penstock.errors import (
    EngineDeadError,
    EngineStartError,
    ModelNotFoundError,
)
from penstock.testing import answer, chat_request
from penstock.types import (
    Sampling,
)
from scripted_api import refusal, remote

KEY = "sk-very-secret-1234"
SAID = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}


def whole(text="hi", sampling=None, **fields):
    return chat_request(text, sampling or Sampling(), stream=False, **fields)


async def test_the_only_model_is_found(script):
    script.models = {"data": [{"id": "the-one", "owned_by": "vllm", "max_model_len": 512}]}
    script.answers = [SAID]
    async with remote(script, model="auto") as engine:
        await answer(engine, whole())
        assert engine.capabilities.context_length == 512
        assert "regex" in engine.capabilities.structured
    assert script.asked[0][1]["model"] == "the-one"


async def test_adapters_are_found_and_addressed(script):
    script.models = {
        "data": [{"id": "m"}, {"id": "m:german", "parent": "m"}, {"id": "sql-lora", "parent": "m"}]
    }
    script.answers = [SAID]
    async with remote(script) as engine:
        assert engine.capabilities.adapters
        for adapter in ("german", "sql-lora"):
            await answer(engine, whole(adapter=adapter))
        with pytest.raises(ModelNotFoundError, match="Did you mean 'german'"):
            await answer(engine, whole(adapter="germen"))
    assert [body["model"] for _, body in script.asked] == ["m:german", "sql-lora"]


@pytest.mark.parametrize(
    ("models", "model", "hint"),
    [
        ({"data": [{"id": "llama"}]}, "lama", "Did you mean 'llama'"),
        ({"data": [{"id": "a"}, {"id": "b"}]}, "auto", "several models"),
        ({"data": []}, "a", "no model 'a'; if it answers all the same, set .*discover to false"),
        ({"hello": "world"}, "a", "is this the API's base"),
    ],
)
async def test_a_model_that_is_not_there_is_named_at_the_start(script, models, model, hint):
    script.models = models
    async with remote(script, model=model, start=False) as engine:
        with pytest.raises(EngineStartError, match=hint):
            await engine.start()
        with pytest.raises(EngineDeadError):
            await engine.check_health()


@pytest.mark.parametrize(
    ("named", "hint"), [(True, "key in MY_KEY"), (False, "api_key_env names no variable")]
)
async def test_a_key_that_is_not_taken_is_named_at_the_start(script, monkeypatch, named, hint):
    monkeypatch.setenv("MY_KEY", KEY)
    script.models = refusal(401)
    async with remote(
        script, start=False, **({"api_key_env": "MY_KEY"} if named else {})
    ) as engine:
        with pytest.raises(EngineStartError, match=hint) as caught:
            await engine.start()
    assert KEY not in str(caught.value)


async def test_a_key_that_may_not_list_models_may_ask_them(script):
    """As OpenAI's restricted keys."""
    script.models = refusal(403, "Insufficient permissions. Missing scopes: api.model.read.")
    script.answers = [SAID]
    async with remote(script) as engine:
        assert (await answer(engine, whole())).texts[0] == "yes"


async def test_another_403_names_the_way_out(script):
    script.models = refusal(403)
    async with remote(script, start=False) as engine:
        with pytest.raises(EngineStartError, match=r"set engine_kwargs\.discover to false"):
            await engine.start()


@pytest.mark.parametrize("status", [429, 503])
async def test_a_server_that_is_busy_or_loads_is_waited_for(script, status):
    said = [refusal(status, headers={"Retry-After": "0"})] * 8

    async def busy_at_first(request):
        return await said.pop()(request) if said else web.json_response({"data": [{"id": "m"}]})

    script.models = busy_at_first
    async with remote(script):
        assert not said


async def test_the_start_does_not_wait_with_the_requests(script):
    script.answers = [SAID]
    slow: dict[str, Any] = {"requests_per_minute": 0.1, "connect_timeout_s": 1}
    async with remote(script, **slow) as engine:
        await answer(engine, whole())
        async with remote(script, **slow):
            pass


async def test_a_query_of_the_base_stays_behind_the_paths():
    """As Azure's `api-version`."""
    asked = []

    async def serve(request):
        asked.append(str(request.rel_url))
        if request.path.endswith("/models"):
            return web.json_response({"data": [{"id": "m"}]})
        body = {"count": 1, "tokens": [1]} if request.path.endswith("/tokenize") else SAID
        return web.json_response(body)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", serve)
    async with TestServer(app) as server:
        base = str(server.make_url("/g/v1/?api-version=2024"))
        engine = RemoteEngine("m", engine_kwargs={"base_url": base})
        await engine.start()
        try:
            await answer(engine, whole())
            await engine.tokenize("a")
        finally:
            await engine.stop()
    assert asked == [
        "/g/v1/models?api-version=2024",
        "/g/v1/chat/completions?api-version=2024",
        "/g/tokenize?api-version=2024",
    ]


async def test_a_server_without_a_list_of_models_is_taken_at_its_word(script):
    async def nothing(request):
        raise web.HTTPNotFound

    script.models = nothing
    script.answers = [SAID]
    async with remote(script, max_model_len=100, tasks=["chat"], max_top_logprobs=-1) as engine:
        assert engine.capabilities.context_length == 100
        assert engine.capabilities.tasks == {"chat"}
        assert engine.capabilities.max_top_logprobs == -1
        assert (await answer(engine, whole())).texts[0] == "yes"


async def test_one_server_of_two_is_enough_to_start_and_none_is_not(script, other, caplog):
    script.answers = other.answers = [SAID]
    await script.stop()
    async with remote(script, other) as engine:
        assert "go on without it" in caplog.text
        assert (await answer(engine, whole())).texts[0] == "yes"
        await engine.check_health()
    await other.stop()
    async with remote(script, other, start=False) as engine:
        with pytest.raises(EngineStartError, match="cannot be reached"):
            await engine.start()


async def test_a_server_that_hangs_does_not_hold_up_the_start(script):
    async def hang(request):
        await asyncio.Event().wait()

    script.models = hang
    async with remote(script, start=False, connect_timeout_s=0.05) as engine:
        with pytest.raises(EngineStartError, match=r"no answer within 0\.05 s"):
            await engine.start()


async def test_what_a_server_tells_only_when_it_has_loaded_is_learned_then(script):
    script.models = {"data": [{"id": "m", "engine": "openvino", "metadata": {}}]}
    script.answers = [SAID]
    async with remote(script) as engine:
        told = {"tasks": ["chat"], "structured": ["regex"], "max_top_logprobs": 0}
        script.models = {
            "data": [{"id": "m", "engine": "openvino", "metadata": {"capabilities": told}}]
        }
        assert "embeddings" in engine.capabilities.tasks
        await answer(engine, whole())
        await engine._learning
        assert engine.capabilities.tasks == {"chat"}
        assert engine.capabilities.structured == {"regex"}
        assert engine.capabilities.max_top_logprobs == 0


@pytest.mark.parametrize(
    "models",
    [
        {
            "data": [
                {
                    "id": "m",
                    "created": "x",
                    "owned_by": 5,
                    "max_model_len": "4096",
                    "parent": [],
                    "metadata": "none",
                }
            ]
        },
        {"data": [{"id": "m", "max_model_len": 4096.0}], "object": None},
        [{"id": "m", "max_model_len": 4096}],
    ],
)
async def test_what_is_not_needed_of_a_model_may_be_odd(script, models):
    script.models = models
    async with remote(script) as engine:
        assert engine.capabilities.context_length == 4096


@pytest.mark.parametrize("models", [{"data": [{"name": "m"}]}, {"data": "m"}, {}, "m"])
async def test_but_its_name_is_needed(script, models):
    script.models = models
    with pytest.raises(EngineStartError, match="not answer in OpenAI's form"):
        async with remote(script):
            pass


async def test_a_server_that_lists_nothing_is_taken_at_ones_word(script):
    script.models = {"object": "list", "data": None}
    async with remote(script) as engine:
        assert "chat" in engine.capabilities.tasks
