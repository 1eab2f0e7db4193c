from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from penstock.openai.extensions import TokenizeBody
from penstock.openai.messages_api import CountBody, MessageBody
from penstock.openai.parameters.body import parse_body
from penstock.openai.requests import ChatBody
from penstock.openai.responses_api import ResponseBody

ASK = {"model": "sim", "messages": [{"role": "user", "content": "hello"}], "temperature": 0}


async def post(client: Any, path: str = "/v1/chat/completions", **body: Any) -> Any:
    return await client.post(path, json={**ASK, **body})


async def test_an_answer_has_openais_form(client: Any) -> None:
    answer = await post(client)
    body = answer.json()
    assert answer.status_code == 200
    assert body["object"] == "chat.completion"
    assert body["model"] == "sim"
    assert body["id"] == f"chatcmpl-{answer.headers['x-request-id']}"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert len(body["choices"][0]["message"]["content"]) == body["usage"]["completion_tokens"] == 16


async def test_a_stream_says_the_same_as_an_answer(client: Any, events: Any) -> None:
    whole = (await post(client)).json()["choices"][0]["message"]["content"]
    answer = await post(client, stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, last, done = events(answer.text)
    assert done == "[DONE]"
    parsed = [json.loads(chunk) for chunk in chunks]
    assert parsed[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in parsed) == whole
    assert [
        chunk["choices"][0]["finish_reason"]
        for chunk in parsed
        if chunk["choices"][0]["finish_reason"]
    ] == ["stop"]
    assert all(chunk["usage"] is None for chunk in parsed)
    usage = json.loads(last)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 16


async def test_without_include_usage_no_chunk_has_it(client: Any, events: Any) -> None:
    *chunks, done = events((await post(client, stream=True)).text)
    assert done == "[DONE]"
    assert chunks
    assert all("usage" not in json.loads(chunk) for chunk in chunks)


@pytest.mark.parametrize("stream", [False, True])
async def test_n_answers_come_under_their_index(client: Any, events: Any, stream: bool) -> None:
    answer = await post(client, n=3, temperature=1.5, seed=4, stream=stream)
    texts: dict[int, str] = {}
    if stream:
        for chunk in events(answer.text)[:-1]:
            choice = json.loads(chunk)["choices"][0]
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["delta"].get(
                "content", ""
            )
    else:
        texts = {
            choice["index"]: choice["message"]["content"] for choice in answer.json()["choices"]
        }
    again = (await post(client, n=3, temperature=1.5, seed=4)).json()
    assert texts == {choice["index"]: choice["message"]["content"] for choice in again["choices"]}
    assert len(set(texts.values())) == 3


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_come_one_a_token(client: Any, events: Any, stream: bool) -> None:
    answer = await post(client, logprobs=True, top_logprobs=2, stream=stream)
    if stream:
        chunks = [json.loads(chunk)["choices"][0] for chunk in events(answer.text)[:-1]]
        tokens = [
            token for chunk in chunks if chunk["logprobs"] for token in chunk["logprobs"]["content"]
        ]
    else:
        tokens = answer.json()["choices"][0]["logprobs"]["content"]
    assert len(tokens) == 16
    assert all(len(token["top_logprobs"]) == 2 and token["logprob"] < 0 for token in tokens)


async def test_structured_output_follows_its_schema(client: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"level": {"enum": ["low", "high"]}},
        "required": ["level"],
    }
    form = {"type": "json_schema", "json_schema": {"name": "ticket", "schema": schema}}
    answer = await post(client, response_format=form)
    assert json.loads(answer.json()["choices"][0]["message"]["content"])["level"] in ("low", "high")


async def test_an_adapter_answers_for_itself(client: Any) -> None:
    for name in ("sim:german", "german"):
        body = (await post(client, model=name)).json()
        assert body["choices"][0]["message"]["content"].startswith("german: ")
        assert body["model"] == name


async def test_several_prompts_are_answered_in_their_order(client: Any, events: Any) -> None:
    request = {"model": "sim", "prompt": ["one", "two"], "temperature": 0, "n": 2, "seed": 1}
    whole = (await client.post("/v1/completions", json=request)).json()
    texts = [choice["text"] for choice in whole["choices"]]
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    assert texts[0] == texts[1] != texts[2] == texts[3]
    assert whole["usage"]["prompt_tokens"] == len("one") + len("two")
    streamed = {**request, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, usage, _ = map(str, events((await client.post("/v1/completions", json=streamed)).text))
    joined = ["", "", "", ""]
    for chunk in chunks:
        choice = json.loads(chunk)["choices"][0]
        joined[choice["index"]] += choice["text"]
    assert joined == texts
    assert json.loads(usage)["usage"] == whole["usage"]


async def test_echo_and_token_ids(client: Any) -> None:
    request = {"model": "sim", "prompt": list(b"abc"), "echo": True, "max_tokens": 4, "logprobs": 1}
    choice = (await client.post("/v1/completions", json=request)).json()["choices"][0]
    assert choice["text"].startswith("abc")
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"]["tokens"][:3] == ["a", "b", "c"]
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3, 4, 5, 6]


async def test_a_failing_prompt_fails_the_request_with_its_own_status(client: Any) -> None:
    for stream in (False, True):
        request = {"model": "sim", "prompt": ["fine", ""], "stream": stream}
        answer = await client.post("/v1/completions", json=request)
        assert answer.status_code == 400
        assert "empty" in answer.json()["error"]["message"]


@pytest.mark.parametrize("messages", [1, 2001])
async def test_a_thread_looks_at_bodies_of_many_parts(
    client: Any, monkeypatch: pytest.MonkeyPatch, messages: int
) -> None:
    """The event loop serves others meanwhile."""
    threads: dict[str, int] = {}

    def noting(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **options: Any) -> Any:
            threads[name] = threading.get_ident()
            return work(*args, **options)

        return noted

    monkeypatch.setattr("penstock.serve.api.exchange.parse_body", noting("form", parse_body))
    for kind in (ChatBody, MessageBody, ResponseBody, CountBody, TokenizeBody):
        monkeypatch.setattr(kind, "request", noting("request", kind.request))
    ask = [{"role": "user", "content": "a"}] * messages
    for path, body in (
        ("chat/completions", {"messages": ask, "max_tokens": 1}),
        ("messages", {"messages": ask, "max_tokens": 1}),
        ("messages/count_tokens", {"messages": ask}),
        ("responses", {"input": ask, "max_output_tokens": 1}),
        ("../tokenize", {"messages": ask}),
    ):
        threads.clear()
        answer = await client.post(f"/v1/{path}", json={"model": "sim", **body})
        assert answer.status_code == 200, answer.text
        aside = {name: one != threading.get_ident() for name, one in threads.items()}
        assert aside == dict.fromkeys(("form", "request"), messages > 1), path
