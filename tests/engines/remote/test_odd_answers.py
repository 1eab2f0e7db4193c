"""Answers with oddities that nobody needs: they are read all the same."""

import gzip
import json
import zlib

import pytest
from aiohttp import web

from penstock.errors import ContextLengthError, OverloadedError, RequestError, UpstreamError
from penstock.testing import answer, chat_request
from penstock.types import EmbeddingRequest, RerankRequest, Sampling, TranscriptionRequest, Usage
from scripted_api import chunk, remote, sse

WHOLE = chat_request("hi", Sampling(), stream=False)
ASK = chat_request("hi", Sampling())
MESSAGE = {"role": "assistant", "content": "yes"}
CHOICE = {"index": 0, "message": MESSAGE, "finish_reason": "stop"}


def body(choice=None, message=None, **fields):
    made = {**CHOICE, **(choice or {})}
    if message is not None:
        made["message"] = {**MESSAGE, **message}
    return {"id": "x", "object": "chat.completion", "created": 1, "choices": [made], **fields}


def raw(content, kind="application/json", status=200, **headers):
    async def serve(request):
        return web.Response(body=content, status=status, headers={"Content-Type": kind, **headers})

    return serve


async def said(script, given, request=WHOLE, **options):
    script.answers = [given]
    async with remote(script, max_retries=0, **options) as engine:
        return await answer(engine, request)


ODD = {
    "created as text": body(created="1"),
    "created as a float": body(created=1.5),
    "no usage": body(usage=None),
    "usage as a list": body(usage=[]),
    "usage as text": body(usage="3"),
    "index null": body({"index": None}),
    "index as text": body({"index": "0"}),
    "index from one": body({"index": 1}),
    "index out of all range": body({"index": 10**30}),
    "logprobs empty": body({"logprobs": []}),
    "logprobs without a value": body({"logprobs": {"content": [{"token": "a", "logprob": None}]}}),
    "logprobs as text": body({"logprobs": "none"}),
    "no reason": body({"finish_reason": None}),
    "an empty reason": body({"finish_reason": ""}),
    "an unknown reason": body({"finish_reason": "eos_token"}),
    "a reason that is none": body({"finish_reason": {"type": "stop"}}),
    "no tool calls": body(message={"tool_calls": []}),
    "tool calls null": body(message={"tool_calls": None}),
    "tool calls as an empty object": body(message={"tool_calls": {}}),
    "a function call null": body(message={"function_call": None, "annotations": 3}),
    "refusal odd": body(message={"refusal": False}),
    "reasoning odd": body(message={"reasoning": {"a": 1}, "reasoning_content": []}),
    "content in parts": body(
        message={"content": [{"type": "text", "text": "y"}, {"text": "es"}, {"type": "image"}]}
    ),
    "content as texts": body(message={"content": ["y", "es"]}),
    "error null": body(error=None),
    "error empty": body(error={}),
    "more answers than asked for": {
        "choices": [CHOICE, {**CHOICE, "index": 1, "message": {"content": "no"}}]
    },
    "no index": {"choices": [{"message": MESSAGE}]},
    "a delta in place of a message": {"choices": [{"delta": MESSAGE}]},
    "kv_transfer_params odd": body(kv_transfer_params=[]),
}


@pytest.mark.parametrize("given", ODD.values(), ids=ODD)
async def test_what_is_not_needed_may_be_odd(script, given):
    result = await said(script, given)
    assert result.texts == {0: "yes"}
    assert result.reasons == {0: "stop"}


TEXT = json.dumps(body())
BYTES = {
    "a byte order mark": b"\xef\xbb\xbf" + TEXT.encode(),
    "a trailing line": TEXT.encode() + b"\r\n\n",
    "more behind": TEXT.encode() + b"\n{}garbage",
    "space before": b"\n\n  " + TEXT.encode(),
    "NaN": TEXT.replace('"created": 1', '"created": NaN').encode(),
    "out of range": TEXT.replace('"created": 1', '"created": 1e999').encode(),
    "no UTF-8 elsewhere": TEXT.encode().replace(b'"id": "x"', b'"id": "\xff\xfe"'),
    "half a pair elsewhere": TEXT.replace('"id": "x"', '"id": "\\ud83d"').encode(),
}


@pytest.mark.parametrize("given", BYTES.values(), ids=BYTES)
async def test_bytes_may_be_odd(script, given):
    assert (await said(script, raw(given))).texts == {0: "yes"}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (r'"hello \ud83d"', "hello \ufffd"),
        (r'"\ude00\ud83d\ude00"', "\ufffd😀"),
        ('{"a": [1, "é"]}', '{"a":[1,"é"]}'),
        ("42", "42"),
        ("null", ""),
    ],
)
async def test_an_answer_is_text_in_the_end(script, given, text):
    content = TEXT.replace('"content": "yes"', f'"content": {given}')
    assert (await said(script, raw(content.encode()))).texts == {0: text}


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 3.0, "completion_tokens": 2.0}, (3, 2, 0)),
        ({"prompt_tokens": "3", "completion_tokens": "2"}, (3, 2, 0)),
        ({"prompt_tokens": None}, (0, 0, 0)),
        ({"prompt_tokens": -1, "completion_tokens": 2}, (0, 2, 0)),
        ({"prompt_tokens": 3, "prompt_tokens_details": []}, (3, 0, 0)),
        ({"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": "2"}}, (3, 0, 2)),
        ({"prompt_tokens": True, "completion_tokens": {}}, (0, 0, 0)),
        ({"prompt_tokens": "many", "completion_tokens": 1e400}, (0, 0, 0)),
        ({"total_tokens": 5}, (0, 0, 0)),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_usage_is_read_as_far_as_it_goes(script, usage, tokens, stream):
    if stream:
        given = sse(chunk(content="yes"), chunk(reason="stop"), {"choices": [], "usage": usage})
    else:
        given = raw(json.dumps(body(usage=usage)).encode())
    result = await said(script, given, ASK if stream else WHOLE)
    assert result.texts == {0: "yes"}
    assert result.usage == Usage(*tokens)


async def test_arguments_may_be_parsed_already(script):
    call = {"id": "c", "function": {"name": "f", "arguments": {"a": 1}}}
    script.answers = [body(message={"content": None, "tool_calls": [call]})]
    async with remote(script) as engine:
        (delta,) = [delta async for delta in engine.chat(WHOLE)]
    assert [(part.name, part.arguments) for part in delta.tool_calls] == [("f", '{"a":1}')]


@pytest.mark.parametrize(
    "given",
    [
        {"choices": None},
        {"choices": []},
        {},
        {"choices": ["yes"]},
        {"choices": {"0": CHOICE}},
        {"choices": [{"message": "yes"}]},
        {"choices": [{**CHOICE, "message": None}]},
        {"choices": [{"index": 0, "finish_reason": "stop"}]},
        body(message={"tool_calls": "call f"}),
        body(message={"tool_calls": [{"function": "f"}]}),
        [body()],
    ],
)
async def test_what_is_needed_must_be_there(script, given):
    with pytest.raises(
        UpstreamError, match=r"without (choices|a message)|not answer in OpenAI's form"
    ):
        await said(script, given)


@pytest.mark.parametrize("reason", ["length", "content_filter"])
async def test_a_reason_may_stand_for_the_message(script, reason):
    result = await said(script, {"choices": [{"message": None, "finish_reason": reason}]})
    assert (result.texts, result.reasons) == ({0: ""}, {0: reason})


@pytest.mark.parametrize("given", [{"detail": "Not signed in"}, {"choices": ["Not signed in"]}])
async def test_what_an_unreadable_answer_said_is_told(script, given):
    with pytest.raises(UpstreamError, match="Not signed in"):
        await said(script, given)


@pytest.mark.parametrize("page", [b"", b"<html>Bad gateway</html>"])
@pytest.mark.parametrize("asked", [WHOLE, ASK], ids=["whole", "streamed"])
async def test_a_page_of_a_proxy_is_asked_past(script, page, asked):
    script.answers = [raw(page, "text/html"), body()]
    async with remote(script) as engine:
        assert (await answer(engine, asked)).texts == {0: "yes"}


# Errors with status 200
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        (
            {"error": {"message": "provider is down", "code": 502}},
            UpstreamError,
            "provider is down",
        ),
        (
            {"error": {"message": "provider is down", "code": "502"}, "choices": None},
            UpstreamError,
            "is down",
        ),
        ({"error": "it broke"}, UpstreamError, "it broke"),
        ({"error": {"message": "slow down", "code": 429}}, OverloadedError, "slow down"),
        ({"error": {"message": "top_k is bad", "code": 400}}, RequestError, "top_k is bad"),
        (
            {"error": {"message": "the prompt is too long", "code": 400}},
            ContextLengthError,
            "too long",
        ),
        (
            {"object": "error", "message": "bad", "type": "BadRequestError", "code": 400},
            RequestError,
            "bad",
        ),
        (
            [{"error": {"message": "used up", "code": 429, "status": "RESOURCE_EXHAUSTED"}}],
            OverloadedError,
            "used up",
        ),
        (
            {"choices": [{**CHOICE, "error": {"message": "lost it", "code": 502}}]},
            UpstreamError,
            "lost it",
        ),
    ],
)
async def test_an_error_with_status_200_is_one(script, given, kind, says, stream, monkeypatch):
    monkeypatch.setattr("penstock.balance.backoff.PATIENCE_S", 0.0)
    with pytest.raises(kind, match=says):
        await said(script, sse(given) if stream else given, ASK if stream else WHOLE)


async def test_an_error_in_the_middle_of_a_stream_is_one(script):
    with pytest.raises(UpstreamError, match="broke off: out of memory"):
        await said(script, sse(chunk(content="y"), {"error": "out of memory"}), ASK)


@pytest.mark.parametrize(("code", "asked"), [(502, 3), (400, 1), ("insufficient_quota", 1)])
async def test_such_errors_are_retried_by_their_code(script, code, asked):
    script.answers = [{"error": {"message": "no", "code": code}}]
    async with remote(script) as engine:
        with pytest.raises((UpstreamError, RequestError)):
            await answer(engine, WHOLE)
    assert len(script.asked) == asked


# Streams
Y, ES, STOP = (
    json.dumps(one) for one in (chunk(content="y"), chunk(content="es"), chunk(reason="stop"))
)
STREAMS = {
    "no space": f"data:{Y}\n\ndata:{ES}\n\ndata:{STOP}\n\ndata:[DONE]\n\n",
    "carriage returns": (
        f"data: {Y}\r\n\r\ndata: {ES}\r\n\r\ndata: {STOP}\r\n\r\ndata: [DONE]\r\n\r\n"
    ),
    "bare carriage returns": f"data: {Y}\r\rdata: {ES}\r\rdata: {STOP}\r\rdata: [DONE]\r\r",
    "comments": (
        f": ping\n\n: ping\ndata: {Y}\n\n:\n\ndata: {ES}\n: x\n\ndata: {STOP}\n\ndata: [DONE]\n\n"
    ),
    "names and ids": (
        f"event: message\nid: 1\nretry: 5\ndata: {Y}\n\nevent: x\ndata: {ES}\n\ndata: {STOP}\n\n"
    ),
    "events without data": (
        f"data: {Y}\n\ndata: \n\ndata\n\ndata:\n\nevent: ping\n\ndata: {ES}\n\ndata: {STOP}\n\n"
    ),
    "blank lines": f"\n\n\n\ndata: {Y}\n\n\n\n\ndata: {ES}\n\n\ndata: {STOP}\n\n\n\n",
    "a byte order mark": f"\ufeffdata: {Y}\n\ndata: {ES}\n\ndata: {STOP}\n\ndata: [DONE]\n\n",
    "no [DONE]": f"data: {Y}\n\ndata: {ES}\n\ndata: {STOP}\n\n",
    "no end of the last event": f"data: {Y}\n\ndata: {ES}\n\ndata: {STOP}",
    "space around [DONE]": f"data: {Y}\n\ndata: {ES}\n\ndata:  [DONE] \n\n",
    "no reason": f"data: {Y}\n\ndata: {ES}\n\ndata: [DONE]\n\n",
    "empty reasons": f"data: {Y}\n\ndata: {ES}\n\ndata: {STOP}\n\ndata: [DONE]\n\n".replace(
        "null", '""'
    ),
    "several lines of data": (
        "data: " + Y.replace(", ", ",\ndata: ") + f"\n\ndata: {ES}\n\ndata: {STOP}\n\n"
    ),
    "more after [DONE]": (
        f"data: {Y}\n\ndata: {ES}\n\ndata: {STOP}\n\ndata: [DONE]\n\ndata: garbage\n\n"
    ),
    "an answer in one piece": json.dumps(body()),
    "one in one piece with blank lines": json.dumps(body(), indent=1).replace("\n", "\n\n"),
    "choices null": f'data: {{"choices": null}}\n\ndata: {Y}\n\ndata: {ES}\n\ndata: {STOP}\n\n',
    "index null": f"data: {Y}\n\ndata: {ES}\n\ndata: {STOP}\n\n".replace(
        '"index": 0', '"index": null'
    ),
    "index one": f"data: {Y}\n\ndata: {ES}\n\ndata: {STOP}\n\n".replace('"index": 0', '"index": 1'),
    "the reason twice": (
        f"data: {Y}\n\ndata: {ES}\n\ndata: {STOP}\n\ndata: {STOP}\n\ndata: [DONE]\n\n"
    ),
}


@pytest.mark.parametrize(
    "kind", ["text/event-stream", "application/json", "text/event-stream; charset=latin-1"]
)
@pytest.mark.parametrize("given", STREAMS.values(), ids=STREAMS)
async def test_streams_may_be_odd(script, given, kind):
    result = await said(script, raw(given.encode(), kind), ASK)
    assert (result.texts, result.reasons) == ({0: "yes"}, {0: "stop"})


async def test_a_stream_may_be_cut_anywhere(script):
    text = json.dumps(chunk(content="grün 🙂"), ensure_ascii=False)
    stream = f"data: {text}\r\n\r\ndata: {STOP}\r\n\r\ndata: [DONE]\r\n\r\n".encode()

    async def serve(request):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for at in range(len(stream)):
            await response.write(stream[at : at + 1])
        return response

    assert (await said(script, serve, ASK)).texts == {0: "grün 🙂"}


@pytest.mark.parametrize("end", ["", "data: [DONE]\n\n", "data: {", "data: {}\n\n"])
async def test_a_stream_that_says_nothing_is_no_answer(script, end):
    with pytest.raises(UpstreamError, match=r"broke off|OpenAI's form"):
        await said(script, raw(end.encode(), "text/event-stream"), ASK)


# Encodings
@pytest.mark.parametrize(
    ("name", "encode"),
    [
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda b: zlib.compress(b, wbits=-15)),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_answers_may_be_compressed(script, name, encode, stream):
    content = STREAMS["no [DONE]"] if stream else TEXT
    given = raw(encode(content.encode()), **{"Content-Encoding": name})
    assert (await said(script, given, ASK if stream else WHOLE)).texts == {0: "yes"}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_an_encoding_that_does_not_hold_is_told(script, stream):
    with pytest.raises(UpstreamError, match="not in the encoding that its headers name"):
        await said(
            script, raw(TEXT.encode(), **{"Content-Encoding": "gzip"}), ASK if stream else WHOLE
        )


# Other tasks
@pytest.mark.parametrize(
    "given",
    [
        {"data": [{"embedding": [1, 2.5]}], "usage": None},
        {"data": [{"embedding": ["1", "2.5"], "index": None}], "usage": {"prompt_tokens": "3"}},
        {"data": [{"embedding": [1, 2.5], "index": "x"}], "usage": []},
        {"data": [{"embedding": [1, 2.5], "index": 7, "object": 3}], "model": None, "error": None},
    ],
)
async def test_vectors_may_be_odd(script, given):
    script.answers = [given]
    async with remote(script) as engine:
        assert (await engine.embeddings(EmbeddingRequest(["a"]))).vectors == [[1.0, 2.5]]


@pytest.mark.parametrize(
    "given",
    [
        {
            "results": [{"index": 1, "relevance_score": "0.5"}, {"index": 0, "relevance_score": 1}],
            "usage": {"a": 1},
        },
        {
            "results": [{"index": 1.0, "score": 0.5}, {"index": "0", "score": 1.0, "document": 3}],
            "usage": "x",
        },
        [{"index": 1, "score": 0.5}, {"index": 0, "score": 1.0}],
    ],
)
async def test_scores_may_be_odd(script, given):
    script.answers = [given]
    async with remote(script) as engine:
        assert (await engine.rerank(RerankRequest("q", ["a", "b"]))).scores == [1.0, 0.5]


@pytest.mark.parametrize(
    "given",
    [{"text": " yes "}, {"text": "yes", "segments": "none", "duration": "x", "language": 3}],
)
async def test_transcriptions_may_be_odd(script, given):
    script.answers = [given]
    async with remote(script) as engine:
        assert (await engine.transcriptions(TranscriptionRequest(b"RIFF"))).text == "yes"


async def test_their_errors_with_status_200_are_errors(script):
    script.answers = [{"error": {"message": "no such model here", "code": 404}}]
    async with remote(script) as engine:
        with pytest.raises(RequestError, match="no such model here"):
            await engine.embeddings(EmbeddingRequest(["a"]))


@pytest.mark.parametrize(
    "given", [{"error": {"message": "bad key sk-12345"}}, {"choices": [], "note": "sk-12345"}]
)
async def test_keys_are_taken_out_of_what_comes_with_status_200(script, given):
    with pytest.raises(UpstreamError) as caught:
        await said(script, given, headers={"Authorization": "Bearer sk-12345"})
    assert "sk-12345" not in str(caught.value) + caught.value.body
