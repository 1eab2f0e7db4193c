"""Programs written for `ray.serve.llm`, with the import changed, on a real Ray."""

from __future__ import annotations

import asyncio
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("ray")
    pytest.importorskip("ray.serve")
    from ray import cloudpickle, serve

from penstock.errors import ConfigError
from penstock.serve import (
    LLMConfig,
    LLMServer,
    build_dev_openai_app,
    build_llm_deployment,
    build_openai_app,
    served_model,
)
from penstock.serve.deployment import PDDecodeServer, PDPrefillServer
from penstock.serve.ingress import OpenAiIngress, make_fastapi_ingress
from penstock.serve.openai_api_models import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    ErrorResponse,
    ModelList,
    OpenAIHTTPException,
    to_model_metadata,
)
from penstock.types import ChatRequest, Sampling
from ray_cluster import free_port, own_cluster

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

ASK = [{"role": "user", "content": "Where is my parcel?"}]
CHAT: dict[str, Any] = {"model": "m", "messages": ASK, "max_tokens": 4, "temperature": 0}


def config(**fields: Any) -> LLMConfig:
    return LLMConfig.from_dict(
        {
            "model_loading_config": {"model_id": "m", "model_source": "simulated"},
            "llm_engine": "simulated",
            "deployment_config": {"graceful_shutdown_wait_loop_s": 0.2},
            **fields,
        }
    )


@pytest.fixture(scope="module", autouse=True)
def proxy() -> Iterator[str]:
    """A cluster; gives the URL of Ray's proxy."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    port = free_port()
    with own_cluster(proxy_port=port):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def deployed(app: Any, route: str | None = None) -> Iterator[Any]:
    """The application; gives the handle of its ingress."""
    handle = serve.run(app, name="app", route_prefix=route)
    try:
        yield handle
    finally:
        serve.delete("app")


def asked(handle: Any, method: str, request: Any) -> list[Any]:
    async def ask() -> list[Any]:
        answers = getattr(handle.options(stream=True), method).remote(request)
        return [item async for item in answers]

    return asyncio.run(ask())


def text_of(items: list[Any]) -> str:
    events = [event for batch in items for event in batch]
    assert events[-1] == "data: [DONE]\n\n"
    chunks = [json.loads(event[6:]) for event in events[:-1]]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


# Handles
def test_a_handle_answers_in_rays_form() -> None:
    with deployed(build_llm_deployment(config())) as handle:
        (answer,) = asked(handle, "chat", ChatCompletionRequest(**CHAT))
        assert isinstance(answer, ChatCompletionResponse)
        streamed = asked(handle, "chat", ChatCompletionRequest(**CHAT, stream=True))
        assert text_of(streamed) == answer.choices[0].message.content
        (error,) = asked(handle, "chat", {**CHAT, "temperature": -1})
        assert isinstance(error, ErrorResponse)
        (tokens,) = asked(handle, "tokenize", {"prompt": "hi", "add_special_tokens": False})
        assert tokens.tokens == [104, 105]
        assert handle.llm_config.remote().result().model_id == "m"
        assert handle.is_sleeping.remote().result() is False
        handle.pause.remote(mode="wait", clear_cache=False).result()
        assert handle.is_paused.remote().result() is True
        handle.resume.remote().result()
        handle.check_health.remote().result()
        assert handle.record_routing_stats.remote().result() == {}


def test_a_server_is_deployed_by_its_class() -> None:
    options = LLMServer.get_deployment_options(config())
    app = serve.deployment(LLMServer).options(**options).bind(config())
    with deployed(app) as handle:
        (answer,) = asked(handle, "chat", ChatCompletionRequest(**CHAT))
        assert answer.choices[0].message.content

        async def directly() -> str:
            model = await served_model(handle)
            request = ChatRequest(ASK, Sampling(max_tokens=4, temperature=0.0))
            return "".join([delta.text async for delta in model.chat(request)])

        assert asyncio.run(directly()) == answer.choices[0].message.content


class Brief(LLMServer):
    """A server of a user's own, whose answers have two tokens, or as many as a header says."""

    async def __init__(self, llm_config, **kwargs):
        await super().__init__(llm_config, **kwargs)
        self.count = 0

    async def chat(self, request, raw_request_info=None):
        self.count += 1
        headers = raw_request_info.headers if raw_request_info else {}
        request.max_tokens = int(headers.get("x-most", 2))
        return await super().chat(request, raw_request_info)

    async def counted(self):
        return self.count


@pytest.mark.parametrize("how", ["deployment_cls", "server_cls"])
def test_a_server_of_ones_own_answers_handles_and_clients(how: str) -> None:
    given: Any = {"server_cls": Brief} if how == "server_cls" else {}
    build: Any = {"deployment_cls": Brief} if how == "deployment_cls" else {}
    with deployed(build_llm_deployment(config(**given), **build)) as handle:
        assert handle.deployment_name == "Brief:m"
        (answer,) = asked(handle, "chat", ChatCompletionRequest(**CHAT))
        assert answer.usage.completion_tokens == 2

        async def directly() -> Any:
            model: Any = await served_model(handle)
            deltas = [delta async for delta in model.chat(ChatRequest(ASK))]
            return deltas[-1].usage.completion_tokens

        assert asyncio.run(directly()) == 2
        assert handle.counted.remote().result() == 2


def test_a_server_of_ones_own_behind_the_ingress(proxy: str) -> None:
    app = build_openai_app({"llm_configs": [config(server_cls=Brief)]})
    with deployed(app, "/"), httpx.Client(base_url=proxy, timeout=60) as client:
        for stream in (False, True):
            reply = client.post("/v1/chat/completions", json={**CHAT, "stream": stream})
            assert reply.status_code == 200
            if not stream:
                assert reply.json()["usage"]["completion_tokens"] == 2
        reply = client.post("/v1/chat/completions", json=CHAT, headers={"x-most": "3"})
        assert reply.json()["usage"]["completion_tokens"] == 3


class Telling(PDDecodeServer):
    """A decode side that tells where prompts were computed."""

    async def handoffs(self):
        host: Any = self._host
        return host.model.server.handoffs


def test_prefill_and_decode_by_hand() -> None:
    transfer = {"kv_connector": "SimulatedConnector", "kv_role": "kv_both"}
    one = config(engine_kwargs={"kv_transfer_config": transfer})
    options = PDPrefillServer.get_deployment_options(one)
    prefill = serve.deployment(PDPrefillServer).options(**options).bind(one)
    options = Telling.get_deployment_options(one)
    app = serve.deployment(Telling).options(**options).bind(one, prefill_server=prefill)
    with deployed(app) as handle:
        (answer,) = asked(handle, "chat", ChatCompletionRequest(**CHAT))
        assert answer.usage.completion_tokens == 4
        assert handle.handoffs.remote().result()["remote"] == 1


# Ingresses
class Guarded(OpenAiIngress):
    """An ingress of a user's own."""

    async def chat(self, body, request):
        if request.headers.get("x-team") != "blue":
            raise OpenAIHTTPException(403, "blue only", type="Forbidden")
        body.max_tokens = 3
        return await super().chat(body, request)

    async def models(self):
        shown = await super().models()
        return ModelList(data=[card for card in shown.data if not card.id.startswith("hidden")])


def guarded(client: httpx.Client) -> None:
    assert client.post("/v1/chat/completions", json=CHAT).status_code == 403
    blue = {"x-team": "blue", "x-request-id": "one"}
    reply = client.post("/v1/chat/completions", json=CHAT, headers=blue)
    assert reply.status_code == 200, reply.text
    assert reply.json()["usage"]["completion_tokens"] == 3
    assert reply.headers.get_list("x-request-id") == ["one"]
    body = {**CHAT, "stream": True}
    with client.stream("POST", "/v1/chat/completions", json=body, headers=blue) as streamed:
        lines = [line for line in streamed.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert client.get("/v1/models").json()["data"][0]["id"] == "m"
    assert client.get("/v1/models/m").json()["id"] == "m"
    assert client.get("/v1/models/x").status_code == 404
    assert client.post("/v1/messages", json={}).status_code == 404  # no way around the check
    wrong = client.post("/v1/chat/completions", json={"model": "m"}, headers=blue)
    assert wrong.status_code == 400
    assert wrong.json()["error"]["param"] == "messages"


def test_an_ingress_of_ones_own_is_called(proxy: str) -> None:
    app = build_openai_app(
        {"llm_configs": [config()], "ingress_cls_config": {"ingress_cls": Guarded}}
    )
    with deployed(app, "/"), httpx.Client(base_url=proxy, timeout=60) as client:
        guarded(client)


def test_an_ingress_is_put_together_by_hand(proxy: str) -> None:
    one = config()
    server = serve.deployment(LLMServer).options(**LLMServer.get_deployment_options(one)).bind(one)
    options: Any = Guarded.get_deployment_options(llm_configs=[one])
    ingress = serve.deployment(make_fastapi_ingress(Guarded)).options(**options)
    app = ingress.bind(
        llm_deployments={"m": server}, model_cards={"m": to_model_metadata("m", one)}
    )
    with deployed(app, "/"), httpx.Client(base_url=proxy, timeout=60) as client:
        guarded(client)


class Counter:
    """Any class may become an ingress."""

    def __init__(self):
        self.count = 0

    async def increment(self):
        self.count += 1
        return {"count": self.count}


def test_routes_of_ones_own(proxy: str) -> None:
    cls = make_fastapi_ingress(
        Counter, endpoint_map={"increment": lambda app: app.post("/increment", status_code=201)}
    )
    with deployed(serve.deployment(cls).bind(), "/"):
        reply = httpx.post(f"{proxy}/increment", timeout=60)
        assert (reply.status_code, reply.json()) == (201, {"count": 1})


def test_a_request_has_one_id_behind_rays_proxy(proxy: str) -> None:
    with deployed(build_dev_openai_app({"llm_configs": [config()]}), "/"):
        for headers in ({}, {"x-request-id": "mine"}):
            for path in ("/v1/models", "/health", "/nowhere"):
                reply = httpx.get(proxy + path, headers=headers, timeout=60)
                ids = reply.headers.get_list("x-request-id")
                assert len(ids) == 1
                assert not headers or ids == ["mine"]


def test_control_routes_answer_as_rays(proxy: str) -> None:
    app = build_dev_openai_app({"llm_configs": [config()]})
    with deployed(app, "/"), httpx.Client(base_url=proxy, timeout=60) as client:
        for path in ("/sleep", "/wakeup", "/pause", "/resume", "/reset_prefix_cache"):
            body = {"model": "m", "options": {"level": 1} if path == "/sleep" else {}}
            assert client.post(path, json=body).status_code == 200
            sleeping = client.get("/is_sleeping", params={"model": "m"}).json()["is_sleeping"]
            assert sleeping is (path == "/sleep")
            paused = client.get("/is_paused", params={"model": "m"}).json()["is_paused"]
            assert paused is (path == "/pause")


def test_classes_of_rays_own_are_refused() -> None:
    class Foreign:
        pass

    Foreign.__module__ = "ray.llm._internal.serve.core.server.llm_server"
    with pytest.raises(ConfigError, match=r"penstock\.serve\.LLMServer"):
        build_llm_deployment(config(), deployment_cls=type("Mine", (Foreign,), {}))
    with pytest.raises(ConfigError, match=r"penstock\.serve\.ingress"):
        build_openai_app(
            {"llm_configs": [config()], "ingress_cls_config": {"ingress_cls": Foreign}}
        )
