"""Parameters whose effect shows in the answer's form: best_of, stop_reason, usage in each chunk."""

from __future__ import annotations

import json
from typing import Any

import pytest

CHAT: Any = {"model": "sim", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}


async def chat(client: Any, **fields: Any) -> Any:
    return await client.post("/v1/chat/completions", json={**CHAT, **fields})


def chunks_of(events: Any, answer: Any) -> list[Any]:
    return [json.loads(data) for data in events(answer.text)[:-1]]


async def test_best_of_gives_the_most_likely_answers(client: Any, ingress: Any) -> None:
    request = {"model": "sim", "prompt": "a", "best_of": 4, "n": 2, "seed": 1, "max_tokens": 5}
    body = (await client.post("/v1/completions", json=request)).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert all(choice["logprobs"] is None for choice in body["choices"])
    assert body["usage"]["completion_tokens"] == 4 * 5
    seen = (await client.post("/v1/completions", json={**request, "logprobs": 1})).json()
    assert all(choice["logprobs"]["tokens"] for choice in seen["choices"])
    for wrong in ({"best_of": 1}, {"stream": True}):
        refused = await client.post("/v1/completions", json={**request, **wrong})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "best_of")


async def test_stop_reason_is_the_string_that_ended_the_answer(client: Any, events: Any) -> None:
    whole = (await chat(client, max_tokens=50)).json()["choices"][0]
    assert whole["stop_reason"] is None
    stop = whole["message"]["content"][5:8]
    stopped = (await chat(client, stop=stop)).json()["choices"][0]
    assert (stopped["finish_reason"], stopped["stop_reason"]) == ("stop", stop)
    chunks = chunks_of(events, await chat(client, stop=stop, stream=True))
    assert chunks[-1]["choices"][0]["stop_reason"] == stop
    assert "stop_reason" not in chunks[1]["choices"][0]
    request = {"model": "sim", "prompt": "a", "stop": stop, "temperature": 0}
    plain = (await client.post("/v1/completions", json=request)).json()["choices"][0]
    assert "stop_reason" in plain


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_each_chunk_can_carry_the_usage_so_far(client: Any, events: Any, path: str) -> None:
    asked = {"include_usage": True, "continuous_usage_stats": True}
    request = {**CHAT, "stream": True, "stream_options": asked, "max_tokens": 6, "n": 2}
    if path.endswith("/v1/completions"):
        del request["messages"]
        request["prompt"] = ["ab", "cd"]
    chunks = chunks_of(events, await client.post(path, json=request))
    *parts, last = [chunk["usage"] for chunk in chunks if chunk["usage"] is not None]
    counts = [usage["completion_tokens"] for usage in parts]
    assert counts == sorted(counts)
    assert counts[0] >= 1
    assert parts[-1] == last
    only = {"stream_options": {"continuous_usage_stats": True}}  # vLLM asks for both
    chunks = chunks_of(events, await client.post(path, json={**request, **only}))
    assert all("usage" not in chunk for chunk in chunks)


async def test_a_limit_of_no_token_is_refused_by_the_name_that_was_sent(client: Any) -> None:
    for fields in ({"max_completion_tokens": 0}, {"max_completion_tokens": 0, "max_tokens": 5}):
        error = (await chat(client, **fields)).json()["error"]
        assert error["param"] == "max_completion_tokens"
        assert error["message"].startswith("max_completion_tokens must be")
    assert (await chat(client, max_tokens=0)).json()["error"]["param"] == "max_tokens"
    assert (await chat(client, max_tokens=0, max_completion_tokens=3)).status_code == 200
