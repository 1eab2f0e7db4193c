"""Images through the HTTP API, in the forms of its three dialects, to a model that sees."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest
import pytest_asyncio

from penstock.openai.media.images import data_uri
from vision_models import bomb, image_file, vision_model

pytestmark = pytest.mark.asyncio(loop_scope="module")
TEXT = {"type": "text", "text": "What is it?"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory, on_demand: Any) -> Any:
    model = vision_model(tmp_path_factory.mktemp("model"))
    memory = {"kv_cache_memory_bytes": 64 << 20}
    eyes = ("eyes", "openvino", str(model), {**memory, "deterministic": True})
    async with on_demand(eyes, ("demo", "openvino", "demo", memory)) as made:
        yield made


async def chat(client: Any, *urls: str, model: str = "eyes") -> Any:
    parts = [{"type": "image_url", "image_url": {"url": url, "detail": "low"}} for url in urls]
    messages = [{"role": "user", "content": [*parts, TEXT]}]
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 8}
    return await client.post("/v1/chat/completions", json=body)


async def test_models_say_what_they_read_before_they_are_loaded(client: Any) -> None:
    listed = (await client.get("/v1/models")).json()["data"]
    reads = {card["id"]: (card["input_modalities"], card["state"]) for card in listed}
    assert reads["eyes"][0] == ["text", "image"]
    assert reads["demo"] == (["text"], "cold")


async def test_three_dialects_give_one_answer(client: Any) -> None:
    file = image_file(1)
    first = (await chat(client, data_uri(file))).json()["choices"][0]["message"]["content"]
    assert first != (await chat(client, data_uri(image_file(2)))).json()["choices"][0]["message"]
    content: list[dict[str, Any]] = [
        {"type": "input_image", "image_url": data_uri(file), "detail": "auto"},
        {"type": "input_text", "text": TEXT["text"]},
    ]
    asked: dict[str, Any] = {
        "model": "eyes",
        "input": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_output_tokens": 16,
    }
    made = (await client.post("/v1/responses", json=asked)).json()
    assert made["output"][0]["content"][0]["text"].startswith(first)
    source = {"type": "base64", "media_type": "image/png", "data": b64encode(file).decode()}
    body = {
        "model": "eyes",
        "messages": [{"role": "user", "content": [{"type": "image", "source": source}, TEXT]}],
        "temperature": 0,
        "max_tokens": 8,
    }
    message = (await client.post("/v1/messages", json=body)).json()
    assert message["content"][0]["text"] == first
    assert message["usage"]["input_tokens"] > 16


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (data_uri(bomb()), "1,600,000,000 pixels"),
        ("data:image/png;base64,aGVsbG8=", "no image of a known form"),
        ("file:///etc/passwd", "no data URI"),
        ("https://example.com/cat.png", "image_urls"),
        ("", "needs an image_url with a url"),
    ],
)
async def test_a_bad_image_is_a_400(client: Any, url: str, words: str) -> None:
    refused = await chat(client, url)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["param"]


async def test_a_text_model_refuses_an_image(client: Any) -> None:
    refused = await chat(client, data_uri(image_file(1)), model="demo")
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["message"].endswith("reads texts, no 'image_url'")
    assert error["param"] == "messages[0].content[0]"
