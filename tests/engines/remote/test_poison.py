"""Requests that their server never answers, among others that it answers."""

import asyncio
import json
from collections import Counter
from typing import Any

import pytest
from aiohttp import web

import penstock
from penstock.errors import EngineDeadError, UpstreamError
from penstock.testing import answer, chat_request
from penstock.types import EmbeddingRequest, Sampling
from scripted_api import refusal, remote

QUICK: dict[str, Any] = {"base_retry_wait_s": 0.01, "cooldown_s": 0.05}
SAID = {"choices": [{"index": 0, "message": {"content": "yes"}, "finish_reason": "stop"}]}
STREAMED = (
    b'data: {"choices": [{"index": 0, "delta": {"content": "yes"}, "finish_reason":'
    b' "stop"}]}\n\ndata: [DONE]\n\n'
)
VECTOR = {"data": [{"embedding": [1.0]}]}


async def closed(request):
    request.transport.close()
    return web.Response()


async def half(request):
    response = web.StreamResponse(headers={"Content-Length": "100"})
    await response.prepare(request)
    await response.write(b'{"choi')
    request.transport.close()
    return response


async def page(request):
    return web.Response(text="<html>", content_type="text/html")


async def inside(request):
    return web.json_response({"error": {"message": "template error", "code": 500}})


KINDS = {
    "500": refusal(500, "template error"),
    "504": refusal(504),
    "close": closed,
    "half": half,
    "page": page,
}


def poisoned(bad, ill=lambda: False):
    """Answers well, but for texts that begin with "bad", and for all while it is `ill`."""

    async def serve(request):
        body = await request.json()
        text = body["input"][0] if "input" in body else body["messages"][-1]["content"]
        if text.startswith("bad") or ill():
            return await bad(request)
        if body.get("stream"):
            return web.Response(body=STREAMED, content_type="text/event-stream")
        return web.json_response(VECTOR if "input" in body else SAID)

    return serve


def ask(text, stream=False):
    return chat_request(text, Sampling(), stream=stream)


async def job(rows, *scripts, output=None, **options):
    where = {"base_url": scripts[0].base_url} if len(scripts) == 1 else {}
    where = where or {"upstreams": [{"base_url": one.base_url} for one in scripts]}
    return await penstock.arun(
        [{"text": text} for text in rows],
        output,
        engine="remote",
        model="m",
        prompt="{text}",
        engine_kwargs={**where, **QUICK, **options},
        progress=False,
    )


def kinds_of(result):
    return Counter(
        (row["text"].split()[0], row["error"] and row["error"]["type"]) for row in result.rows()
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
async def test_they_are_error_rows_and_harm_nobody(script, kind, first):
    script.answers = [poisoned(KINDS[kind])]
    good, bad = [f"fine {n}" for n in range(20)], [f"bad {n}" for n in range(6)]
    result = await job(bad + good if first else good + bad, script, concurrency=4)
    assert kinds_of(result) == {("fine", None): 20, ("bad", "upstream_error"): 6}


async def test_what_the_server_said_stands_in_the_row(script):
    script.answers = [poisoned(inside)]
    result = await job(["bad"], script)
    (row,) = result.rows()
    assert "template error" in row["error"]["message"]
    assert row["error"]["retryable"]


@pytest.mark.parametrize(
    "options", [{"max_retries": 0}, {"trip_after": 1}, {"trip_after": 1, "patience_s": 0}]
)
async def test_whatever_the_options(script, options):
    script.answers = [poisoned(KINDS["500"])]
    result = await job([f"bad {n}" for n in range(12)] + ["fine"] * 3, script, **options)
    assert kinds_of(result) == {("fine", None): 3, ("bad", "upstream_error"): 12}


async def test_they_do_not_trip_one_server_after_the_other(script, other):
    script.answers = other.answers = [poisoned(KINDS["500"])]
    async with remote(script, other, **QUICK) as engine:
        for number in range(20):
            with pytest.raises(UpstreamError, match="template error"):
                await answer(engine, ask(f"bad {number}", stream=number % 2 == 0))
            assert all(one.breaker.closed for one in engine._upstreams.members)
        await engine.check_health()


async def test_good_ones_do_not_wait_for_them(script):
    held = asyncio.Event()

    async def slow(request):
        await held.wait()
        return await refusal(500)(request)

    script.answers = [poisoned(slow)]
    async with remote(script, trip_after=1, patience_s=0) as engine:
        bad = [asyncio.create_task(answer(engine, ask(f"bad {number}"))) for number in range(8)]
        assert (await answer(engine, ask("fine"))).texts[0] == "yes"
        held.set()
        assert (await answer(engine, ask("fine", stream=True))).texts[0] == "yes"
        assert all(
            isinstance(e, UpstreamError) for e in await asyncio.gather(*bad, return_exceptions=True)
        )


async def test_vectors_too(script):
    script.answers = [poisoned(KINDS["500"])]
    async with remote(script, trip_after=1, **QUICK) as engine:
        for number in range(4):
            with pytest.raises(UpstreamError):
                await engine.embeddings(EmbeddingRequest([f"bad {number}"]))
            assert (await engine.embeddings(EmbeddingRequest(["fine"]))).vectors == [[1.0]]


async def test_the_probe_is_the_smallest_request_of_its_kind_and_nobodys(script):
    script.answers = [refusal(500)]
    async with remote(script, trip_after=1, max_retries=0, extra_body={"x": 1}) as engine:
        with pytest.raises(UpstreamError):
            await answer(engine, ask("a long question"))
        await asyncio.gather(*engine._upstreams._probes)
        assert not engine._upstreams.members[0].breaker.closed
    assert script.asked[-1] == (
        "/v1/chat/completions",
        {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "x": 1},
    )


async def test_the_probe_has_what_every_body_has_whatever_the_dialect(script):
    script.models = {"data": [{"id": "m", "owned_by": "sglang"}]}
    script.answers = [refusal(500), {"choices": [{"message": {"content": "yes"}}]}]
    extra = {"chat_template": "{{ messages }}"}
    async with remote(script, trip_after=1, max_retries=0, extra_body=extra) as engine:
        with pytest.raises(UpstreamError):
            await answer(engine, ask("a question"))
        await asyncio.gather(*engine._upstreams._probes)
        await engine.check_health()
    assert script.asked[-1][1]["chat_template"] == "{{ messages }}"


async def test_a_job_stops_where_the_server_is_really_ill_and_goes_on_later(script, tmp_path):
    state = {"ill": False}
    script.answers = [
        poisoned(refusal(502, "bad gateway"), lambda: state["ill"] or len(script.asked) > 20)
    ]
    rows, output = [f"fine {n}" for n in range(60)], tmp_path / "out.jsonl"
    with pytest.raises(penstock.errors.JobError, match=r"no server answers: .*bad gateway"):
        await job(rows, script, output=output, concurrency=4, patience_s=0.1)
    script.asked.clear()
    script.answers = [poisoned(refusal(502))]
    result = await job(rows, script, output=output, concurrency=4)
    assert kinds_of(result) == {("fine", None): 60}
    assert result.counts.resumed


async def test_a_server_that_wants_to_be_left_alone_for_an_hour_is_ill(script):
    script.answers = [refusal(429, "daily limit", headers={"Retry-After": "3600"})]
    async with remote(script, trip_after=2) as engine:
        for number in range(2):
            with pytest.raises(
                penstock.errors.OverloadedError, match=r"daily limit \(it asks for a pause of 1 h\)"
            ):
                await answer(engine, ask(f"fine {number}"))
        await asyncio.gather(*engine._upstreams._probes)
        with pytest.raises(EngineDeadError, match="daily limit"):
            await answer(engine, ask("fine"))


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_a_page_that_says_there_is_no_such_route_is_no_word_on_the_route(script, status):
    async def gone(request):
        return web.Response(status=status, text="<html>not found</html>", content_type="text/html")

    script.answers = [poisoned(gone)]
    rows = ["bad", *[f"fine {number}" for number in range(20)], "bad again"]
    result = await job(rows, script, concurrency=2)
    assert kinds_of(result) == {("fine", None): 20, ("bad", "upstream_error"): 2}


@pytest.mark.parametrize(
    "code", ["insufficient_quota", "billing_hard_limit_reached", "account_deactivated"]
)
async def test_what_only_a_person_can_mend_is_asked_once(script, code):
    script.answers = [refusal(429, "see your plan", code=code)]
    result = await job(["fine"], script)
    (row,) = result.rows()
    assert (row["error"]["type"], row["error"]["retryable"]) == ("upstream_error", False)
    assert "see your plan" in row["error"]["message"]
    assert len(script.asked) == 1


async def test_a_prompt_that_is_too_long_is_shortened_whatever_the_words(script):
    async def serve(request):
        body = await request.json()
        if len(body["messages"][-1]["content"]) > 20:
            said = {"error": "the input length exceeds the context length"}
            return web.json_response(said, status=500)
        return web.json_response(SAID)

    script.answers = [serve]
    result = await penstock.arun(
        [{"text": "word " * 10}],
        engine="remote",
        model="m",
        prompt="{text}",
        engine_kwargs={"base_url": script.base_url, **QUICK},
        on_length="truncate",
        progress=False,
    )
    (row,) = result.rows()
    assert row["response"] == "yes", json.dumps(row)
    assert [len(body["messages"][-1]["content"]) for _, body in script.asked] == [50, 37, 27, 20]


async def test_an_hours_pause_is_one_error_row_and_is_told(script):
    script.answers = [poisoned(refusal(429, "daily limit", headers={"Retry-After": "3600"}))]
    result = await job(["fine 1", "bad", "fine 2", "fine 3"], script)
    assert kinds_of(result) == {("fine", None): 3, ("bad", "rate_limit_exceeded"): 1}
    (bad,) = [row for row in result.rows() if row["error"]]
    assert bad["error"]["retryable"]
    assert bad["attempts"] == 1
    pauses = result.counts.pauses
    assert (pauses.count, pauses.given_up, pauses.longest_s) == (1, 1, 3600.0)
    assert script.base_url in pauses.server


async def test_a_server_that_does_nothing_but_refuse_is_ill_in_the_end(script):
    script.answers = [refusal(429, "too much")]
    async with remote(script, trip_after=2, max_retries=0) as engine:
        upstreams = engine._upstreams
        refused = UpstreamError("too much", http_status=429, retryable=True)
        assert not upstreams.is_failure(refused)
        upstreams._refused_s = lambda: 61.0
        assert upstreams.is_failure(refused)
