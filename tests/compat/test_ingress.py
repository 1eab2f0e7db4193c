"""Ingresses in Ray's form, over models in this process."""

from __future__ import annotations

import pickle
from typing import Any

import httpx
import pytest

from penstock.errors import ConfigError, ModelNotFoundError, RequestError
from penstock.serve import LLMConfig, OpenAiIngress as OwnIngress
from penstock.serve.api.ingress import made_ingress
from penstock.serve.config.settings import HttpSettings, Limits
from penstock.serve.models.local import build_local_handles

pytest.importorskip("fastapi")

from penstock.serve.compat import asking, ingress as ingress_module
from penstock.serve.ingress import OpenAiIngress, make_fastapi_ingress
from penstock.serve.openai_api_models import ModelList, OpenAIHTTPException, to_model_metadata
from replica_cluster import config

pytestmark = pytest.mark.ray  # with its extra comes FastAPI
ASK = [{"role": "user", "content": "Where is my parcel?"}]
CHAT: dict[str, Any] = {"messages": ASK, "max_tokens": 4, "temperature": 0}


@pytest.fixture
async def client_of():
    """Makes a client of an ingress of this class."""
    models: Any = build_local_handles([config()])
    await models["m"].start()
    clients = []

    def make(cls, settings=None, **extra):
        given = {"ingress_cls": cls, "ingress_extra_kwargs": extra}
        app = made_ingress(given, models, [config()], settings=settings or HttpSettings())
        transport = httpx.ASGITransport(app)
        client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")
        clients.append(client)
        return client

    yield make
    for client in clients:
        await client.aclose()
    await models["m"].stop(0.0)


class Named(OpenAiIngress):
    def __init__(self, *args: Any, name: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class Guarded(OpenAiIngress):
    def __init__(self, *args: Any, team: str = "blue", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.team = team
        self.calls: list[str] = []

    async def chat(self, body, request):
        self.calls.append(body.messages[0]["content"])
        if request.headers.get("x-team") != self.team:
            raise OpenAIHTTPException(403, f"{self.team} only", type="Forbidden")
        body.max_tokens = 3
        return await super().chat(body, request)

    async def models(self):
        shown = await super().models()
        return ModelList(data=[*shown.data, *shown.data])


async def test_overridden_methods_are_called(client_of):
    client = client_of(Guarded, team="red")
    reply = await client.post("/v1/chat/completions", json=CHAT)
    assert (reply.status_code, reply.json()["error"]["message"]) == (403, "red only")
    red = {"x-team": "red", "x-request-id": "one"}
    reply = await client.post("/v1/chat/completions", json=CHAT, headers=red)
    assert reply.json()["usage"]["completion_tokens"] == 3
    assert reply.json()["id"].startswith("chatcmpl-one")
    assert reply.headers.get_list("x-request-id") == ["one"]
    body = {**CHAT, "stream": True}
    streamed = await client.post("/v1/chat/completions", json=body, headers=red)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert [one["id"] for one in (await client.get("/v1/models")).json()["data"]] == ["m", "m"]


async def test_the_other_routes_are_rays(client_of):
    client = client_of(Guarded)
    assert (await client.get("/v1/models/m")).json()["id"] == "m"
    assert (await client.get("/v1/models/x")).status_code == 404
    text = {"prompt": "hi", "add_special_tokens": False}
    assert (await client.post("/tokenize", json=text)).json()["tokens"] == [104, 105]
    assert (await client.post("/detokenize", json={"tokens": [104]})).json() == {"prompt": "h"}
    assert (await client.post("/v1/completions", json={"prompt": "a"})).status_code == 200
    embedded = await client.post("/v1/embeddings", json={"input": "a"})
    assert embedded.json()["object"] == "list"
    score = await client.post("/v1/score", json={"text_1": "a", "text_2": "b"})
    assert len(score.json()["data"]) == 1
    upload = {"file": ("a.wav", b"RIFF")}
    refused = await client.post("/v1/audio/transcriptions", files=upload)
    assert refused.status_code == 400
    assert "transcriptions" in refused.json()["error"]["message"]


class Listening(OpenAiIngress):
    async def transcriptions(self, body, request):
        if body.model != "m":
            raise OpenAIHTTPException(403, "only m")
        body.language, body.prompt = "de", ", ".join(body.timestamp_granularities)
        return await super().transcriptions(body, request)


async def test_a_recording_keeps_its_fields_on_their_way(client_of, monkeypatch):
    passed = []

    async def ask(app, scope, body):
        passed.append(body)
        return await asking.ask(app, scope, body)

    monkeypatch.setattr(ingress_module, "ask", ask)
    fields = {
        "model": "m",
        "response_format": "verbose_json",
        "timestamp_granularities[]": ["word", "segment"],
    }
    upload = {"file": ("a.wav", b"RIFF")}
    reply = await client_of(Listening).post("/v1/audio/transcriptions", files=upload, data=fields)
    assert "transcriptions" in reply.json()["error"]["message"]  # the engine has no ears
    (body,) = passed
    assert body.count(b'name="timestamp_granularities[]"') == 2
    assert b'name="language"\r\n\r\nde\r\n' in body
    assert b'name="prompt"\r\n\r\nword, segment\r\n' in body
    assert b"\r\nRIFF\r\n" in body


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"file": "text"}, "file"), ({}, "file"), ({"temperature": "hot"}, "temperature")],
)
async def test_a_wrong_form_names_its_field(client_of, fields, param):
    files = {} if param == "file" else {"file": ("a.wav", b"RIFF")}
    form = {name: (None, value) for name, value in {"model": "m", **fields}.items()}
    reply = await client_of(Listening).post("/v1/audio/transcriptions", files=form | files)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("cls", "extra", "match"),
    [
        (Guarded, {"taem": "red"}, "unknown key 'taem': Guarded does not take it.*'team'"),
        (OpenAiIngress, {"team": "red"}, "OpenAiIngress does not take it"),
        (OwnIngress, {"team": "red"}, "unknown key 'team'"),
        (Guarded, {"lora_paths": {}}, "unknown key 'lora_paths'"),
        (Named, {}, "'name' is missing, which Named needs"),
    ],
)
async def test_wrong_arguments_of_an_ingress_are_named(client_of, cls, extra, match):
    with pytest.raises(ConfigError, match=match):
        client_of(cls, **extra)


@pytest.mark.parametrize(
    "path", ["/v1/responses", "/v1/messages", "/invocations", "/rerank", "/sleep", "/metrics"]
)
async def test_there_is_no_way_around_a_check(client_of, path):
    client = client_of(Guarded)
    assert (await client.post(path, json={"model": "m"})).status_code in (404, 405)


async def test_mistakes_are_told_as_ever(client_of):
    client = client_of(Guarded)
    blue = {"x-team": "blue"}
    wrong = await client.post("/v1/chat/completions", json={"n": 1}, headers=blue)
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "messages")
    body = {**CHAT, "temperature": -1}
    wrong = await client.post("/v1/chat/completions", json=body, headers=blue)
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "temperature")


class Full(Exception):
    status_code = 507


async def test_an_error_of_ones_own_has_the_status_that_it_tells(client_of):
    class Own(OpenAiIngress):
        async def chat(self, body, request):
            raise Full("no room")

    reply = await client_of(Own).post("/v1/chat/completions", json=CHAT)
    assert (reply.status_code, reply.json()["error"]["message"]) == (507, "no room")


async def test_its_lifespan_is_fastapis():
    app = made_ingress(
        {"ingress_cls": Guarded},
        build_local_handles([config()]),
        [config()],
        settings=HttpSettings(),
    )
    given, said = iter(["lifespan.startup", "lifespan.shutdown"]), []

    async def receive():
        return {"type": next(given)}

    async def send(message):
        said.append(message["type"])

    await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_keys_and_limits_hold(client_of):
    limits = Limits(max_body_bytes=100)
    client = client_of(Guarded, HttpSettings(api_keys=frozenset({"k"}), limits=limits))
    assert (await client.get("/v1/models")).status_code == 401
    key = {"authorization": "Bearer k", "x-team": "blue"}
    assert (await client.get("/v1/models", headers=key)).status_code == 200
    long = {"messages": [{"role": "user", "content": "a" * 200}]}
    reply = await client.post("/v1/chat/completions", json=long, headers=key)
    assert reply.status_code == 413


async def test_the_control_routes_stay_where_there_are_any(client_of):
    client = client_of(Guarded, HttpSettings(dev=True))
    assert (await client.get("/is_sleeping")).json()["is_sleeping"] is False


async def test_a_class_that_overrides_nothing_has_every_route(client_of):
    class Same(OpenAiIngress):
        pass

    client = client_of(Same)
    assert (await client.get("/health")).status_code == 200
    assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_an_error_is_raised_to_the_method(client_of):
    class Catching(OpenAiIngress):
        async def chat(self, body, request):
            try:
                return await super().chat(body, request)
            except RequestError as error:
                raise OpenAIHTTPException(418, f"caught: {error}") from None

    reply = await client_of(Catching).post("/v1/chat/completions", json={**CHAT, "temperature": -1})
    assert reply.status_code == 418
    assert "caught" in reply.json()["error"]["message"]


async def test_routes_of_ones_own(client_of):
    class Greeting(OpenAiIngress):
        async def greet(self, name: str) -> dict[str, str]:
            return {"hello": name}

    cls = make_fastapi_ingress(Greeting, endpoint_map={"greet": lambda app: app.get("/hello")})
    client = client_of(cls)
    assert (await client.get("/hello", params={"name": "you"})).json() == {"hello": "you"}
    assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 404


class _Deploying:
    """What an ingress needs of a runtime that deploys it."""

    def __init__(self, models):
        self.known = models

    def deployable(self, cls):
        return type(cls.__name__, (cls,), {})

    async def models(self, deployments, configs):
        assert configs["m"].model_id == "m"
        assert deployments == {"m": "a handle"}
        return self.known

    def at_root(self, app):
        return app


async def test_an_ingress_is_deployed_by_hand(monkeypatch):
    models: Any = build_local_handles([config()])
    await models["m"].start()
    monkeypatch.setattr(ingress_module, "hosts", lambda: _Deploying(models))
    cls: Any = make_fastapi_ingress(Guarded)
    card = pickle.loads(pickle.dumps(to_model_metadata("m", config())))
    one = cls(llm_deployments={"m": "a handle"}, model_cards={"m": card})
    transport = httpx.ASGITransport(await one.__serve_build_asgi_app__())
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 403
        blue = {"x-team": "blue"}
        reply = await client.post("/v1/chat/completions", json=CHAT, headers=blue)
        assert reply.json()["usage"]["completion_tokens"] == 3
    await models["m"].stop(0.0)


async def test_any_class_may_have_routes(monkeypatch):
    class Counter:
        count = 0

        async def increment(self) -> dict[str, int]:
            self.count += 1
            return {"count": self.count}

    monkeypatch.setattr(ingress_module, "hosts", lambda: _Deploying({}))
    with pytest.raises(ConfigError, match="endpoint_map"):
        make_fastapi_ingress(Counter)
    routes = {"increment": lambda app: app.post("/increment", status_code=201)}
    cls: Any = make_fastapi_ingress(Counter, endpoint_map=routes)
    transport = httpx.ASGITransport(cls().__serve_build_asgi_app__())
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        reply = await client.post("/increment")
        assert (reply.status_code, reply.json()) == (201, {"count": 1})


async def test_metadata_of_adapters_come_from_ones_own_function():
    async def told(model_id, path):
        return {"told": (model_id, path)}

    source = {"model_id": "d", "model_source": "demo"}
    lora = {"dynamic_lora_loading_path": "./none"}
    demo = LLMConfig.from_dict({"model_loading_config": source, "lora_config": lora})
    models = build_local_handles([demo])
    card: Any = None
    ingress = OpenAiIngress(
        {"d": None}, {"d": card}, lora_paths={"d": "./none"}, _get_lora_model_metadata_func=told
    )
    ingress.application(models)
    base, adapter, *_ = (await ingress.models()).data
    assert "told" not in base.metadata
    assert adapter.metadata["told"] == (adapter.id, "./none")


class _Foreign:
    pass


class _WithChat(OwnIngress):
    async def chat(self, body: Any, request: Any) -> None:
        """Nothing calls it."""


@pytest.mark.parametrize(
    ("cls", "told"),
    [
        (_Foreign, r"penstock\.serve\.ingress"),
        (_WithChat, r"nothing calls _WithChat\.chat"),
        ("no.such:Class", "no module"),
        (3, "must be a class"),
    ],
)
def test_a_class_that_would_be_ignored_is_refused(cls, told):
    with pytest.raises(ConfigError, match=told):
        made_ingress({"ingress_cls": cls}, {}, [], settings=HttpSettings())


@pytest.mark.parametrize("name", ["_get_response", "_get_model_id"])
def test_private_methods_that_nothing_calls_are_refused(name):
    cls = type("Own", (OpenAiIngress,), {name: lambda self: None, "__module__": "mine"})
    with pytest.raises(ConfigError, match=name):
        cls({}, {})


class Failing(OpenAiIngress):
    async def chat(self, body, request):
        raise LookupError("secret of the method")


async def test_an_error_of_a_users_method_is_answered_in_openais_form(client_of, caplog):
    reply = await client_of(Failing).post("/v1/chat/completions", json=CHAT)
    assert reply.status_code == 500
    assert reply.json()["error"]["code"] == "internal_error"
    assert "secret" not in reply.text
    (record,) = [one for one in caplog.records if one.exc_info]
    assert isinstance(record.exc_info[1], LookupError)


async def test_a_users_handlers_of_errors_come_before_ours(client_of):
    import fastapi  # an extra

    app = fastapi.FastAPI()

    @app.exception_handler(LookupError)
    async def looked(request, error):
        return fastapi.Response("looked", 418)

    @app.exception_handler(fastapi.exceptions.RequestValidationError)
    async def wrong(request, error):
        return fastapi.Response("wrong", 422)

    client = client_of(make_fastapi_ingress(Failing, app=app))
    reply = await client.post("/v1/chat/completions", json=CHAT)
    assert (reply.status_code, reply.text) == (418, "looked")
    reply = await client.post("/v1/chat/completions", json={"model": "m"})
    assert (reply.status_code, reply.text) == (422, "wrong")


def test_a_route_needs_its_method():
    with pytest.raises(ConfigError, match="has no method 'nope'"):
        make_fastapi_ingress(OpenAiIngress, endpoint_map={"nope": lambda app: app.get("/nope")})


async def test_routes_in_the_body_of_a_class_are_methods(client_of):
    import fastapi  # an extra

    app: Any = fastapi.FastAPI()
    included: Any = fastapi.APIRouter()

    class Base(OpenAiIngress):
        team = "blue"

        @app.get("/hello", status_code=201, tags=["mine"])  # type: ignore[untyped-decorator]
        async def hello(self, name: str = "a"):
            return {"hello": name, "of": type(self).__name__, "team": self.team}

    class Routed(Base):
        def __init__(self, *args: Any, team: str, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.team = team

        @app.post("/hello")  # type: ignore[untyped-decorator]
        async def hello(self, given: dict[str, int]):  # another route of the name
            return {"sum": sum(given.values()), "team": self.team}

        @included.get("/teams/{number}")  # type: ignore[untyped-decorator]
        def number(self, number: int):
            return [self.team, number]

        @app.get("/plain")
        @staticmethod
        def plain():
            return "plain"

    @app.get("/function")
    def function(self):
        return self

    app.include_router(included, prefix="/all")
    client = client_of(make_fastapi_ingress(Routed, app=app), team="red")
    reply = await client.get("/hello", params={"name": "b"})
    assert reply.status_code == 201
    assert reply.json() == {"hello": "b", "of": "Routed", "team": "red"}
    reply = await client.post("/hello", json={"a": 1, "b": 2})
    assert reply.json() == {"sum": 3, "team": "red"}
    assert (await client.get("/all/teams/3")).json() == ["red", 3]
    assert (await client.get("/all/teams/x")).status_code == 400
    assert (await client.get("/plain")).json() == "plain"
    assert (await client.get("/function", params={"self": "x"})).json() == "x"
    assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
    assert app.openapi()["paths"]["/hello"]["get"]["tags"] == ["mine"]


async def test_what_routes_of_ones_own_call_by_rays_private_names():
    class Handle:
        def options(self, **asked: Any) -> dict[str, Any]:
            return asked

    ingress = OpenAiIngress({"m": Handle()}, {"m": to_model_metadata("m", config())})
    handle = ingress._get_configured_serve_handle
    assert handle("m") == {"stream": True}
    assert handle("m:a") == {"stream": True, "multiplexed_model_id": "m:a"}
    for unknown in ("x", "x:a"):
        with pytest.raises(ModelNotFoundError, match=f"no model '{unknown}'"):
            handle(unknown)
    models: Any = build_local_handles([config()])
    ingress.application(models)
    assert await ingress._get_model_id("m") == await ingress._get_model_id(None) == "m"
    with pytest.raises(ModelNotFoundError):
        await ingress._get_model_id("x")
