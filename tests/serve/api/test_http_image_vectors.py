"""Vectors of images through the HTTP API, in the forms of several servers."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_asyncio

from penstock.openai.media.images import data_uri
from vision_models import bomb, image_embedding_model, image_file, image_part

pytestmark = pytest.mark.asyncio(loop_scope="module")
PHOTO = image_part(image_file(1))
OTHER = image_part(image_file(2))
AT = "messages[0].content[0]"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory, on_demand: Any) -> Any:
    model = image_embedding_model(tmp_path_factory.mktemp("model"))
    eyes = ("eyes", "openvino", str(model), {"deterministic": True})
    async with on_demand(eyes, ("texts", "simulated", "simulated", {})) as made:
        yield made


async def embed(client: Any, path: str = "/v1/embeddings", **body: Any) -> Any:
    return await client.post(path, json={"model": "eyes", **body})


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


async def test_models_say_what_they_read_before_they_are_loaded(client: Any) -> None:
    listed = (await client.get("/v1/models")).json()["data"]
    reads = {card["id"]: (card["input_modalities"], card["state"]) for card in listed}
    assert reads["eyes"] == (["text", "image"], "cold")


async def test_forms_of_several_servers_give_one_vector(client: Any) -> None:
    first = await embed(client, messages=[user(PHOTO)])
    assert first.status_code == 200
    wanted = first.json()
    assert len(wanted["data"]) == 1
    vector = wanted["data"][0]["embedding"]
    forms: tuple[dict[str, Any], ...] = (
        {"messages": [[user(PHOTO)]]},
        {"input": [user(PHOTO)]},
        {"input": [[user(PHOTO)]]},
        {"input": [{"content": [PHOTO]}]},
        {"input": [{"image": PHOTO["image_url"]["url"]}]},
        {"messages": [user(PHOTO)], "add_special_tokens": True, "add_generation_prompt": True},
    )
    for form in forms:
        answered = await embed(client, **form)
        assert answered.status_code == 200, answered.text
        assert answered.json()["data"][0]["embedding"] == vector
        assert answered.json()["usage"] == wanted["usage"]
    pooled = await embed(client, "/pooling", messages=[user(PHOTO)], task="embed")
    assert pooled.json()["data"][0]["data"] == vector


async def test_each_input_has_a_vector(client: Any) -> None:
    text = {"type": "text", "text": "a cat"}
    several = await embed(client, input=["a cat"])
    batch = await embed(client, messages=[[user(PHOTO)], [user(OTHER, text)], [user(text)]])
    vectors = [one["embedding"] for one in batch.json()["data"]]
    assert len({tuple(vector) for vector in vectors}) == 3
    assert vectors[2] == pytest.approx(several.json()["data"][0]["embedding"], abs=1e-5)
    mixed = await embed(client, input=["a cat", {"content": [OTHER, text]}], dimensions=8)
    assert [len(one["embedding"]) for one in mixed.json()["data"]] == [8, 8]


@pytest.mark.parametrize(
    ("body", "words", "param"),
    [
        ({"messages": [user(image_part(bomb()))]}, "1,600,000,000 pixels", "messages"),
        ({"messages": [user(image_part(b"none"))]}, "no image of a known form", "messages"),
        ({"messages": [[user(PHOTO)], [user(image_part(b"no"))]]}, "input[1]: ", "messages[1]"),
        ({"input": [{"image": data_uri(image_file(1)[:99])}]}, "cut off", "input"),
        ({"input": ["a", {"image": data_uri(image_file(1)[:99])}]}, "input[1]: ", "input[1]"),
        ({"input": [{"image": "/etc/passwd"}]}, "no data URI", "input"),
        ({"input": ["a", {"image": "http://127.0.0.1:1/a.png"}]}, "is not loaded", "input[1]"),
        (
            {"input": [{"image": data_uri(image_file(1)), "audio": "a"}]},
            "input[0].audio",
            "input[0].audio",
        ),
        (
            {"messages": [user({"type": "audio_url", "audio_url": {"url": "a"}})]},
            "no 'audio_url'",
            AT,
        ),
        (
            {"messages": [user(PHOTO)], "chat_template": "{{ 1 }}"},
            "no chat templates",
            "chat_template",
        ),
        (
            {"messages": [user(PHOTO)], "mm_processor_kwargs": {"a": 1}},
            "mm_processor_kwargs",
            "mm_processor_kwargs",
        ),
        (
            {"messages": [user(PHOTO)], "add_special_tokens": False},
            "add_special_tokens",
            "add_special_tokens",
        ),
        ({"messages": [user(PHOTO)], "model": "texts"}, "not of images", "messages[0]"),
        ({"input": [[5, 6]]}, "no token ids", "input"),
    ],
)
async def test_what_is_not_taken_is_a_400_that_says_why(
    client: Any, body: dict[str, Any], words: str, param: str
) -> None:
    answered = await embed(client, **body)
    assert answered.status_code == 400
    error = answered.json()["error"]
    assert words in error["message"]
    assert error["param"] == param
