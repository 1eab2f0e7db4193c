"""How the answers of a scripted server are read."""

import json

import msgspec
import pytest
from aiohttp import web

from penstock.engines.remote import stream
from penstock.engines.remote.requests import task_body
from penstock.errors import UnsupportedError, UpstreamError
from penstock.openai.responses import chat_logprobs, completion_logprobs
from penstock.testing import answer, chat_request, deltas_of
from penstock.types import (
    ClassifyRequest,
    CompletionRequest,
    EmbeddingRequest,
    RerankRequest,
    Sampling,
    TokenLogprob,
    TranscriptionRequest,
    TranscriptionSegment,
    Usage,
)
from scripted_api import USAGE, chunk, refusal, remote, sse

SAID = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}


def whole(text="hi", sampling=None, **fields):
    return chat_request(text, sampling or Sampling(), stream=False, **fields)


async def test_chunks_become_deltas(script):
    script.answers = [
        sse(
            chunk(role="assistant", content=""),
            chunk(content="y"),
            chunk(content="es", reason="stop"),
            USAGE,
        )
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
    events = [
        chunk(0, content="a"),
        chunk(1, content="b"),
        chunk(1, reason="stop"),
        chunk(0, reason="length"),
        USAGE,
    ]
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


async def test_a_finished_answer_does_not_wait_for_a_stream_without_end(script, monkeypatch):
    monkeypatch.setattr(stream, "USAGE_S", 0.0)
    script.answers = [sse(chunk(content="yes"), chunk(reason="stop"), end="hang")]
    async with remote(script) as engine:
        result = await answer(engine, chat_request("hi"))
        assert engine._upstreams.members[0].limiter.running == 0
    assert (result.texts, result.reasons) == ({0: "yes"}, {0: "stop"})


async def test_an_unstreamed_answer_may_be_as_large_as_the_others(script):
    text = "y" * (5 << 20)
    script.answers = [{"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}]
    async with remote(script) as engine:
        assert (await answer(engine, chat_request("hi"))).texts == {0: text}
    async with remote(script, max_response_bytes=1 << 20) as engine:
        with pytest.raises(UpstreamError, match="sent an answer of more than 1048576 bytes"):
            await answer(engine, chat_request("hi"))


async def test_a_server_that_ignores_n_is_named_and_asked_once(script):
    script.answers = [SAID, sse(chunk(content="yes"), chunk(reason="stop"))]
    async with remote(script) as engine:
        for request in (whole(n=2), chat_request("hi", n=2)):
            with pytest.raises(UnsupportedError, match="gave 1 of 2 answers"):
                await answer(engine, request)
    assert len(script.asked) == 2


async def test_tool_calls_come_in_parts_or_whole(script):
    def call(index, arguments, **first):
        return {
            "index": index,
            **first,
            "function": {"arguments": arguments, **({"name": "f"} if first else {})},
        }

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
    script.answers = [
        sse(*streamed),
        {"choices": [{"message": message, "finish_reason": "tool_calls"}]},
    ]
    async with remote(script) as engine:
        for request in (chat_request("hi"), whole()):
            result = await answer(engine, request)
            made = [(call.id, call.name, call.arguments) for call in result.tool_calls[0]]
            assert made == [("c1", "f", '{"a":1}'), ("c2", "f", "{}")]
            assert result.reasons[0] == "tool_calls"
            assert result.texts[0] == ""


async def test_servers_that_repeat_ids_or_send_none_make_one_call_of_each(script):
    def call(index, arguments, **more):
        return {"index": index, **more, "function": {"name": "f", "arguments": arguments}}

    streamed = [
        chunk(tool_calls=[call(0, '{"a":', id="c1")]),
        chunk(tool_calls=[call(0, "1}", id="c1"), call(1, "{", id=None)]),
        chunk(tool_calls=[call(1, "}")]),
        chunk(reason="tool_calls"),
    ]
    message = {"content": None, "tool_calls": [call(0, '{"a":1}', id="c1"), call(1, "{}")]}
    script.answers = [
        sse(*streamed),
        {"choices": [{"message": message, "finish_reason": "tool_calls"}]},
    ]
    async with remote(script) as engine:
        for request in (chat_request("hi"), whole()):
            first, second = (await answer(engine, request)).tool_calls[0]
            assert (first.id, first.name, first.arguments) == ("c1", "f", '{"a":1}')
            assert second.id.startswith("call_")
            assert (second.name, second.arguments) == ("f", "{}")


@pytest.mark.parametrize("index", [{"index": 0}, {}], ids=["index 0", "no index"])
@pytest.mark.parametrize("forward", [False, True])
async def test_calls_that_share_an_index_stay_apart(script, index, forward):
    """As Gemini's OpenAI form and Ollama before 0.5 send them."""

    def call(id, name, arguments):
        function = {"name": name, "arguments": arguments}
        return {**index, "id": id, "type": "function", "function": function}

    pieces = [call("a", "f", '{"a":'), call("fresh", None, "1}"), call("b", "f", '{"b":2}')]
    calls = [call("a", "f", '{"a":1}'), call("b", "f", '{"b":2}')]
    script.answers = [
        sse(*(chunk(tool_calls=[one]) for one in pieces), chunk(reason="tool_calls")),
        sse(chunk(tool_calls=calls), chunk(reason="tool_calls")),
        {"choices": [{"message": {"tool_calls": calls}, "finish_reason": "tool_calls"}]},
    ]
    async with remote(script) as engine:
        streamed = chat_request("hi", forward_chunks=forward)
        for request in (streamed, streamed, whole()):
            made = (await answer(engine, request)).tool_calls[0]
            assert [(one.id, one.name, one.arguments) for one in made] == [
                ("a", "f", '{"a":1}'),
                ("b", "f", '{"b":2}'),
            ]


async def test_calls_without_ids_are_told_by_their_names(script):
    def call(name):
        return {"index": 0, "id": "", "function": {"name": name, "arguments": "{}"}}

    script.answers = [sse(*(chunk(tool_calls=[call(name)]) for name in "fg"), chunk(reason="stop"))]
    async with remote(script) as engine:
        made = (await answer(engine, chat_request("hi"))).tool_calls[0]
    assert [(one.name, one.arguments) for one in made] == [("f", "{}"), ("g", "{}")]
    assert made[0].id != made[1].id


async def test_prefills_and_echoes_are_asked_of_the_server(script):
    script.answers = [{"choices": [{"message": {"content": "b"}, "finish_reason": "stop"}]}] * 2
    async with remote(script) as engine:
        begins = {"continue_final_message": True, "add_generation_prompt": False, "echo": True}
        await answer(engine, whole(**begins))
        await answer(engine, whole())
    first, second = (asked[1] for asked in script.asked)
    assert {name: first.get(name) for name in begins} == begins
    assert not begins.keys() & second.keys()


async def test_reasoning_tokens_are_read(script):
    details = {"reasoning_tokens": 1}
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "completion_tokens_details": details}
    choice = {"message": {"content": "b"}, "finish_reason": "stop"}
    script.answers = [{"choices": [choice], "usage": usage}]
    async with remote(script) as engine:
        assert (await answer(engine, whole())).usage.reasoning_tokens == 1


async def test_reasoning_is_told_from_the_answer(script):
    streamed = [
        chunk(reasoning="let "),
        chunk(reasoning_content="me see"),
        chunk(content="yes"),
        chunk(reason="stop"),
    ]
    said = {
        "choices": [
            {"message": {"content": "yes", "reasoning": "let me see"}, "finish_reason": "stop"}
        ]
    }
    script.answers = [sse(*streamed), said]
    async with remote(script) as engine:
        for request in (chat_request("hi"), whole()):
            result = await answer(engine, request)
            assert (result.texts[0], result.reasoning[0]) == ("yes", "let me see")


async def test_what_vllm_knows_beyond_openai(script):
    script.answers = [
        {
            "choices": [{"text": "b", "finish_reason": "stop"}],
            "kv_transfer_params": {"remote_port": 7},
        },
        {
            "data": [
                {"index": 0, "label": "good", "probs": [0.1, 0.9]},
                {"index": 1, "probs": [0.8, 0.2]},
            ]
        },
    ]
    request = CompletionRequest(
        "a",
        Sampling(),
        stream=False,
        special_tokens=False,
        kv_transfer_params={"do_remote_decode": True},
    )
    async with remote(script) as engine:
        (delta,) = await deltas_of(engine, request)
        assert delta.kv_transfer_params == {"remote_port": 7}
        classes = await engine.classify(ClassifyRequest(["x", "y"]))
        assert [(one.label, one.probabilities) for one in classes.items] == [
            ("good", [0.1, 0.9]),
            ("0", [0.8, 0.2]),
        ]
    sent = script.asked[0][1]
    assert sent["add_special_tokens"] is False
    assert sent["kv_transfer_params"] == {"do_remote_decode": True}
    assert script.asked[1] == ("/classify", {"model": "m", "input": ["x", "y"]})


async def test_parts_of_characters_begin_where_these_do(script):
    plain = {"tokens": ["bytes:\\xc3", "bytes:\\xa9", "!"], "token_logprobs": [-1.0, -2.0, -3.0]}
    script.answers = [{"choices": [{"text": "é!", "logprobs": plain}]}]
    async with remote(script) as engine:
        result = await answer(engine, CompletionRequest("x", Sampling(logprobs=0), stream=False))
    body = completion_logprobs(result.logprobs[0])
    assert body is not None
    assert body["tokens"] == plain["tokens"]
    assert body["text_offset"] == [0, 0, 1]


async def test_tokens_that_are_part_of_a_character_keep_their_bytes(script):
    def part(*stated):
        return {"token": "\ufffd", "logprob": -0.5, "bytes": list(stated)}

    plain = {"token": "a", "logprob": -1.0, "bytes": None}
    wrong = {**part(), "bytes": [999]}
    content = [
        {**part(0xC3), "top_logprobs": [part(0xC3), plain]},
        {**part(0xA9), "top_logprobs": []},
        {"token": "!", "logprob": -1.0, "bytes": [33], "top_logprobs": [wrong]},
    ]
    chat = {"message": {"content": "é!"}, "logprobs": {"content": content}}
    script.answers = [{"choices": [chat]}]
    async with remote(script) as engine:
        result = await answer(engine, whole(sampling=Sampling(logprobs=2)))
    body = chat_logprobs(result.logprobs[0])
    assert body is not None
    first, second, last = body["content"]
    assert (first["bytes"], second["bytes"], last["bytes"]) == ([0xC3], [0xA9], [33])
    assert [one["bytes"] for one in first["top_logprobs"]] == [[0xC3], [97]]
    assert last["top_logprobs"][0]["bytes"] == [0xEF, 0xBF, 0xBD]


async def test_logprobs_of_chats_and_completions(script):
    token = {
        "token": "a",
        "logprob": -0.5,
        "bytes": [97],
        "top_logprobs": [{"token": "a", "logprob": -0.5}],
    }
    chat = {"message": {"content": "a"}, "logprobs": {"content": [token]}, "finish_reason": "stop"}
    plain = {
        "tokens": ["a", "b"],
        "token_logprobs": [None, -0.5],
        "top_logprobs": [None, {"b": -0.5}],
    }
    script.answers = [
        {"choices": [chat]},
        {"choices": [{"text": "ab", "logprobs": plain, "finish_reason": "stop"}]},
    ]
    async with remote(script) as engine:
        result = await answer(engine, whole(sampling=Sampling(logprobs=1)))
        assert result.logprobs[0] == [TokenLogprob("a", -0.5, (("a", -0.5),))]
        result = await answer(engine, CompletionRequest("x", Sampling(logprobs=1), stream=False))
        assert result.logprobs[0] == [
            TokenLogprob("a", None),
            TokenLogprob("b", -0.5, (("b", -0.5),)),
        ]


@pytest.mark.parametrize("unknown", ["null", "NaN"])
async def test_an_unknown_logprob_leaves_the_others(script, unknown):
    top = [{"token": "b", "logprob": 7}, {"token": "c", "logprob": -0.5}]
    chat = [{"token": "a", "logprob": 7, "top_logprobs": top}, {"token": "d", "logprob": -1.0}]
    plain = {
        "tokens": ["a", "d"],
        "token_logprobs": [7, -1.0],
        "top_logprobs": [{"b": 7, "c": -0.5}, None],
    }
    bodies = [
        {"choices": [{"message": {"content": "ad"}, "logprobs": {"content": chat}}]},
        {"choices": [{"text": "ad", "logprobs": plain}]},
    ]

    async def serve(request):
        text = json.dumps(bodies.pop(0)).replace("7", unknown)
        return web.Response(text=text, content_type="application/json")

    script.answers = [serve]
    async with remote(script) as engine:
        for asked in (whole(), CompletionRequest("x", Sampling(), stream=False)):
            assert (await answer(engine, asked)).logprobs[0] == [
                TokenLogprob("a", None, (("c", -0.5),)),
                TokenLogprob("d", -1.0),
            ]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("MAX_TOKENS", "length"),
        ("model_length", "length"),
        ("content_filter: SAFETY", "content_filter"),
        ("SAFETY", "content_filter"),
        ("tool_use", "tool_calls"),
        ("eos_token", "stop"),
    ],
)
async def test_reasons_of_other_servers(script, given, reason):
    script.answers = [
        sse(chunk(content="a"), chunk(reason=given)),
        {"choices": [{"message": {"content": "a"}, "finish_reason": given}]},
    ]
    async with remote(script) as engine:
        for request in (chat_request("hi"), whole()):
            assert (await answer(engine, request)).reasons == {0: reason}


@pytest.mark.parametrize("given", ["error", "insufficient_system_resource"])
async def test_an_answer_that_failed_midway_is_asked_again(script, given):
    body = {"choices": [{"message": {"content": "a"}, "finish_reason": given}]}
    script.answers = [body, SAID, sse(chunk(content="a"), chunk(reason=given))]
    async with remote(script) as engine:
        assert (await answer(engine, whole())).texts == {0: "yes"}
        with pytest.raises(UpstreamError, match=f"broke off, with the finish reason '{given}'"):
            await answer(engine, chat_request("hi"))


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (
            {
                "content": [
                    {"type": "text", "text": "a"},
                    {"type": "other"},
                    {"type": "text", "text": "b"},
                ]
            },
            "ab",
        ),
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
        {
            "data": [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]}],
            "usage": {"prompt_tokens": 3},
        },
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
        *(
            "/v1/embeddings",
            "/v1/rerank",
            "/v1/score",
            "/v1/audio/transcriptions",
            "/tokenize",
            "/detokenize",
        )
    ]
    assert script.asked[3][1] == {"model": "m", "language": "de", "file": b"RIFF"}


async def test_an_answer_that_lacks_a_vector_is_an_error(script):
    script.answers = [{"data": [{"index": 0, "embedding": [1.0]}]}]
    async with remote(script) as engine:
        with pytest.raises(UpstreamError, match="1 vectors to 2 texts"):
            await engine.embeddings(EmbeddingRequest(["a", "b"]))


async def test_a_transcription_with_times(script):
    segments = [{"id": 0, "start": 0.0, "end": 1.5, "text": " hello", "tokens": [1]}]
    script.answers = [
        {"text": "hello", "language": "english", "duration": "1.5", "segments": segments}
    ]
    async with remote(script) as engine:
        said = await engine.transcriptions(TranscriptionRequest(b"RIFF", timestamps=True))
    assert said.segments == (TranscriptionSegment(0.0, 1.5, " hello"),)
    assert (said.language, said.duration) == ("english", 1.5)
    assert script.asked[0][1]["response_format"] == "verbose_json"


def test_a_transcription_with_times_of_words_asks_for_those_of_segments_too():
    asked = TranscriptionRequest(b"RIFF", words=True)
    field = "timestamp_granularities[]"
    assert task_body("transcriptions", asked, "openai")[field] == ["word"]
    both = msgspec.structs.replace(asked, timestamps=True)
    assert task_body("transcriptions", both, "openai")[field] == ["word", "segment"]


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
    script.answers = [
        {**SAID, "usage": USAGE["usage"]},
        sse(chunk(content="a"), chunk(reason="stop"), USAGE),
    ]
    async with remote(script, tokens_per_minute=10**9) as engine:
        limiter = engine._upstreams.members[0].limiter
        charged: list[float] = []
        limiter.charge = charged.append
        for request in (
            whole(sampling=Sampling(max_tokens=100)),
            chat_request("hi", Sampling(max_tokens=100)),
        ):
            await answer(engine, request)
    assert len(charged) == 2
    # 7 used, a body and 100 tokens had been estimated.
    assert all(-150 < amount < -93 for amount in charged)
