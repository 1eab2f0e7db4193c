"""What is not about generating: models, health, metrics, keys, control, the API's description,
other tasks.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import struct
from typing import Any

import pytest

from penstock.errors import ConfigError, EngineDeadError
from penstock.serve.api.auth import load_keys
from penstock.serve.config.settings import Limits
from penstock.serve.models.handle import ModelState

CHAT = {"messages": [{"role": "user", "content": "hello"}]}


# Models
async def test_models_are_listed_without_being_called(served: Any, untouchable: Any) -> None:
    states = [
        ModelState("cold"),
        ModelState("failed", "no such file"),
        ModelState("loading"),
        ModelState("asleep"),
        ModelState("paused", running=2),
    ]
    site = served(*(untouchable(f"m{number}", state) for number, state in enumerate(states)))
    async with site.client() as client:
        cards = (await client.get("/v1/models")).json()["data"]
        assert [(card["id"], card["state"]) for card in cards] == [
            (f"m{number}", state.state) for number, state in enumerate(states)
        ]
        assert cards[1]["reason"] == "no such file"
        assert cards[0]["max_model_len"] == 32768
        assert (await client.get("/v1/models/")).json() == (await client.get("/v1/models")).json()
        one = (await client.get("/v1/models/m1")).json()
        assert one == cards[1]
        assert (await client.get("/health")).json() == {"status": "ok"}
        assert (await client.get("/openapi.json")).status_code == 200
        assert (
            'penstock_model_state{model_name="m1",state="failed"} 1.0'
            in (await client.get("/metrics")).text
        )


async def test_adapters_are_listed_and_found(client: Any) -> None:
    cards = (await client.get("/v1/models")).json()["data"]
    assert [(card["id"], card["parent"]) for card in cards] == [
        ("sim", None),
        ("sim:german", "sim"),
        ("sim:summary", "sim"),
    ]
    assert (await client.get("/v1/models/german")).json()["id"] == "sim:german"
    missing = await client.get("/v1/models/sim:germna")
    assert missing.status_code == 404
    assert "german" in missing.json()["error"]["message"]


async def test_ids_may_hold_slashes_and_colons(served: Any, untouchable: Any) -> None:
    async with served(untouchable("org/model:7b", ModelState("cold"))).client() as client:
        assert (await client.get("/v1/models/org/model:7b")).json()["id"] == "org/model:7b"


async def test_an_adapter_of_two_models_must_be_asked_for_in_full(
    served: Any, handle: Any, scripted: Any
) -> None:
    engines = [scripted(["x"]), scripted(["x"])]
    for engine in engines:
        await engine.start()
    site = served(*(handle(f"m{number}", engine, ["a"]) for number, engine in enumerate(engines)))
    async with site.client() as client:
        answer = await client.post("/v1/chat/completions", json={"model": "a", **CHAT})
        assert answer.status_code == 404
        assert "'m0:a', 'm1:a'" in answer.json()["error"]["message"]
        assert (
            await client.post("/v1/chat/completions", json={"model": "m1:a", **CHAT})
        ).status_code == 200
        # With several models, leaving the model out is a mistake.
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 400


async def test_an_adapter_that_is_not_listed_yet_is_left_to_its_server(
    served: Any, handle: Any, scripted: Any
) -> None:
    engine = scripted(["x"])
    await engine.start()
    site = served(handle("m", engine), lora_paths={"m": "/adapters"})
    engine.adapters["new"] = "/adapters/new"

    async def none() -> list[str]:
        return []

    site.handles["m"].adapters = none
    async with site.client() as client:
        assert (
            await client.post("/v1/chat/completions", json={"model": "m:new", **CHAT})
        ).status_code == 200
        unknown = await client.post("/v1/chat/completions", json={"model": "m:neww", **CHAT})
        assert unknown.status_code == 404
        asked = len(engine.prompts)
        engine.adapters["../new"] = "/new"  # even a server that would take such a name is not asked
        assert (
            await client.post("/v1/chat/completions", json={"model": "m:../new", **CHAT})
        ).status_code == 404
        assert len(engine.prompts) == asked


# Other tasks
async def test_embeddings_as_floats_and_as_base64(client: Any) -> None:
    ask = {"model": "sim", "input": ["a", "b"], "dimensions": 4}
    floats = (await client.post("/v1/embeddings", json=ask)).json()
    packed = (await client.post("/v1/embeddings", json={**ask, "encoding_format": "base64"})).json()
    for one, other in zip(floats["data"], packed["data"], strict=True):
        values = struct.unpack("<4f", base64.b64decode(other["embedding"]))
        assert values == pytest.approx(one["embedding"], rel=1e-6)


async def test_score_and_rerank(client: Any) -> None:
    score = await client.post(
        "/v1/score", json={"text_1": "red fish", "text_2": ["blue fish", "red fish", "cat"]}
    )
    assert [item["score"] for item in score.json()["data"]] == [0.5, 1.0, 0.0]
    pairs = await client.post("/v1/score", json={"text_1": ["a", "b"], "text_2": ["a", "c"]})
    assert [item["score"] for item in pairs.json()["data"]] == [1.0, 0.0]
    documents = ["blue fish", {"text": "red fish"}, "cat"]
    rerank = await client.post(
        "/v1/rerank", json={"query": "red fish", "documents": documents, "top_n": 2}
    )
    assert [(item["index"], item["document"]["text"]) for item in rerank.json()["results"]] == [
        (1, "red fish"),
        (0, "blue fish"),
    ]


async def test_classes_in_the_form_of_vllm(served: Any, handle: Any, scripted: Any) -> None:
    async with served(handle("m", scripted())).client() as client:
        answer = (
            await client.post("/classify", json={"model": "m", "input": ["abc", "abcdefg"]})
        ).json()
        assert answer["data"] == [
            {"index": 0, "label": "short", "probs": [0.25, 0.75], "num_classes": 2},
            {"index": 1, "label": "long", "probs": [0.125, 0.875], "num_classes": 2},
        ]
        assert (answer["object"], answer["model"]) == ("list", "m")
        assert answer["usage"] == {"prompt_tokens": 10, "total_tokens": 10}
        (one,) = (await client.post("/classify", json={"model": "m", "input": "abc"})).json()[
            "data"
        ]
        assert one == answer["data"][0]


async def test_tokens_there_and_back(client: Any) -> None:
    answer = (await client.post("/tokenize", json={"prompt": "Grüße"})).json()
    assert answer["count"] == len(answer["tokens"]) == 7
    assert answer["max_model_len"] == 32768
    assert (await client.post("/detokenize", json={"tokens": answer["tokens"]})).json() == {
        "prompt": "Grüße"
    }


async def test_transcriptions(served: Any, handle: Any, scripted: Any) -> None:
    async with served(handle("m", scripted())).client() as client:
        files = {"file": ("a.wav", b"RIFF1234")}
        answer = await client.post(
            "/v1/audio/transcriptions", files=files, data={"model": "m", "language": "de"}
        )
        assert answer.json() == {"text": "8 bytes in de"}
        text = await client.post(
            "/v1/audio/transcriptions", files=files, data={"response_format": "text"}
        )
        assert text.text == "8 bytes in None"


async def test_transcriptions_with_their_times(served: Any, handle: Any, scripted: Any) -> None:
    async with served(handle("m", scripted())).client() as client:

        async def ask(**data: str) -> Any:
            files = {"file": ("a.wav", b"RIFF1234")}
            return await client.post(
                "/v1/audio/transcriptions", files=files, data={"language": "de", **data}
            )

        assert (
            await ask(response_format="srt")
        ).text == "1\n00:00:00,000 --> 00:00:01,500\n8 bytes in de\n"
        assert (await ask(response_format="vtt")).text.startswith("WEBVTT\n\n00:00:00.000")
        verbose = (
            await ask(response_format="verbose_json", **{"timestamp_granularities[]": "segment"})
        ).json()
        assert (verbose["duration"], verbose["segments"][0]["end"]) == (1.5, 1.5)
        # The engine of this test knows no times for English.
        untimed = await ask(response_format="srt", language="en")
        assert (untimed.status_code, untimed.json()["error"]["param"]) == (400, "response_format")
        assert "timestamps" in untimed.text
        assert (await ask(response_format="xml")).status_code == 400
        for refused in (
            {"timestamp_granularities[]": "word"},
            {"response_format": "verbose_json", "timestamp_granularities[]": "letter"},
            {"response_format": "srt", "stream": "true"},
            {"temperature": "0.5"},
        ):
            assert (await ask(**refused)).status_code == 400
        assert (await ask(temperature="0")).status_code == 200


# Keys
@pytest.fixture
def keyed(ingress: Any, served: Any) -> Any:
    return served(
        *ingress.handles.values(),
        api_keys=frozenset({"k1", "k2"}),
        admin_keys=frozenset({"boss"}),
        dev=True,
    )


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def test_every_route_but_the_probes_wants_a_key(keyed: Any) -> None:
    from penstock.serve.api.routes import CONTROL_ENDPOINTS, ENDPOINTS

    async with keyed.client() as client:
        for endpoint in (*ENDPOINTS, *CONTROL_ENDPOINTS):
            path = endpoint.path.replace("{id:path}", "sim")
            answer = await client.request(endpoint.method, path)
            if path in ("/health", "/ping", "/ready"):
                assert answer.status_code == 200
                continue
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == "Bearer"
            assert (
                await client.request(endpoint.method, path, headers=bearer("k3"))
            ).status_code == 401
        assert (await client.get("/nowhere")).status_code == 401
        assert (await client.get("/v1/models", headers=bearer("k2"))).status_code == 200
        assert (await client.get("/v1/models", headers={"x-api-key": "k1"})).status_code == 200
        assert (await client.get("/v1/models", headers=bearer("boss"))).status_code == 200
        assert (
            await client.get(
                "/v1/models", headers={"authorization": "Bearer k\xff1".encode("latin-1")}
            )
        ).status_code == 401
        refused = await client.post("/v1/messages", json={})
        assert refused.json()["error"]["type"] == "authentication_error"


async def test_control_wants_an_admin_key(keyed: Any) -> None:
    async with keyed.client() as client:
        assert (await client.post("/sleep", json={}, headers=bearer("k1"))).status_code == 403
        assert (await client.post("/sleep", json={}, headers=bearer("boss"))).status_code == 200


async def test_without_an_admin_key_api_keys_open_no_control_route(
    ingress: Any, served: Any
) -> None:
    site = served(*ingress.handles.values(), api_keys=frozenset({"k1"}), dev=True)
    async with site.client() as client:
        assert (await client.post("/sleep", json={}, headers=bearer("k1"))).status_code == 403


def test_keys_come_from_a_file_and_the_environment(tmp_path: Any) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\none\n\n two \n")
    assert load_keys(str(file), "three, four,") == {"one", "two", "three", "four"}
    assert load_keys(None, "") == frozenset()
    assert load_keys(None, "", ["four,five"]) == {"four,five"}
    file.write_text("# none\n  # here either\n")
    for path in (file, tmp_path / "missing"):
        with pytest.raises(ConfigError):
            load_keys(str(path), "")


@pytest.mark.parametrize(("listed", "typed"), [(" , ", []), ("", [""]), ("k", [" "])])
def test_a_key_that_is_empty_opens_no_server(listed: str, typed: list[str]) -> None:
    with pytest.raises(ConfigError, match="empty"):
        load_keys(None, listed, typed)


@pytest.mark.parametrize("key", ["", "one # of Ada", "ü", "a\tb"])
def test_a_key_that_no_client_can_send_is_refused(key: str, tmp_path: Any) -> None:
    from penstock.serve.config.settings import HttpSettings

    for field in ("api_keys", "admin_keys"):
        with pytest.raises(ConfigError) as caught:
            HttpSettings(**{field: frozenset({"good", key})})  # type: ignore[arg-type]
        assert caught.value.field == field
        assert not key or key not in str(caught.value)
    (tmp_path / "keys").write_text(f"good\n{key or ','}\n", encoding="utf-8")
    if key:
        with pytest.raises(ConfigError):
            load_keys(str(tmp_path / "keys"), "")


async def test_the_log_says_which_known_key_a_request_has(
    keyed: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "penstock.access")
    async with keyed.client() as client:
        for headers in (bearer("k2"), {"x-api-key": "boss"}, bearer("k3"), {}):
            await client.get("/v1/models", headers=headers)
    marks = [record.fields.get("key") for record in caplog.records]  # type: ignore[attr-defined]
    known = [hashlib.sha256(key).hexdigest()[:8] for key in (b"k2", b"boss")]
    assert marks == [*known, None, None]


async def test_the_log_is_not_filled_by_probes(
    ingress: Any, served: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (model,) = ingress.handles.values()
    async with served(model).client() as client:
        caplog.set_level(logging.INFO, "penstock.access")
        for path in ("/health", "/metrics", "/health/no", "/v1/models"):
            await client.get(path)
        assert [one.getMessage() for one in caplog.records] == [
            "GET /health/no 404",
            "GET /v1/models 200",
        ]
        caplog.set_level(logging.DEBUG, "penstock.access")
        await client.get("/health")
        assert caplog.records[-1].getMessage() == "GET /health 200"


def test_settings_do_not_show_their_keys() -> None:
    from penstock.serve.config.settings import HttpSettings

    assert "secret" not in repr(HttpSettings(api_keys=frozenset({"secret"})))


# Control
async def test_control_routes_reach_their_model(ingress: Any, served: Any) -> None:
    (model,) = ingress.handles.values()
    async with served(model, dev=True).client() as client:
        answer = await client.post("/sleep", json={"model": "sim", "options": {"level": 2}})
        assert answer.json()["replicas"] == [{"replica": "0", "ok": True, "result": "sleep"}]
        await client.get("/is_sleeping", params={"model": "sim"})
        await client.post("/collective_rpc", json={"model": "sim", "options": {"method": "ping"}})
        assert model.calls == [
            ("sleep", {"level": 2}),
            ("is_sleeping", {}),
            ("collective_rpc", {"method": "ping"}),
        ]
        assert (await client.post("/sleep", json={"model": "sim:german"})).status_code == 400
        assert (await client.post("/sleep", json={"model": "simm"})).status_code == 404
        assert (await client.get("/sleep")).status_code == 405
    async with served(model).client() as client:
        assert (await client.post("/sleep", json={"model": "sim"})).status_code == 404


# Limits
async def test_beyond_the_inflight_limit_is_a_429(
    ingress: Any, served: Any, scripted: Any, handle: Any, until: Any
) -> None:
    import asyncio

    engine = scripted(["x"])
    await engine.start()
    engine.hold.clear()
    site = served(handle("m", engine), limits=Limits(max_inflight=1))
    async with site.client() as client:
        first = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT))
        await until(lambda: bool(site.ingress.live))
        second = await client.post("/v1/chat/completions", json=CHAT)
        assert second.status_code == 429
        assert second.headers["retry-after"] == "1"
        assert (await client.get("/v1/models")).status_code == 200
        engine.hold.set()
        assert (await first).status_code == 200


async def test_no_origin_may_call_unless_asked(ingress: Any, served: Any) -> None:
    headers = {"origin": "https://a.example", "access-control-request-method": "POST"}
    async with ingress.client() as client:
        answer = await client.get("/health", headers=headers)
        assert "access-control-allow-origin" not in answer.headers
    site = served(
        *ingress.handles.values(), cors_origins=("https://a.example",), api_keys=frozenset({"k"})
    )
    async with site.client() as client:
        assert (await client.options("/v1/models", headers=headers)).status_code == 200
        answer = await client.get("/v1/models", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        other = await client.get("/health", headers={"origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers


async def test_a_browser_asks_before_it_sends(ingress: Any, served: Any) -> None:
    asked = {
        "origin": "https://a.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-os",
        "access-control-request-private-network": "true",
    }
    site = served(*ingress.handles.values(), api_keys=frozenset({"k"}))
    async with site.client() as client:
        answer = await client.options("/v1/chat/completions", headers=asked)
        assert answer.status_code == 200
        allowed = {
            name: answer.headers[f"access-control-{name}"]
            for name in ("allow-origin", "allow-headers", "allow-private-network", "max-age")
        }
        assert allowed == {
            "allow-origin": "*",
            "allow-headers": asked["access-control-request-headers"],
            "allow-private-network": "true",
            "max-age": "86400",
        }
        answer = await client.get("/v1/models", headers={"origin": asked["origin"]})
        assert answer.status_code == 401
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        # What a browser would send by itself counts for nothing.
        assert "access-control-allow-credentials" not in answer.headers
        chat = {**CHAT, "model": "sim"}
        page = {"origin": asked["origin"]}
        sent = await client.post("/v1/chat/completions", json=chat, headers=page)
        assert sent.status_code == 401
        keyed = {**page, "authorization": "Bearer k"}
        sent = await client.post("/v1/chat/completions", json=chat, headers=keyed)
        assert sent.status_code == 200


@pytest.mark.parametrize("keys", [{}, {"admin_keys": frozenset({"a"})}])
async def test_where_users_need_no_key_no_foreign_page_may_change_anything(
    ingress: Any, served: Any, keys: dict[str, Any]
) -> None:
    site = served(*ingress.handles.values(), **keys)
    page = {"origin": "https://a.example"}
    asked = {**page, "access-control-request-method": "POST"}
    async with site.client() as client:
        preflight = await client.options("/v1/chat/completions", headers=asked)
        assert "access-control-allow-origin" not in preflight.headers
        chat = {**CHAT, "model": "sim"}
        answer = await client.post("/v1/chat/completions", json=chat, headers=page)
        assert answer.status_code == 403
        answer = await client.get("/v1/models", headers=page)
        assert "access-control-allow-origin" not in answer.headers


# Metrics
async def test_metrics_count_requests_and_tokens(ingress: Any) -> None:
    async with ingress.client() as client:
        await client.post("/v1/chat/completions", json={**CHAT, "model": "sim"})
        await client.post("/v1/chat/completions", json={**CHAT, "model": "sim", "stream": True})
        await client.post("/v1/chat/completions", json={**CHAT, "model": "who"})
        await client.post("/v1/chat/completions", json={**CHAT, "model": "sim", "temperature": 9})
        await client.get("/v1/models/sim")
        await client.get("/no/such/path")
        text = (await client.get("/metrics")).text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    one = '{model_name="sim"}'
    ok = '{endpoint="/v1/chat/completions",model_name="sim",status="200"}'
    assert lines[f"penstock_requests_total{ok}"] == "2.0"
    assert (
        lines['penstock_requests_total{endpoint="/v1/chat/completions",model_name="",status="404"}']
        == "1.0"
    )
    assert lines['penstock_requests_total{endpoint="other",model_name="",status="404"}'] == "1.0"
    assert lines[f"penstock_generation_tokens_total{one}"] == "32.0"
    for name, count in [
        ("e2e_request_latency_seconds", "2.0"),
        ("time_to_first_token_seconds", "1.0"),
        ("time_per_output_token_seconds", "1.0"),
        ("request_engine_time_seconds", "2.0"),
        ("request_framework_time_seconds", "2.0"),
    ]:
        assert lines[f"penstock_{name}_count{one}"] == count
    total = float(lines[f"penstock_e2e_request_latency_seconds_sum{one}"])
    parts = [
        float(lines[f"penstock_request_{part}_time_seconds_sum{one}"])
        for part in ("engine", "framework")
    ]
    assert sum(parts) == pytest.approx(total)
    assert min(parts) > 0


async def test_metrics_tell_loads_restarts_adapters_and_what_engines_count(
    served: Any, untouchable: Any
) -> None:
    busy = untouchable("m", ModelState("ready", loads=3, restarts=1, adapter_loads=7, adapters=2))
    stuck = untouchable("stuck", ModelState("ready"))

    async def dead() -> dict[str, float]:
        raise EngineDeadError("gone")

    stuck.engine_metrics = dead
    async with served(busy, stuck).client() as client:
        text = (await client.get("/metrics")).text
    for line in (
        'penstock_model_loads_total{model_name="m"} 3.0',
        'penstock_engine_restarts_total{model_name="m"} 1.0',
        'penstock_adapter_loads_total{model_name="m"} 7.0',
        'penstock_adapters_loaded{model_name="m"} 2.0',
        'penstock_engine_steps_total{model_name="m"} 0.0',
        'penstock_engine_requests_running{model_name="m"} 0.0',
    ):
        assert line in text.splitlines()
    assert "\nprocess_open_fds " in text
    assert 'penstock_engine_steps_total{model_name="stuck"}' not in text


async def test_time_in_the_queue_is_told_by_who_lets_in(served: Any, untouchable: Any) -> None:
    from penstock.observability import note_queue_time
    from penstock.types import Delta, Usage

    model = untouchable("m", ModelState("ready"))

    async def chat(request: Any) -> Any:
        note_queue_time(0.25)
        yield Delta(text="x", finish_reason="stop", usage=Usage(1, 1))

    model.chat = chat
    async with served(model).client() as client:
        for stream in (False, True):
            await client.post("/v1/chat/completions", json={**CHAT, "stream": stream})
        text = (await client.get("/metrics")).text
    assert 'penstock_request_queue_time_seconds_sum{model_name="m"} 0.5' in text


# Description
async def test_the_description_names_every_route_and_every_field(client: Any) -> None:
    from penstock.serve.api.routes import ENDPOINTS

    api = (await client.get("/openapi.json")).json()
    described = {
        (method.upper(), path) for path, methods in api["paths"].items() for method in methods
    }
    assert described == {
        (endpoint.method, endpoint.path.replace(":path", "")) for endpoint in ENDPOINTS
    }
    body = api["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"][
        "application/json"
    ]["schema"]
    form = api["components"]["schemas"][body["$ref"].rpartition("/")[2]]
    assert form["required"] == ["messages"]
    assert {"temperature", "tools", "stream_options"} <= set(form["properties"])
    references = json.dumps(api)
    for name in api["components"]["schemas"]:
        assert f"#/components/schemas/{name}" in references


async def test_the_docs_page_loads_nothing_from_elsewhere(client: Any) -> None:
    page = (await client.get("/docs")).text
    assert "openapi.json" in page
    assert "http://" not in page
    assert "https://" not in page
