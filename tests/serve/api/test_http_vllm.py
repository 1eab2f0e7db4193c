"""Endpoints that vLLM's server has beside OpenAI's, in vLLM's forms."""

from __future__ import annotations

import base64
import struct
from typing import Any

import msgspec
import pytest
from starlette.responses import PlainTextResponse

from penstock import __version__
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import ConfigError
from penstock.llm_config import LLMConfig
from penstock.serve.models.handle import ModelCard, ModelState
from penstock.serve.models.local import LocalModel
from penstock.types import Embeddings

CHAT = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.fixture
async def scripted_client(served: Any, handle: Any, scripted: Any) -> Any:
    one = handle("m", scripted())
    await one.start()
    async with served(one, dev=True).client() as client:
        yield client
    await one.stop()


# Tokens
async def test_tokens_of_a_text(client: Any) -> None:
    answer = (
        await client.post("/tokenize", json={"prompt": "ab", "return_token_strs": True})
    ).json()
    assert answer == {
        "tokens": [97, 98],
        "count": 2,
        "max_model_len": 32768,
        "token_strs": ["a", "b"],
    }
    assert (
        await client.post("/tokenize", json={"prompt": "ab", "add_special_tokens": False})
    ).json()["token_strs"] is None


async def test_tokens_of_a_conversation_are_those_that_the_model_is_fed(client: Any) -> None:
    for given in ({}, {"tools": [TOOL]}, {"chat_template_kwargs": {"enable_thinking": False}}):
        counted = (await client.post("/tokenize", json={"messages": CHAT, **given})).json()
        fed = await client.post(
            "/v1/chat/completions",
            json={
                "model": "sim",
                "messages": CHAT,
                **given,
                "max_tokens": 1,
                "tool_choice": "required",
            }
            if "tools" in given
            else {"model": "sim", "messages": CHAT, **given, "max_tokens": 1},
        )
        assert counted["count"] == fed.json()["usage"]["prompt_tokens"], given


async def test_a_conversation_without_a_turn_for_the_answer(scripted_client: Any) -> None:
    template = "{{ messages[0].content }}{% if add_generation_prompt %}>{% endif %}"
    body = {"messages": CHAT, "chat_template": template}
    refused = await scripted_client.post("/tokenize", json=body)
    assert refused.json()["error"]["param"] == "chat_template"


@pytest.mark.parametrize(
    "body", [{}, {"prompt": "a", "messages": CHAT}, {"prompt": None}, {"messages": "a"}]
)
async def test_tokens_of_one_thing(client: Any, body: dict[str, Any]) -> None:
    assert (await client.post("/tokenize", json=body)).status_code == 400


async def test_the_tokenizer(scripted_client: Any) -> None:
    info = (await scripted_client.get("/tokenizer_info")).json()
    assert info["chat_template"].startswith("{% for m in messages")
    assert (info["bos_token"], info["eos_token"], info["pad_token"]) == (None, None, None)
    assert (info["tokenizer_class"], info["model_max_length"]) == ("simulated", 32768)
    assert (await scripted_client.get("/tokenizer_info?model=other")).status_code == 404


async def test_anthropic_counts_tokens(client: Any) -> None:
    body = {"model": "sim", "messages": CHAT, "system": "Be kind."}
    counted = (await client.post("/v1/messages/count_tokens", json=body)).json()
    message = (await client.post("/v1/messages", json={**body, "max_tokens": 1})).json()
    assert counted == {"input_tokens": message["usage"]["input_tokens"]}


# Texts
async def test_pooling(scripted_client: Any) -> None:
    body = {"model": "m", "input": ["a", "b"]}
    vectors = (await scripted_client.post("/v1/embeddings", json=body)).json()["data"]
    answer = (await scripted_client.post("/pooling", json=body)).json()
    assert answer["id"].startswith("pool-")
    assert [one["data"] for one in answer["data"]] == [one["embedding"] for one in vectors]
    assert {one["object"] for one in answer["data"]} == {"pooling"}
    packed = (
        await scripted_client.post("/pooling", json={**body, "encoding_format": "base64"})
    ).json()["data"][1]["data"]
    width = len(vectors[1]["embedding"])
    assert struct.unpack(f"<{width}f", base64.b64decode(packed)) == pytest.approx(
        vectors[1]["embedding"]
    )
    classes = (await scripted_client.post("/pooling", json={**body, "task": "classify"})).json()
    assert classes["data"][0]["data"] == [0.5, 0.5]
    refused = await scripted_client.post("/pooling", json={**body, "task": "token_classify"})
    assert refused.json()["error"]["param"] == "task"


async def test_pooling_of_tokens(client: Any) -> None:
    body = {"model": "sim", "input": ["ab", "b"], "dimensions": 2, "task": "token_embed"}
    answer = (await client.post("/pooling", json=body)).json()
    first, second = (one["data"] for one in answer["data"])
    assert [len(vector) for vector in first] == [2, 2]
    assert second == first[1:]
    assert answer["usage"]["prompt_tokens"] == 3
    packed = (await client.post("/pooling", json={**body, "encoding_format": "base64"})).json()
    numbers = struct.unpack("<4f", base64.b64decode(packed["data"][0]["data"]))
    assert numbers == pytest.approx([*first[0], *first[1]])


async def test_pooling_of_sparse_vectors(client: Any) -> None:
    body = {"model": "sim", "input": "abba!", "task": "sparse_embed"}
    answer = (await client.post("/pooling", json=body)).json()
    assert answer["data"][0]["data"] == {"indices": [33, 97, 98], "values": [1.0, 2.0, 2.0]}
    refused = await client.post("/pooling", json={**body, "encoding_format": "base64"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "encoding_format")


@pytest.mark.parametrize("task", ["token_embed", "sparse_embed"])
async def test_pooling_by_an_engine_that_knows_of_dense_vectors_alone(
    client: Any, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(engine: Any, task: str, request: Any) -> Embeddings:
        return Embeddings([[1.0]])

    monkeypatch.setattr(SimulatedEngine, "answer", answer)
    body = {"model": "sim", "input": "a", "task": task}
    refused = await client.post("/pooling", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")
    assert "makes no" in refused.json()["error"]["message"]


async def test_pooling_by_a_model_of_sparse_vectors_alone(served: Any) -> None:
    engine = SimulatedEngine()
    engine.capabilities = msgspec.structs.replace(engine.capabilities, vectors=("sparse",))
    given = {"model_loading_config": {"model_id": "m"}, "llm_engine": "simulated"}
    one = LocalModel(LLMConfig.from_dict(given), engine=engine)
    await one.start()
    body = {"model": "m", "input": "aa"}
    async with served(one, dev=True).client() as client:
        answer = (await client.post("/pooling", json=body)).json()
        assert answer["data"][0]["data"] == {"indices": [97], "values": [2.0]}
        for path, task in (("/pooling", "embed"), ("/pooling", "token_embed")):
            refused = await client.post(path, json={**body, "task": task})
            assert refused.status_code == 400
            assert "makes sparse vectors" in refused.json()["error"]["message"]
        dense = await client.post("/v1/embeddings", json=body)
        assert (dense.status_code, dense.json()["error"]["param"]) == (400, "model")
    await one.stop()


@pytest.mark.parametrize(
    ("path", "same", "body"),
    [
        ("/score", "/v1/score", {"text_1": "a", "text_2": ["a", "b"]}),
        ("/rerank", "/v1/rerank", {"query": "a", "documents": ["a", "b"]}),
        ("/v2/rerank", "/v1/rerank", {"query": "a", "documents": ["a"], "return_documents": False}),
    ],
)
async def test_paths_without_a_version(
    client: Any, path: str, same: str, body: dict[str, Any]
) -> None:
    ours, theirs = [
        (await client.post(one, json={"model": "sim", **body})).json() for one in (path, same)
    ]
    for answer in (ours, theirs):
        answer.pop("id")
        answer.pop("created", None)
    assert ours == theirs


@pytest.mark.parametrize(
    ("left", "right"), [("queries", "documents"), ("queries", "items"), ("data_1", "data_2")]
)
async def test_a_score_takes_the_names_that_vllm_takes(client: Any, left: str, right: str) -> None:
    texts: tuple[str, list[str]] = ("a", ["a", "b"])
    bodies = [
        {"model": "sim", **dict(zip(names, texts, strict=True))}
        for names in ((left, right), ("text_1", "text_2"))
    ]
    ours, same = [(await client.post("/v1/score", json=body)).json() for body in bodies]
    assert ours["data"] == same["data"]
    assert len(ours["data"]) == 2


@pytest.mark.parametrize(
    ("names", "param", "message"),
    [
        ("text_1 text_2 documents", "documents", "documents does not go with text_1 and text_2"),
        ("queries documents items", "items", "items does not go with queries and documents"),
        ("text_1 documents", "text_2", "give text_1 and text_2: text_2 is missing"),
        ("data_1", "data_2", "give data_1 and data_2: data_2 is missing"),
        ("", "text_1", "give text_1 and text_2: text_1 is missing"),
    ],
)
async def test_a_score_needs_two_names_that_belong_together(
    client: Any, names: str, param: str, message: str
) -> None:
    asked = {"model": "sim", **dict.fromkeys(names.split(), "a")}
    error = (await client.post("/v1/score", json=asked)).json()["error"]
    assert (error["param"], error["message"]) == (param, message)


async def test_a_rerank_of_one_text_keeps_all_with_top_n_0(client: Any) -> None:
    body = {"model": "sim", "query": "a", "documents": "a", "top_n": 0}
    answer = (await client.post("/v1/rerank", json=body)).json()
    assert [one["document"] for one in answer["results"]] == [{"text": "a"}]


async def test_translations(scripted_client: Any) -> None:
    async def post(**fields: str) -> Any:
        return await scripted_client.post(
            "/v1/audio/translations", files={"file": b"123"}, data={"model": "m", **fields}
        )

    assert (await post(to_language="en")).json() == {"text": "3 bytes in None"}
    assert (await post(to_language="de")).json()["error"]["param"] == "to_language"
    assert (await post(stream="false")).json() == {"text": "3 bytes in None"}
    assert (await post(stream="yes")).json()["error"]["param"] == "stream"


async def test_no_name_means_the_only_model_that_generates(
    served: Any, handle: Any, scripted: Any
) -> None:
    words, chats = handle("words", scripted()), handle("chats", scripted())
    embeds = {"capabilities": {"tasks": ["embeddings"]}}
    words.card = lambda: ModelCard(id="words", metadata=embeds)
    async with served(words, chats).client() as client:
        assert (await client.post("/tokenize", json={"prompt": "a", "model": None})).json()["count"]
        assert (await client.get("/tokenizer_info")).status_code == 200
    async with served(chats, handle("more", scripted())).client() as client:
        assert (await client.get("/tokenizer_info")).json()["error"]["param"] == "model"


# Metrics
async def test_metrics_under_the_names_of_vllm(ingress: Any, served: Any) -> None:
    (model,) = ingress.handles.values()
    model.now = ModelState("ready", running=2, adapter_names=("german",), max_adapters=4)
    async with served(model, vllm_metrics=True).client() as client:
        asked = {"model": "sim", "messages": CHAT, "max_tokens": 3, "stream": True}
        await client.post("/v1/chat/completions", json=asked)
        page = (await client.get("/metrics")).text
    found = {line.rpartition(" ")[0]: line.rpartition(" ")[2] for line in page.splitlines()}
    label = '{model_name="sim"}'
    for name, value in (
        ("num_requests_running", "2.0"),
        ("num_requests_waiting", "0.0"),
        ("generation_tokens_total", "3.0"),
        ("time_to_first_token_seconds_count", "1.0"),
        ("e2e_request_latency_seconds_count", "1.0"),
        ("request_time_per_output_token_seconds_count", "1.0"),
        ("request_generation_tokens_sum", "3.0"),
    ):
        assert found[f"vllm:{name}{label}"] == value, name
    assert (
        found[f"vllm:prompt_tokens_total{label}"] == found[f"penstock_prompt_tokens_total{label}"]
    )
    assert any(
        line.startswith("vllm:lora_requests_info{")
        and 'max_lora="4"' in line
        and 'running_lora_adapters="german"' in line
        for line in found
    )
    async with served(model).client() as client:
        assert "vllm:" not in (await client.get("/metrics")).text


# SageMaker
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"messages": CHAT, "max_tokens": 1}, "chat.completion"),
        ({"prompt": "a", "max_tokens": 1}, "text_completion"),
        ({"input": "a"}, "list"),
        ({"text_1": "a", "text_2": "b"}, "list"),
        ({"messages": None, "prompt": "a", "max_tokens": 1, "input": None}, "text_completion"),
    ],
)
async def test_invocations_are_what_their_bodies_say(
    client: Any, body: dict[str, Any], kind: str
) -> None:
    assert (await client.post("/invocations", json=body)).json()["object"] == kind


async def test_other_invocations(client: Any, served: Any, handle: Any, scripted: Any) -> None:
    ranks = await client.post("/invocations", json={"query": "a", "documents": ["b"]})
    assert ranks.json()["results"][0]["index"] == 0
    bodies: tuple[Any, ...] = ({}, [], {"messages": CHAT, "nonsense": 1})
    for body in bodies:
        assert (await client.post("/invocations", json=body)).status_code == 400
    stream = await client.post("/invocations", json={"messages": CHAT, "stream": True})
    assert stream.text.endswith("data: [DONE]\n\n")


# The server
async def test_what_gateways_ask(client: Any) -> None:
    for method in ("GET", "POST"):
        assert (await client.request(method, "/ping")).status_code == 200
    assert (await client.get("/version")).json() == {"version": __version__}
    assert (await client.get("/load")).json() == {"server_load": 0}


async def test_control_as_vllm_takes_it(ingress: Any, served: Any) -> None:
    (model,) = ingress.handles.values()
    async with served(model, dev=True).client() as client:
        for path in ("/sleep?level=2&mode=abort", "/wake_up", "/pause?mode=keep", "/resume"):
            assert (await client.post(path)).status_code == 200
        assert (await client.get("/is_sleeping")).json()["is_sleeping"] is False
        assert model.calls == [
            ("sleep", {"level": 2, "mode": "abort"}),
            ("wakeup", {}),
            ("pause", {"mode": "keep"}),
            ("resume", {}),
            ("is_sleeping", {}),
        ]
        loaded = {"lora_name": "x", "lora_path": "/x"}
        answer = await client.post("/v1/load_lora_adapter", json=loaded)
        assert answer.text == "Success: LoRA adapter 'x' added successfully."
        flat = {**loaded, "is_3d_lora_weight": True}
        refused = await client.post("/v1/load_lora_adapter", json=flat)
        assert refused.json()["error"]["param"] == "is_3d_lora_weight"
        await client.post("/v1/unload_lora_adapter", json={"lora_name": "x"})
        assert model.calls[5:] == [
            ("load_lora_adapter", {**loaded, "load_inplace": False}),
            ("unload_lora_adapter", {"lora_name": "x"}),
        ]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/server_info"), ("POST", "/v1/load_lora_adapter"), ("POST", "/wake_up")],
)
async def test_control_is_for_operators(ingress: Any, served: Any, method: str, path: str) -> None:
    keyed = served(
        *ingress.handles.values(),
        dev=True,
        api_keys=frozenset({"user"}),
        admin_keys=frozenset({"boss"}),
    )
    async with keyed.client() as client:
        headers = {"authorization": "Bearer user"}
        assert (await client.request(method, path, headers=headers)).status_code == 403
    async with served(*ingress.handles.values()).client() as client:
        assert (await client.request(method, path)).status_code == 404


# Where it is
async def test_a_root_path(ingress: Any, served: Any) -> None:
    async with served(*ingress.handles.values(), root_path="/llm").client() as client:
        for path in ("/llm/v1/models", "/v1/models"):
            assert (await client.get(path)).status_code == 200
        assert (await client.get("/llm/openapi.json")).json()["servers"] == [{"url": "/llm"}]
        assert (await client.get("/llms/v1/models")).status_code == 404


async def test_the_engine_s_own_application(ingress: Any, served: Any) -> None:
    (model,) = ingress.handles.values()

    async def own(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse(scope["path"].removeprefix(scope["root_path"]))(
            scope, receive, send
        )

    model.engine_app = lambda: own
    keyed = {"api_keys": frozenset({"user"}), "admin_keys": frozenset({"boss"})}
    async with served(model, engine_app="/engine", **keyed).client() as client:
        for key, status in ((None, 401), ("user", 403), ("boss", 200)):
            headers = {"authorization": f"Bearer {key}"} if key else {}
            answer = await client.get("/engine/v1/models", headers=headers)
            assert answer.status_code == status
        assert answer.text == "/v1/models"
    async with served(model).client() as client:
        assert (await client.get("/engine/v1/models")).status_code == 404


def test_no_application_of_its_own(ingress: Any, served: Any) -> None:
    (model,) = ingress.handles.values()
    model.engine_app = model.engine.build_asgi_app
    with pytest.raises(ConfigError, match="the simulated engine has no application"):
        served(model, engine_app="/engine")
    with pytest.raises(ConfigError, match="slash"):
        served(model, engine_app="engine")
