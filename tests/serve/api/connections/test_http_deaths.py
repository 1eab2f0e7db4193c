"""What clients are told when an engine dies, and when a request is the cause."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest

from penstock import errors
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.llm_config import LLMConfig
from penstock.serve.api.errors import error_response
from penstock.serve.api.ingress import OpenAiIngress
from penstock.serve.config.settings import HttpSettings
from penstock.serve.models.local import LocalModel

MESSAGES = [{"role": "user", "content": "hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "ignore_eos": True},
    "/v1/completions": {"prompt": "hello", "ignore_eos": True},
    "/v1/responses": {"input": "hello"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 10_000},
}
ENDS = {
    "/v1/chat/completions": ('"code":"engine_dead"', "data: [DONE]"),
    "/v1/completions": ('"code":"engine_dead"', "data: [DONE]"),
    "/v1/responses": ("event: error", "event: response.failed"),
    "/v1/messages": ("event: error", '"type":"overloaded_error"'),
}


@pytest.fixture
async def model() -> AsyncGenerator[LocalModel, None]:
    options = {"die_on": "fatal", "time_per_token_ms": 0.1, "output_tokens": 5000}
    config = LLMConfig.from_dict(
        {"model_loading_config": {"model_id": "m"}, "llm_engine": "simulated"}
    )
    model = LocalModel(config, engine=SimulatedEngine(engine_kwargs=options))
    await model.start()
    yield model
    await model.stop(0.0)


def client(model: LocalModel) -> httpx.AsyncClient:
    app = OpenAiIngress({"m": model}, settings=HttpSettings())
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")


@pytest.mark.parametrize("path", BODIES)
async def test_a_stream_whose_engine_dies_ends_with_an_error_event(
    model: LocalModel, path: str
) -> None:
    engine: Any = model.server.engine

    async def die() -> None:
        while not any(item.emitted > 3 for item in engine._running):  # noqa: ASYNC110 - it has begun
            await asyncio.sleep(0)
        engine._die("the simulated engine died")

    async with client(model) as http:
        dying = asyncio.create_task(die())
        answer = await http.post(path, json={"model": "m", "stream": True, **BODIES[path]})
        await dying
        assert answer.status_code == 200
        assert "the simulated engine died" in answer.text
        for end in ENDS[path]:
            assert end in answer.text[-1500:]
        short = (
            {**BODIES[path], "ignore_eos": False, "max_tokens": 3}
            if "ignore_eos" in BODIES[path]
            else BODIES[path]
        )
        assert (await http.post(path, json={"model": "m", **short})).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_kills_the_engine_is_a_400_from_then_on(
    model: LocalModel, stream: bool
) -> None:
    ask = {
        "model": "m",
        "messages": [{"role": "user", "content": "a fatal one"}],
        "stream": stream,
        "max_tokens": 3,
    }
    async with client(model) as http:
        for deaths in (2, 2):
            answer = await http.post("/v1/chat/completions", json=ask)
            assert answer.status_code == 400
            error = answer.json()["error"]
            assert (error["type"], error["code"]) == ("invalid_request_error", "quarantined")
            assert "change its prompt or its parameters" in error["message"]
            assert model.state().restarts == deaths
        other = {**ask, "user": "another", "stream": not stream}
        assert (await http.post("/v1/chat/completions", json=other)).status_code == 400
        assert model.state().restarts == 2
        anthropic = await http.post("/v1/messages", json=ask)
        assert anthropic.status_code == 400
        assert anthropic.json()["error"]["type"] == "invalid_request_error"


def every(cls: type[errors.PenstockError]) -> list[type[errors.PenstockError]]:
    return [cls, *(found for below in cls.__subclasses__() for found in every(below))]


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/messages", "/health", "/v1/embeddings"]
)
@pytest.mark.parametrize("kind", [cls for cls in every(errors.PenstockError) if cls.status == 503])
@pytest.mark.parametrize("wait", [None, 0.0, 0.2, 7.5, float("inf"), float("nan")])
def test_every_503_says_when_to_come_again(
    path: str, kind: type[errors.PenstockError], wait: float | None
) -> None:
    error = errors.by_kind(kind.kind, "not now")
    error.retry_after = wait
    answer = error_response({"type": "http", "path": path, "headers": []}, error, "r1")
    assert answer.status_code == 503
    assert 1 <= int(answer.headers["retry-after"]) <= 86400
