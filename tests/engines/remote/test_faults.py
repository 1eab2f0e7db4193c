"""What servers do wrong, one scripted server or two."""

import asyncio

import pytest
from aiohttp import web

from penstock.errors import (
    ContextLengthError,
    EngineDeadError,
    EngineError,
    EngineTimeoutError,
    ModelNotFoundError,
    OverloadedError,
    RequestError,
    UnsupportedError,
    UpstreamError,
)
from penstock.testing import answer, chat_request, deltas_of
from penstock.types import EmbeddingRequest, Sampling
from scripted_api import USAGE, chunk, refusal, remote, sse

ASK = chat_request("hi", Sampling())
WHOLE = chat_request("hi", Sampling(), stream=False)
SAID = {
    "choices": [{"index": 0, "message": {"content": "yes"}, "finish_reason": "stop"}],
    "usage": USAGE["usage"],
}
STREAM = sse(
    chunk(role="assistant", content=""),
    chunk(content="y"),
    chunk(content="es"),
    chunk(reason="stop"),
    USAGE,
)


def text_of(result):
    return result.texts[0]


async def probed(engine):
    """Wait for the probes under way."""
    await asyncio.gather(*engine._upstreams._probes)


@pytest.mark.parametrize("request_", [ASK, WHOLE], ids=["streamed", "whole"])
@pytest.mark.parametrize("status", [500, 502, 503, 429])
async def test_a_failure_that_passes_is_tried_again(script, request_, status):
    script.answers = [refusal(status), refusal(status), STREAM if request_.stream else SAID]
    async with remote(script) as engine:
        result = await answer(engine, request_)
    assert text_of(result) == "yes"
    assert result.usage.prompt_tokens == 5
    assert len(script.asked) == 3


async def test_failures_have_a_limit(script):
    script.answers = [refusal(500, "on fire")]
    async with remote(script) as engine:
        with pytest.raises(UpstreamError, match="answered 500: on fire") as caught:
            await answer(engine, ASK)
    assert caught.value.retryable
    assert len(script.asked) == 3


async def test_a_server_that_stays_busy_is_overloaded(script):
    script.answers = [refusal(429, "too fast", headers={"Retry-After": "90"})]
    async with remote(script) as engine:
        with pytest.raises(OverloadedError, match="too fast") as caught:
            await answer(engine, ASK)
    assert caught.value.retry_after == 90.0
    assert len(script.asked) == 1  # longer than it is worth to wait


async def test_a_named_pause_is_waited(script, monkeypatch):
    pauses = []
    sleep = asyncio.sleep

    async def note(seconds, *rest):
        pauses.append(seconds)
        await sleep(0)

    script.answers = [refusal(429, headers={"Retry-After": "7"}), STREAM]
    async with remote(script) as engine:
        monkeypatch.setattr("penstock.http.retries.asyncio.sleep", note)
        monkeypatch.setattr(engine._upstreams.members[0].limiter, "_clock", lambda: sum(pauses))
        assert text_of(await answer(engine, ASK)) == "yes"
    assert 7.0 in pauses


@pytest.mark.parametrize(
    ("status", "fields", "error", "says"),
    [
        (400, {"param": "top_k"}, RequestError, "no"),
        (422, {}, RequestError, "no"),
        (400, {"code": "context_length_exceeded"}, ContextLengthError, "no"),
        (
            400,
            {"message": "This model's maximum context length is 10 tokens"},
            ContextLengthError,
            "10 tokens",
        ),
        (404, {"type": "NotFoundError", "code": 404}, ModelNotFoundError, "no"),
        (501, {"code": "unsupported"}, UnsupportedError, "no"),
        (400, {"code": "unsupported", "param": "suffix"}, UnsupportedError, "no"),
        (401, {}, UpstreamError, "answered 401"),
        (403, {}, UpstreamError, "answered 403"),
    ],
)
async def test_refusals_are_the_callers_errors_and_not_tried_again(
    script, status, fields, error, says
):
    script.answers = [refusal(status, **fields)]
    async with remote(script) as engine:
        with pytest.raises(error, match=says) as caught:
            await answer(engine, ASK)
        assert type(caught.value) is error
        if "param" in fields:
            assert caught.value.param == fields["param"]
        assert not caught.value.retryable
        assert engine._upstreams.members[0].breaker.closed
    assert len(script.asked) == 1


async def test_a_route_that_is_not_there_is_remembered(script):
    async def nothing(request):
        return web.json_response({"detail": "Not Found"}, status=404)

    script.answers = [nothing]
    async with remote(script) as engine:
        assert "embeddings" in engine.capabilities.tasks
        with pytest.raises(UnsupportedError, match="remote engine does not support embeddings"):
            await engine.embeddings(EmbeddingRequest(["a"]))
        assert "embeddings" not in engine.capabilities.tasks
        with pytest.raises(UnsupportedError):
            await engine.embeddings(EmbeddingRequest(["a"]))
        assert "chat" in engine.capabilities.tasks
    assert len(script.asked) == 2  # the request, and the smallest one to make sure


# Streams
@pytest.mark.parametrize("end", ["cut", "eof"])
async def test_a_stream_that_breaks_before_the_first_token_is_tried_again(script, end):
    script.answers = [sse(chunk(role="assistant", content=""), end=end), STREAM]
    async with remote(script) as engine:
        assert text_of(await answer(engine, ASK)) == "yes"
    assert len(script.asked) == 2


@pytest.mark.parametrize("end", ["cut", "eof"])
async def test_half_a_stream_is_an_error_after_the_half(script, end):
    script.answers = [sse(chunk(content="half"), end=end)]
    async with remote(script) as engine:
        stream = engine.chat(ASK)
        assert (await anext(stream)).text == "half"
        with pytest.raises(UpstreamError, match=r"lost|broke off") as caught:
            await anext(stream)
        assert caught.value.retryable
        assert engine._upstreams.members[0].running == 0
        assert len(engine._upstreams.members[0].breaker._failed) == 1
    assert len(script.asked) == 1


async def test_a_stream_without_done_is_complete_when_its_answers_are(script):
    script.answers = [sse(chunk(content="yes"), chunk(reason="length"), end="eof")]
    async with remote(script) as engine:
        result = await answer(engine, ASK)
    assert (text_of(result), result.reasons[0]) == ("yes", "length")


@pytest.mark.parametrize("code", [500, "engine_dead", None])
async def test_an_error_in_the_stream_is_tried_again_before_the_first_token(script, code):
    error = {"error": {"message": "died", "type": "server_error", "code": code}}
    script.answers = [sse(error), STREAM]
    async with remote(script) as engine:
        assert text_of(await answer(engine, ASK)) == "yes"


async def test_an_error_in_the_stream_after_a_token_is_raised(script):
    script.answers = [sse(chunk(content="a"), {"error": {"message": "died", "code": 500}})]
    async with remote(script) as engine:
        with pytest.raises(UpstreamError, match="died"):
            await answer(engine, ASK)


async def test_a_refusal_in_the_stream_is_the_callers(script):
    script.answers = [
        sse({"error": {"message": "bad", "type": "invalid_request_error", "param": "x"}})
    ]
    async with remote(script) as engine:
        with pytest.raises(RequestError, match="bad"):
            await answer(engine, ASK)
    assert len(script.asked) == 1


@pytest.mark.parametrize("request_", [ASK, WHOLE], ids=["streamed", "whole"])
async def test_nonsense_is_an_error(script, request_):
    async def page(request):
        return web.Response(text="data: <html>\n\n" if request_.stream else "<html>")

    script.answers = [page]
    async with remote(script) as engine:
        with pytest.raises(UpstreamError, match="not answer in OpenAI's form"):
            await answer(engine, request_)


@pytest.mark.parametrize("request_", [ASK, WHOLE], ids=["streamed", "whole"])
async def test_a_server_that_hangs_is_given_up(script, request_):
    script.answers = [sse(end="hang")]
    async with remote(script, timeout_s=0.05, max_retries=1) as engine:
        with pytest.raises(EngineTimeoutError, match=r"within 0\.05 s"):
            await answer(engine, request_)
        assert engine._upstreams.members[0].running == 0
    assert len(script.asked) == 2


async def test_stopping_ends_a_request_that_hangs(script):
    script.answers = [sse(chunk(content="a"), end="hang")]
    async with remote(script) as engine:
        stream = engine.chat(ASK)
        await anext(stream)
        await engine.stop()
        with pytest.raises(EngineDeadError):
            await anext(stream)


# Several servers
async def test_another_server_is_asked_at_once(script, other):
    script.answers = [refusal(500)]
    other.answers = [STREAM]
    async with remote(script, other, base_retry_wait_s=1000, cooldown_s=1000) as engine:
        for number in range(12):
            assert text_of(await answer(engine, chat_request(f"hi {number}", Sampling()))) == "yes"
        await probed(engine)
        assert not engine._upstreams.members[0].breaker.closed
        before = len(script.asked)
        for _ in range(6):
            await answer(engine, ASK)
        assert len(script.asked) == before  # left alone
        await engine.check_health()


async def test_a_server_that_was_killed_is_left_alone_and_found_again(script, other):
    script.answers = other.answers = [STREAM]
    async with remote(
        script, other, trip_after=1, cooldown_s=0.01, base_retry_wait_s=1000
    ) as engine:
        breaker = engine._upstreams.members[0].breaker
        await script.stop()
        for _ in range(4):
            assert text_of(await answer(engine, ASK)) == "yes"
        assert not breaker.closed
        await script.start()
        async with asyncio.timeout(20):
            while not breaker.closed:
                await answer(engine, ASK)
                await asyncio.sleep(0.001)


async def test_a_server_that_recovers_gets_requests_again(script, other):
    script.answers = [refusal(500)]
    other.answers = [STREAM]
    async with remote(
        script, other, trip_after=1, cooldown_s=0.01, base_retry_wait_s=1000
    ) as engine:
        while engine._upstreams.members[0].breaker.closed:
            await answer(engine, ASK)
        script.answers = [STREAM]
        async with asyncio.timeout(20):
            while not engine._upstreams.members[0].breaker.closed:
                await answer(engine, ASK)
                await asyncio.sleep(0.001)
        await answer(engine, ASK)
        counted = len(script.asked), len(other.asked)
        for _ in range(6):
            await answer(engine, ASK)
        # It need not make up.
        assert (len(script.asked) - counted[0], len(other.asked) - counted[1]) == (3, 3)


async def test_while_no_server_is_well_requests_wait_for_one(script):
    script.answers = [refusal(500), refusal(500), STREAM]  # the second one is for the probe
    async with remote(
        script, trip_after=1, cooldown_s=0.02, max_retries=0, patience_s=20
    ) as engine:
        with pytest.raises(UpstreamError):
            await answer(engine, ASK)
        await probed(engine)
        with pytest.raises(EngineDeadError):
            await engine.check_health()
        results = await asyncio.gather(*(answer(engine, ASK) for _ in range(5)))
        assert [text_of(result) for result in results] == ["yes"] * 5
        await engine.check_health()
        assert engine._upstreams.members[0].complaint == ""  # an old one would explain a new fault


async def test_patience_ends(script):
    script.answers = [refusal(500)]
    async with remote(script, trip_after=1, cooldown_s=100, max_retries=0) as engine:
        with pytest.raises(UpstreamError):
            await answer(engine, ASK)
        await probed(engine)
        with pytest.raises(EngineDeadError, match="no server answers"):
            await answer(engine, ASK)
    assert len(script.asked) == 2  # the request and the probe


async def test_stopping_ends_waiting_for_a_server(script):
    script.answers = [refusal(500)]
    async with remote(
        script, trip_after=1, cooldown_s=1000, max_retries=0, patience_s=1000
    ) as engine:
        with pytest.raises(UpstreamError):
            await answer(engine, ASK)
        await probed(engine)
        waiting = asyncio.create_task(deltas_of(engine, ASK))
        await asyncio.sleep(0)
        await engine.stop()
        with pytest.raises(EngineDeadError):
            await waiting


async def test_weights_share_requests_out(script, other):
    script.answers = other.answers = [STREAM]
    upstreams = [{"base_url": script.base_url, "weight": 3}, {"base_url": other.base_url}]
    async with remote(script, upstreams=upstreams, base_url=None) as engine:
        for _ in range(16):
            await answer(engine, ASK)
    assert (len(script.asked), len(other.asked)) == (12, 4)


async def test_prompts_that_begin_alike_go_to_one_server(script, other):
    script.answers = other.answers = [STREAM]
    begins = ["a" * 4000, "b" * 4000]
    async with remote(script, other, routing="prefix_aware") as engine:
        for number in range(12):
            await answer(engine, chat_request(f"{begins[number % 2]}, question {number}"))
    for begin in begins:
        counts = [sum(begin in str(body) for _, body in one.asked) for one in (script, other)]
        assert sorted(counts) == [0, 6]


async def test_where_the_server_of_a_prefix_fails_another_answers(script, other):
    script.answers = other.answers = [STREAM]
    async with remote(script, other, routing="prefix_aware") as engine:
        await answer(engine, chat_request("a" * 4000))
        warm, cold = (script, other) if script.asked else (other, script)
        warm.answers = [refusal(500)]
        assert (await answer(engine, chat_request("a" * 4000 + ", again"))).texts[0]
        assert (len(warm.asked), len(cold.asked)) == (2, 1)


async def test_a_caller_who_leaves_is_told_to_the_server(script):
    gone = asyncio.Event()

    async def endless(request):
        try:
            return await sse(*[chunk(content="x")] * 3, end="hang")(request)
        except asyncio.CancelledError:
            gone.set()
            raise

    script.answers = [endless]
    async with remote(script) as engine:
        stream = engine.chat(ASK)
        await anext(stream)
        await stream.aclose()
        async with asyncio.timeout(10):
            await gone.wait()
        assert engine._upstreams.members[0].limiter.running == 0


async def test_a_failed_request_is_an_engine_error_or_a_request_error(script):
    """Nothing of aiohttp comes through."""

    async def broken(request):
        request.transport.write(b"HTTP/1.1 nonsense\r\n\r\n")
        request.transport.close()
        return web.Response()

    script.answers = [broken]
    async with remote(script) as engine:
        with pytest.raises(EngineError) as caught:
            await answer(engine, ASK)
    assert type(caught.value).__module__ == "penstock.errors"
