"""Videos through the HTTP API, to a model that sees them."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_asyncio

from video_models import video_file, video_model, video_part

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory, on_demand: Any) -> Any:
    model = video_model(tmp_path_factory.mktemp("model"))
    options = {"kv_cache_memory_bytes": 64 << 20, "deterministic": True}
    async with on_demand(("eyes", "openvino", str(model), options)) as made:
        yield made


async def chat(client: Any, *parts: dict[str, Any]) -> Any:
    content = [*parts, {"type": "text", "text": "What happens?"}]
    body = {"model": "eyes", "temperature": 0, "max_tokens": 8}
    messages = [{"role": "user", "content": content}]
    return await client.post("/v1/chat/completions", json={**body, "messages": messages})


async def test_a_model_says_that_it_sees_videos_before_it_is_loaded(client: Any) -> None:
    (card,) = (await client.get("/v1/models")).json()["data"]
    assert (card["input_modalities"], card["state"]) == (["text", "image", "video"], "cold")


async def test_a_video_is_seen(client: Any) -> None:
    one, other = [(await chat(client, video_part(video_file(n)))).json() for n in (1, 2)]
    assert one["choices"][0]["message"] != other["choices"][0]["message"]
    assert one["usage"]["prompt_tokens"] == other["usage"]["prompt_tokens"]
    uri = video_part(video_file(1))["video_url"]["url"]
    as_qwen = (await chat(client, {"type": "video", "video": uri})).json()
    assert as_qwen["choices"] == one["choices"]


@pytest.mark.parametrize(
    ("part", "words", "param"),
    [
        (video_part(b"no video"), "no known form", "messages"),
        (video_part(video_file(1, 2, size=(4096, 4100))), "pixels", "messages"),
        (
            {"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}},
            "image_urls",
            "messages",
        ),
        (
            {"type": "video", "video": "data:video/mp4;base64,aGk=", "fps": 2},
            "fps is not supported",
            "messages[0].content[0].fps",
        ),
    ],
)
async def test_a_bad_video_is_a_400(client: Any, part: Any, words: str, param: str) -> None:
    refused = await chat(client, *[part] * 3)
    assert refused.status_code == 400
    assert words in refused.json()["error"]["message"]
    assert refused.json()["error"]["param"] == param
