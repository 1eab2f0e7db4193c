"""What is asked of a scripted server."""

import pytest

from penstock.errors import (
    RequestError,
    UnsupportedError,
    UpstreamError,
)
from penstock.testing import answer, chat_request, deltas_of
from penstock.types import (
    ChatRequest,
    EmbeddingRequest,
    Sampling,
    StructuredOutput,
    TokenizeRequest,
    Usage,
)
from scripted_api import chunk, refusal, remote, sse

KEY = "sk-very-secret-1234"
SAID = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}


def whole(text="hi", sampling=None, **fields):
    return chat_request(text, sampling or Sampling(), stream=False, **fields)


async def test_a_plain_request_says_only_what_it_must(script):
    script.answers = [SAID]
    async with remote(script) as engine:
        await answer(engine, whole())
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 1.0}
    assert script.asked == [("/v1/chat/completions", body)]


async def test_everything_asked_is_sent(script):
    script.answers = [sse(chunk(reason="stop"))]
    tools = [{"type": "function", "function": {"name": "f"}}]
    sampling = Sampling(
        max_tokens=9,
        min_tokens=2,
        temperature=0.5,
        top_p=0.9,
        top_k=5,
        seed=3,
        stop=("x",),
        stop_token_ids=(7,),
        ignore_eos=True,
        logprobs=2,
    )
    request = chat_request(
        "hi",
        sampling,
        n=1,
        tools=tools,
        tool_choice="auto",
        chat_template_kwargs={"a": 1},
        request_id="r-1",
        priority=2,
    )
    async with remote(
        script, max_tokens_field="max_completion_tokens", extra_body={"service_tier": "flex"}
    ) as engine:
        await deltas_of(engine, request)
    assert script.asked[0][1] == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_tokens": 2,
        "seed": 3,
        "stop": ["x"],
        "stop_token_ids": [7],
        "ignore_eos": True,
        "max_completion_tokens": 9,
        "priority": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "top_logprobs": 2,
        "tools": tools,
        "tool_choice": "auto",
        "chat_template_kwargs": {"a": 1},
        "service_tier": "flex",
    }
    assert script.headers[-1]["X-Request-Id"] == "r-1"


async def test_servers_that_refuse_stream_options_get_none(script):
    script.answers = [sse(chunk(content="a"), chunk(reason="stop"))]
    async with remote(script, stream_usage=False) as engine:
        result = await answer(engine, chat_request("hi"))
    assert "stream_options" not in script.asked[0][1]
    assert (result.texts[0], result.usage) == ("a", Usage())


@pytest.mark.parametrize(
    ("constraint", "sent"),
    [
        (StructuredOutput("json_object"), {"response_format": {"type": "json_object"}}),
        (StructuredOutput("regex", "a+"), {"structured_outputs": {"regex": "a+"}}),
        (
            StructuredOutput("json_schema", '{"type": "object"}'),
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
                }
            },
        ),
    ],
)
async def test_constraints_are_sent_in_their_form(script, constraint, sent):
    script.answers = [SAID]
    async with remote(script, structured=["json_schema", "json_object", "regex"]) as engine:
        await answer(engine, whole(sampling=Sampling(structured=constraint)))
    assert sent.items() <= script.asked[0][1].items()


async def test_a_constraint_that_the_server_may_not_know_is_refused(script):
    async with remote(script) as engine:
        with pytest.raises(UnsupportedError, match="remote engine does not support regex"):
            await answer(
                engine, whole(sampling=Sampling(structured=StructuredOutput("regex", "a")))
            )
    assert script.asked == []


async def test_keys_come_from_the_environment_and_go_nowhere_else(script, monkeypatch, caplog):
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setenv("MY_ORG", "org-1")
    script.answers = [refusal(401, f"Incorrect API key provided: {KEY}")]
    async with remote(script, api_key_env="MY_KEY", headers={"X-Org": "${MY_ORG}"}) as engine:
        with pytest.raises(UpstreamError, match=r"Incorrect API key provided: \*\*\*") as caught:
            await answer(engine, whole())
        assert (
            KEY not in repr(engine.options) + repr(vars(engine)) + caught.value.body + caplog.text
        )
    assert script.headers[-1]["Authorization"] == f"Bearer {KEY}"
    assert script.headers[-1]["X-Org"] == "org-1"


async def test_no_key_is_sent_unless_it_is_named(script, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    script.answers = [SAID]
    async with remote(script) as engine:
        await answer(engine, whole())
    assert "Authorization" not in script.headers[-1]


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({}, {}),
        ({"add_generation_prompt": False}, {"add_generation_prompt": False}),
        (
            {"add_generation_prompt": False, "continue_final_message": True},
            {"add_generation_prompt": False, "continue_final_message": True},
        ),
    ],
)
async def test_tokens_are_asked_of_the_prompt_that_a_chat_would_have(script, given, sent):
    script.answers = [{"tokens": [1, 2], "count": 2}]
    chat = chat_request("hi", **given)
    async with remote(script) as engine:
        await engine.answer("tokens", TokenizeRequest("", chat))
    ((_, body),) = script.asked
    ends = ("add_generation_prompt", "continue_final_message")
    assert {name: value for name, value in body.items() if name in ends} == sent


@pytest.mark.parametrize("value", ["\ud800", object(), 2**70 * 1j])
@pytest.mark.parametrize("stream", [False, True])
async def test_what_cannot_be_sent_is_refused_here(script, value, stream):
    async with remote(script) as engine:
        message = {"role": "user", "content": value}
        with pytest.raises(RequestError, match="a value that cannot be sent"):
            await answer(engine, ChatRequest([message], stream=stream))
        with pytest.raises(RequestError, match="cannot be sent|must be a text"):
            await engine.embeddings(EmbeddingRequest([value]))
    assert not script.asked


async def test_no_tokens_are_an_answer_too(script):
    script.answers = [{"tokens": [], "count": 0}]
    async with remote(script, tokens_per_minute=10**9) as engine:
        assert await engine.tokenize("") == []
