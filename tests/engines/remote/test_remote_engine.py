"""What is asked of a scripted server, and how its answers are read."""

import asyncio
import sys

import pytest
from aiohttp import web

from penstock.engines.base import engine_class
from penstock.engines.remote import RemoteEngine
from penstock.errors import (
    ConfigError,
    EngineDeadError,
    EngineStartError,
    MissingExtraError,
    ModelNotFoundError,
    RequestError,
    UnsupportedError,
    UpstreamError,
)
from penstock.testing import answer, chat_request, deltas_of
from penstock.types import (
    ClassifyRequest,
    CompletionRequest,
    EmbeddingRequest,
    RerankRequest,
    Sampling,
    StructuredOutput,
    TokenLogprob,
    TranscriptionRequest,
    TranscriptionSegment,
    Usage,
)
from scripted_api import USAGE, chunk, refusal, remote, sse

KEY = "sk-very-secret-1234"
SAID = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}


def whole(text="hi", sampling=None, **fields):
    return chat_request(text, sampling or Sampling(), stream=False, **fields)


# Requests
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
    async with remote(script, max_tokens_field="max_completion_tokens", extra_body={"service_tier": "flex"}) as engine:
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
            await answer(engine, whole(sampling=Sampling(structured=StructuredOutput("regex", "a"))))
    assert script.asked == []


async def test_keys_come_from_the_environment_and_go_nowhere_else(script, monkeypatch, caplog):
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setenv("MY_ORG", "org-1")
    script.answers = [refusal(401, f"Incorrect API key provided: {KEY}")]
    async with remote(script, api_key_env="MY_KEY", headers={"X-Org": "${MY_ORG}"}) as engine:
        with pytest.raises(UpstreamError, match=r"Incorrect API key provided: \*\*\*") as caught:
            await answer(engine, whole())
        assert KEY not in repr(engine.options) + repr(vars(engine)) + caught.value.body + caplog.text
    assert script.headers[-1]["Authorization"] == f"Bearer {KEY}"
    assert script.headers[-1]["X-Org"] == "org-1"


async def test_no_key_is_sent_unless_it_is_named(script, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    script.answers = [SAID]
    async with remote(script) as engine:
        await answer(engine, whole())
    assert "Authorization" not in script.headers[-1]


# Answers
async def test_chunks_become_deltas(script):
    script.answers = [
        sse(chunk(role="assistant", content=""), chunk(content="y"), chunk(content="es", reason="stop"), USAGE)
    ]
    async with remote(script) as engine:
        deltas = await deltas_of(engine, chat_request("hi"))
    assert "".join(delta.text for delta in deltas) == "yes"
    assert [delta.finish_reason for delta in deltas][-1] == "stop"
    assert deltas[-1].usage == Usage(5, 2)
    assert all(delta.usage is None and delta.finish_reason is None for delta in deltas[:-1])


async def test_a_connection_serves_one_request_after_the_other(script):
    connections = set()

    async def answered(request):
        connections.add(request.transport)
        body = await request.json()
        if body.get("stream"):
            return await sse(chunk(content="yes"), chunk(reason="stop"))(request)
        return web.json_response(SAID)

    script.answers = [answered]
    async with remote(script) as engine:
        for request in [chat_request("hi"), whole()] * 3:
            assert (await answer(engine, request)).texts[0] == "yes"
    assert len(connections) == 1


async def test_usage_in_the_last_chunk_is_read_too(script):
    """As llama.cpp's server sends it."""
    script.answers = [sse(chunk(content="yes"), {**chunk(reason="stop"), "usage": USAGE["usage"]})]
    async with remote(script) as engine:
        assert (await answer(engine, chat_request("hi"))).usage == Usage(5, 2)


async def test_several_answers_keep_their_index_and_share_the_usage(script):
    events = [chunk(0, content="a"), chunk(1, content="b"), chunk(1, reason="stop"), chunk(0, reason="length"), USAGE]
    whole_answer = {
        "choices": [
            {"index": 1, "message": {"content": "b"}, "finish_reason": "stop"},
            {"index": 0, "message": {"content": "a"}, "finish_reason": "length"},
        ],
        "usage": USAGE["usage"],
    }
    script.answers = [sse(*events), whole_answer]
    async with remote(script) as engine:
        for request in (chat_request("hi", n=2), whole(n=2)):
            result = await answer(engine, request)
            assert result.texts == {0: "a", 1: "b"}
            assert result.reasons == {0: "length", 1: "stop"}
            assert result.usage == Usage(5, 2)


async def test_tool_calls_come_in_parts_or_whole(script):
    def call(index, arguments, **first):
        return {"index": index, **first, "function": {"arguments": arguments, **({"name": "f"} if first else {})}}

    streamed = [
        chunk(tool_calls=[call(0, "", id="c1", type="function")]),
        chunk(tool_calls=[call(0, '{"a":')]),
        chunk(tool_calls=[call(0, "1}")]),
        chunk(tool_calls=[call(1, "{}", id="c2", type="function")]),
        chunk(reason="tool_calls"),
    ]
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"id": "c2", "type": "function", "function": {"name": "f", "arguments": "{}"}},
    ]
    message = {"content": None, "tool_calls": calls}
    script.answers = [sse(*streamed), {"choices": [{"message": message, "finish_reason": "tool_calls"}]}]
    async with remote(script) as engine:
        for request in (chat_request("hi"), whole()):
            result = await answer(engine, request)
            made = [(call.id, call.name, call.arguments) for call in result.tool_calls[0]]
            assert made == [("c1", "f", '{"a":1}'), ("c2", "f", "{}")]
            assert result.reasons[0] == "tool_calls"
            assert result.texts[0] == ""


async def test_reasoning_is_told_from_the_answer(script):
    streamed = [chunk(reasoning="let "), chunk(reasoning_content="me see"), chunk(content="yes"), chunk(reason="stop")]
    said = {"choices": [{"message": {"content": "yes", "reasoning": "let me see"}, "finish_reason": "stop"}]}
    script.answers = [sse(*streamed), said]
    async with remote(script) as engine:
        for request in (chat_request("hi"), whole()):
            result = await answer(engine, request)
            assert (result.texts[0], result.reasoning[0]) == ("yes", "let me see")


async def test_what_vllm_knows_beyond_openai(script):
    script.answers = [
        {"choices": [{"text": "b", "finish_reason": "stop"}], "kv_transfer_params": {"remote_port": 7}},
        {"data": [{"index": 0, "label": "good", "probs": [0.1, 0.9]}, {"index": 1, "probs": [0.8, 0.2]}]},
    ]
    request = CompletionRequest(
        "a", Sampling(), stream=False, special_tokens=False, kv_transfer_params={"do_remote_decode": True}
    )
    async with remote(script) as engine:
        (delta,) = await deltas_of(engine, request)
        assert delta.kv_transfer_params == {"remote_port": 7}
        classes = await engine.classify(ClassifyRequest(["x", "y"]))
        assert [(one.label, one.probabilities) for one in classes.items] == [("good", [0.1, 0.9]), ("0", [0.8, 0.2])]
    sent = script.asked[0][1]
    assert sent["add_special_tokens"] is False
    assert sent["kv_transfer_params"] == {"do_remote_decode": True}
    assert script.asked[1] == ("/classify", {"model": "m", "input": ["x", "y"]})


async def test_logprobs_of_chats_and_completions(script):
    token = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [{"token": "a", "logprob": -0.5}]}
    chat = {"message": {"content": "a"}, "logprobs": {"content": [token]}, "finish_reason": "stop"}
    plain = {"tokens": ["a", "b"], "token_logprobs": [None, -0.5], "top_logprobs": [None, {"b": -0.5}]}
    script.answers = [{"choices": [chat]}, {"choices": [{"text": "ab", "logprobs": plain, "finish_reason": "stop"}]}]
    async with remote(script) as engine:
        result = await answer(engine, whole(sampling=Sampling(logprobs=1)))
        assert result.logprobs[0] == [TokenLogprob("a", -0.5, (("a", -0.5),))]
        result = await answer(engine, CompletionRequest("x", Sampling(logprobs=1), stream=False))
        assert result.logprobs[0] == [TokenLogprob("a", 0.0), TokenLogprob("b", -0.5, (("b", -0.5),))]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": [{"type": "text", "text": "a"}, {"type": "other"}, {"type": "text", "text": "b"}]}, "ab"),
        ({"content": None, "refusal": "I will not"}, "I will not"),
        ({"content": None}, ""),
    ],
)
async def test_forms_of_content(script, message, text):
    script.answers = [{"choices": [{"message": message, "finish_reason": "eos_token"}]}]
    async with remote(script) as engine:
        result = await answer(engine, whole())
    assert (result.texts[0], result.reasons[0]) == (text, "stop")


async def test_the_other_tasks(script):
    script.answers = [
        {"data": [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]}], "usage": {"prompt_tokens": 3}},
        {"results": [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.1}]},
        {"data": [{"index": 0, "score": 0.3}, {"index": 1, "score": 0.4}]},
        {"text": " hello "},
        {"tokens": [1, 2], "count": 2},
        {"prompt": "ab"},
    ]
    async with remote(script) as engine:
        embedded = await engine.embeddings(EmbeddingRequest(["a", "b"]))
        assert (embedded.vectors, embedded.usage.prompt_tokens) == ([[1.0], [2.0]], 3)
        request = RerankRequest("q", ["a", "b"])
        assert (await engine.rerank(request)).scores == [0.1, 0.9]
        assert (await engine.score(request)).scores == [0.3, 0.4]
        spoken = TranscriptionRequest(b"RIFF", language="de", request_id="r")
        assert (await engine.transcriptions(spoken)).text == "hello"
        assert await engine.tokenize("ab") == [1, 2]
        assert await engine.detokenize([1, 2]) == "ab"
    paths = [path for path, _ in script.asked]
    assert paths == [
        *("/v1/embeddings", "/v1/rerank", "/v1/score", "/v1/audio/transcriptions", "/tokenize", "/detokenize")
    ]
    assert script.asked[3][1] == {"model": "m", "language": "de", "file": b"RIFF"}


async def test_an_answer_that_lacks_a_vector_is_an_error(script):
    script.answers = [{"data": [{"index": 0, "embedding": [1.0]}]}]
    async with remote(script) as engine:
        with pytest.raises(UpstreamError, match="1 vectors to 2 texts"):
            await engine.embeddings(EmbeddingRequest(["a", "b"]))


async def test_a_transcription_with_times(script):
    segments = [{"id": 0, "start": 0.0, "end": 1.5, "text": " hello", "tokens": [1]}]
    script.answers = [{"text": "hello", "language": "english", "duration": "1.5", "segments": segments}]
    async with remote(script) as engine:
        said = await engine.transcriptions(TranscriptionRequest(b"RIFF", timestamps=True))
    assert said.segments == (TranscriptionSegment(0.0, 1.5, " hello"),)
    assert (said.language, said.duration) == ("english", 1.5)
    assert script.asked[0][1]["response_format"] == "verbose_json"


async def test_one_tool_call_at_a_time_and_the_stop_string_that_ended(script):
    tools = [{"type": "function", "function": {"name": "f"}}]
    script.answers = [{"choices": [{**SAID["choices"][0], "stop_reason": "END"}]}]
    async with remote(script) as engine:
        result = await answer(engine, whole(tools=tools, parallel_tool_calls=False))
    assert script.asked[0][1]["parallel_tool_calls"] is False
    assert result.stops == {0: "END"}


async def test_a_transcription_is_sent_whole_again_after_a_failure(script):
    script.answers = [refusal(500), {"text": "ok"}]
    async with remote(script) as engine:
        assert (await engine.transcriptions(TranscriptionRequest(b"RIFF"))).text == "ok"
    assert len(script.asked) == 2


async def test_tokens_a_minute_count_what_was_used(script):
    script.answers = [{**SAID, "usage": USAGE["usage"]}, sse(chunk(content="a"), chunk(reason="stop"), USAGE)]
    async with remote(script, tokens_per_minute=10**9) as engine:
        limiter = engine._upstreams.members[0].limiter
        charged: list[float] = []
        limiter.charge = charged.append
        for request in (whole(sampling=Sampling(max_tokens=100)), chat_request("hi", Sampling(max_tokens=100))):
            await answer(engine, request)
    assert len(charged) == 2
    assert all(-150 < amount < -93 for amount in charged)  # 7 used, a body and 100 tokens had been estimated


# Chunks that are handed on
HEAD = b'{"id":"x","object":"chat.completion.chunk","created":1,"model":"m","choices":['


def piece(text, reason=b"null", rest=b"]}"):
    return b'{"index":0,"delta":{"content":"%b"},"finish_reason":%b}%b' % (text, reason, rest)


def forwarded(deltas):
    return [chunk for delta in deltas for chunk in delta.chunks]


async def test_chunks_are_handed_on_unread_where_the_caller_takes_them(script):
    role = b'{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}'
    plain = [piece(b"a"), piece(b'\\"finish_reason\\":\\"stop'), piece(b"b", rest=b'],"extra":1}')]
    last = piece(b"c", b'"stop"')
    script.answers = [sse(*[HEAD + one for one in (role, *plain, last)], USAGE)]
    async with remote(script) as engine:
        deltas = await deltas_of(engine, chat_request("hi", forward_chunks=True))
    assert forwarded(deltas) == plain
    assert (deltas[-1].text, deltas[-1].finish_reason, deltas[-1].usage) == ("c", "stop", Usage(5, 2))
    assert all(not delta.text for delta in deltas[:-1])


@pytest.mark.parametrize(
    "events",
    [
        [piece(b"a").join([HEAD, b""]), b'{"created":2,' + HEAD[1:] + piece(b"b")],  # another head
        [b'{"choices":[]}', HEAD + b'{"index":0,"delta":{"content":"ab"}}]}'],  # no reason at all
        [HEAD + piece(b"a"), HEAD.replace(b'"choices"', b'"choices" ') + piece(b"b")],
    ],
)
async def test_chunks_of_another_form_are_read(script, events):
    script.answers = [sse(*events, HEAD + piece(b"", b'"stop"'))]
    async with remote(script) as engine:
        deltas = await deltas_of(engine, chat_request("hi", forward_chunks=True))
    chunks = b"".join(forwarded(deltas))
    read = "".join(delta.text for delta in deltas)
    assert chunks.count(b'"content":"a"') + read.count("a") == 1
    assert read.endswith("b")


@pytest.mark.parametrize("fields", [{"n": 2}, {}], ids=["several answers", "not asked for"])
async def test_chunks_are_read_where_somebody_needs_to_know(script, fields):
    end = [chunk(index, reason="stop") for index in range(fields.get("n", 1))]
    script.answers = [sse(HEAD + piece(b"a"), *end)]
    async with remote(script) as engine:
        deltas = await deltas_of(engine, chat_request("hi", forward_chunks=bool(fields), **fields))
    assert not forwarded(deltas)
    assert "".join(delta.text for delta in deltas) == "a"


async def test_a_stream_that_breaks_after_a_chunk_handed_on_is_not_tried_again(script):
    script.answers = [sse(HEAD + piece(b"a"), end="cut")]
    async with remote(script) as engine:
        stream = engine.chat(chat_request("hi", forward_chunks=True))
        assert (await anext(stream)).chunks == (piece(b"a"),)
        with pytest.raises(UpstreamError):
            await anext(stream)
    assert len(script.asked) == 1


# Discovery
async def test_the_only_model_is_found(script):
    script.models = {"data": [{"id": "the-one", "owned_by": "vllm", "max_model_len": 512}]}
    script.answers = [SAID]
    async with remote(script, model="auto") as engine:
        await answer(engine, whole())
        assert engine.capabilities.context_length == 512
        assert "regex" in engine.capabilities.structured
    assert script.asked[0][1]["model"] == "the-one"


async def test_adapters_are_found_and_addressed(script):
    script.models = {"data": [{"id": "m"}, {"id": "m:german", "parent": "m"}, {"id": "sql-lora", "parent": "m"}]}
    script.answers = [SAID]
    async with remote(script) as engine:
        assert engine.capabilities.adapters
        for adapter in ("german", "sql-lora"):
            await answer(engine, whole(adapter=adapter))
        with pytest.raises(ModelNotFoundError, match="Did you mean 'german'"):
            await answer(engine, whole(adapter="germen"))
    assert [body["model"] for _, body in script.asked] == ["m:german", "sql-lora"]


@pytest.mark.parametrize(
    ("models", "model", "hint"),
    [
        ({"data": [{"id": "llama"}]}, "lama", "Did you mean 'llama'"),
        ({"data": [{"id": "a"}, {"id": "b"}]}, "auto", "several models"),
        ({"data": []}, "a", "no model 'a'"),
        ({"hello": "world"}, "a", "is this the API's base"),
    ],
)
async def test_a_model_that_is_not_there_is_named_at_the_start(script, models, model, hint):
    script.models = models
    async with remote(script, model=model, start=False) as engine:
        with pytest.raises(EngineStartError, match=hint):
            await engine.start()
        with pytest.raises(EngineDeadError):
            await engine.check_health()


@pytest.mark.parametrize(("named", "hint"), [(True, "key in MY_KEY"), (False, "api_key_env names no variable")])
async def test_a_key_that_is_not_taken_is_named_at_the_start(script, monkeypatch, named, hint):
    monkeypatch.setenv("MY_KEY", KEY)
    script.models = refusal(401)
    async with remote(script, start=False, **({"api_key_env": "MY_KEY"} if named else {})) as engine:
        with pytest.raises(EngineStartError, match=hint) as caught:
            await engine.start()
    assert KEY not in str(caught.value)


async def test_a_server_without_a_list_of_models_is_taken_at_its_word(script):
    async def nothing(request):
        raise web.HTTPNotFound

    script.models = nothing
    script.answers = [SAID]
    async with remote(script, max_model_len=100, tasks=["chat"], max_top_logprobs=-1) as engine:
        assert engine.capabilities.context_length == 100
        assert engine.capabilities.tasks == {"chat"}
        assert engine.capabilities.max_top_logprobs == -1
        assert (await answer(engine, whole())).texts[0] == "yes"


async def test_one_server_of_two_is_enough_to_start_and_none_is_not(script, other, caplog):
    script.answers = other.answers = [SAID]
    await script.stop()
    async with remote(script, other) as engine:
        assert "go on without it" in caplog.text
        assert (await answer(engine, whole())).texts[0] == "yes"
        await engine.check_health()
    await other.stop()
    async with remote(script, other, start=False) as engine:
        with pytest.raises(EngineStartError, match="cannot be reached"):
            await engine.start()


async def test_a_server_that_hangs_does_not_hold_up_the_start(script):
    async def hang(request):
        await asyncio.Event().wait()

    script.models = hang
    async with remote(script, start=False, connect_timeout_s=0.05) as engine:
        with pytest.raises(EngineStartError, match=r"no answer within 0\.05 s"):
            await engine.start()


async def test_what_a_server_tells_only_when_it_has_loaded_is_learned_then(script):
    script.models = {"data": [{"id": "m", "engine": "openvino", "metadata": {}}]}
    script.answers = [SAID]
    async with remote(script) as engine:
        told = {"tasks": ["chat"], "structured": ["regex"], "max_top_logprobs": 0}
        script.models = {"data": [{"id": "m", "engine": "openvino", "metadata": {"capabilities": told}}]}
        assert "embeddings" in engine.capabilities.tasks
        await answer(engine, whole())
        await engine._learning
        assert engine.capabilities.tasks == {"chat"}
        assert engine.capabilities.structured == {"regex"}
        assert engine.capabilities.max_top_logprobs == 0


# Options
def test_the_table_knows_it():
    assert engine_class("remote") is RemoteEngine


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    for module in [
        name for name in sys.modules if name.startswith(("penstock.engines.remote", "penstock.http.client"))
    ]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(MissingExtraError, match=r"The remote engine needs .*'aiohttp'.*pip install 'penstock\[http\]'"):
        engine_class("remote")


def test_keys_that_are_given_in_the_open_are_not_shown():
    options = {"upstreams": [{"base_url": "http://h", "headers": {"Authorization": f"Bearer {KEY}"}}]}
    assert KEY not in repr(RemoteEngine("m", engine_kwargs=options).options)


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({}, "say where the server is"),
        ({"base_url": "nowhere"}, "must be an http"),
        ({"base_ulr": "http://h"}, "Did you mean 'base_url'"),
        ({"base_url": "http://h", "upstreams": [{"base_url": "http://h"}]}, "not both"),
        ({"upstreams": [{"base_url": "http://h"}], "api_key_env": "K"}, "belongs to one server"),
        ({"upstreams": [{"base_url": "http://h", "wieght": 1}]}, r"upstreams\[0\].*Did you mean 'weight'"),
        ({"upstreams": [{"base_url": "http://h", "weight": 0}]}, r"upstreams\[0\].weight"),
        ({"base_url": "http://h", "concurrency": 0}, "engine_kwargs.concurrency"),
        ({"base_url": "http://h", "tasks": ["chatt"]}, "engine_kwargs.tasks"),
    ],
)
def test_wrong_options_are_known_before_anything_starts(options, hint):
    with pytest.raises(ConfigError, match=hint):
        RemoteEngine("m", engine_kwargs=options)


def test_auto_needs_discovery():
    with pytest.raises(ConfigError, match="must be named"):
        RemoteEngine("auto", engine_kwargs={"base_url": "http://h", "discover": False})


async def test_a_key_that_is_not_set_is_named_at_the_start():
    engine = RemoteEngine("m", engine_kwargs={"base_url": "http://127.0.0.1:1", "api_key_env": "NOT_SET_AT_ALL"})
    with pytest.raises(EngineStartError, match="NOT_SET_AT_ALL is not set"):
        await engine.start()


async def test_before_the_start_it_is_dead():
    engine = RemoteEngine("m", engine_kwargs={"base_url": "http://127.0.0.1:1"})
    with pytest.raises(EngineDeadError):
        await answer(engine, whole())


async def test_an_empty_prompt_is_refused_here(script):
    async with remote(script) as engine:
        with pytest.raises(RequestError):
            await answer(engine, CompletionRequest("", Sampling()))
