"""Servers that answer with a bare 429, always or to some: on a clock that does not wait."""

import asyncio
import json

import httpx
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

import penstock
from penstock.balance.backoff import is_served
from penstock.batch.stages.http_worker import HttpRequests
from penstock.engines.remote.engine import RemoteEngine
from penstock.errors import JobError, OverloadedError, TooManyRequestsError, UpstreamError
from penstock.llm_config import LLMConfig
from penstock.serve.api.ingress import OpenAiIngress
from penstock.serve.models.local import build_local_handles
from penstock.testing import answer, chat_request
from penstock.types import Sampling
from scripted_api import USAGE, Script, chunk, sse
from warped_time import run_warped

SAID = {
    "choices": [{"index": 0, "message": {"content": "yes"}, "finish_reason": "stop"}],
    "usage": USAGE["usage"],
}
INSIDE = {"error": {"message": "slow down", "code": 429}}


def server(refused, headers=None, inside=False):
    """Answers "yes", but where `refused` says so of a text with 429 and nothing more."""

    async def serve(request):
        body = await request.json()
        if not refused(body["messages"][-1]["content"]):
            if body.get("stream"):
                return await sse(chunk(content="yes"), chunk(reason="stop"), USAGE)(request)
            return web.json_response(SAID)
        if not inside:
            return web.Response(status=429, headers=headers)
        return await sse(INSIDE)(request) if body.get("stream") else web.json_response(INSIDE)

    return serve


def bad(text):
    return text.startswith("bad")


def rows(last="fine"):
    """30 of 36 are fine."""
    return [f"bad {n}" if n % 6 == 2 else f"fine {n}" for n in range(36)] + [f"{last} last"]


def timed(refused, main, **options):
    """What `main` gives of a script whose server does so, and how long it took on the loop's
    clock.
    """

    async def run():
        script = Script()
        await script.start()
        script.answers = [server(refused, **options)]
        began = asyncio.get_running_loop().time()
        try:
            return await main(script), asyncio.get_running_loop().time() - began
        finally:
            await script.stop()

    return run_warped(run())


async def outcomes(engine, texts, **more):
    asked = (answer(engine, chat_request(text, Sampling(), **more)) for text in texts)
    return await asyncio.gather(*asked, return_exceptions=True)


@pytest.mark.parametrize("concurrency", [1, 64])
@pytest.mark.parametrize("inside", [False, True], ids=["status", "inside"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_who_is_refused_alone_is_given_up_in_seconds(concurrency, inside, stream):
    async def main(script):
        engine = RemoteEngine(
            "m", engine_kwargs={"base_url": script.base_url, "concurrency": concurrency}
        )
        await engine.start()
        try:
            return await outcomes(engine, rows(), stream=stream)
        finally:
            await engine.stop()

    results, seconds = timed(bad, main, inside=inside)
    for text, result in zip(rows(), results, strict=True):
        if text.startswith("bad"):
            assert isinstance(result, TooManyRequestsError)
            assert result.given_up
            assert ("slow down" if inside else "answered 429: Too Many Requests") in str(result)
        else:
            assert result.texts[0] == "yes"
    assert seconds < 30


@pytest.mark.parametrize("last", ["fine", "bad"])
def test_a_job_makes_error_rows_of_them_and_says_so(last):
    async def main(script):
        return await penstock.arun(
            [{"text": text} for text in rows(last)],
            engine="remote",
            model="m",
            prompt="{text}",
            engine_kwargs={"base_url": script.base_url},
            progress=False,
        )

    result, seconds = timed(bad, main)
    wrong = [row for row in result.rows() if row["error"]]
    assert {row["text"] for row in wrong} == {text for text in rows(last) if bad(text)}
    assert {
        (row["error"]["type"], row["error"]["retryable"], row["attempts"]) for row in wrong
    } == {("rate_limit_exceeded", True, 1)}
    assert result.counts.pauses.given_up == len(wrong)
    assert seconds < (30 if last == "fine" else 90)


def test_a_server_that_is_full_for_a_minute_costs_no_row():
    async def main(script):
        began = asyncio.get_running_loop().time()
        script.answers = [server(lambda text: asyncio.get_running_loop().time() < began + 55)]
        return await penstock.arun(
            [{"text": text} for text in rows()],
            engine="remote",
            model="m",
            prompt="{text}",
            engine_kwargs={"base_url": script.base_url},
            progress=False,
        )

    result, seconds = timed(bad, main)
    assert result.counts.failed == 0
    assert 55 < seconds < 120
    assert result.counts.pauses.count


def test_a_server_that_refuses_everybody_ends_a_job_with_what_it_said():
    async def main(script):
        with pytest.raises(JobError, match=r"no server answers: .*answered 429"):
            await penstock.arun(
                [{"text": f"row {n}"} for n in range(400)],
                engine="remote",
                model="m",
                prompt="{text}",
                engine_kwargs={"base_url": script.base_url},
                progress=False,
            )

    _, seconds = timed(lambda text: True, main)
    assert 60 < seconds < 300


@pytest.mark.parametrize("everybody", [False, True])
@pytest.mark.parametrize(
    ("headers", "stream", "inside"),
    [
        (None, False, False),
        (None, True, False),
        (None, True, True),
        ({"Retry-After": "20"}, False, False),
        ({"Retry-After": "3600"}, True, False),
    ],
)
def test_a_served_request_gets_a_429_within_seconds(headers, stream, inside, everybody):
    async def main(script):
        loading = {"model_id": "m", "model_source": "m"}
        config = {"model_loading_config": loading, "llm_engine": "remote"}
        config["engine_kwargs"] = {
            "base_url": script.base_url,
            "discover": False,
            "tasks": ["chat"],
        }
        handles = build_local_handles([LLMConfig.from_dict(config)])
        await asyncio.gather(*(handle.start() for handle in handles.values()))
        transport = httpx.ASGITransport(OpenAiIngress(handles))
        try:
            async with httpx.AsyncClient(
                transport=transport, base_url="http://test", timeout=None
            ) as client:

                async def ask(text):
                    began = asyncio.get_running_loop().time()
                    body = {
                        "model": "m",
                        "messages": [{"role": "user", "content": text}],
                        "stream": stream,
                    }
                    reply = await client.post("/v1/chat/completions", json=body)
                    return reply, asyncio.get_running_loop().time() - began

                return await asyncio.gather(*(ask(text) for text in rows()))
        finally:
            await asyncio.gather(*(handle.stop() for handle in handles.values()))

    results, _ = timed(
        (lambda text: True) if everybody else bad, main, headers=headers, inside=inside
    )
    for text, (reply, seconds) in zip(rows(), results, strict=True):
        assert seconds < 15, text
        if reply.status_code != 200:
            assert reply.status_code == 429
            assert int(reply.headers["retry-after"]) >= 1
            assert json.loads(reply.text)["error"]["code"] == "rate_limit_exceeded"
        if everybody or bad(text):
            assert reply.status_code == 429


def test_http_rows_that_are_refused_alone_are_given_up_in_seconds():
    async def main():
        async def serve(request):
            body = await request.json()
            return web.Response(status=429) if bad(body["text"]) else web.json_response("yes")

        app = web.Application()
        app.router.add_post("/", serve)
        async with TestServer(app) as at:
            worker = HttpRequests(str(at.make_url("/")))
            await worker.start()
            began = asyncio.get_running_loop().time()
            try:
                asked = (worker.process({"payload": {"text": text}}) for text in rows())
                results = await asyncio.gather(*asked, return_exceptions=True)
            finally:
                await worker.stop()
            return results, asyncio.get_running_loop().time() - began

    results, seconds = run_warped(main())
    for text, result in zip(rows(), results, strict=True):
        assert isinstance(result, UpstreamError) == bad(text), (text, result)
        assert not bad(text) or result.given_up
    assert seconds < 30


def test_a_named_pause_of_up_to_a_minute_is_waited_by_a_job_and_told_to_the_served():
    async def main(script):
        began = asyncio.get_running_loop().time()
        script.answers = [
            server(
                lambda text: asyncio.get_running_loop().time() < began + 45,
                headers={"Retry-After": "45"},
            )
        ]
        engine = RemoteEngine("m", engine_kwargs={"base_url": script.base_url})
        await engine.start()
        try:
            (result,) = await outcomes(engine, ["fine"])
            assert len(script.asked) == 2
            began = asyncio.get_running_loop().time()
            token = is_served.set(True)
            first, second = await outcomes(engine, ["fine"]), await outcomes(engine, ["fine"])
            is_served.reset(token)
            return result, [*first, *second], len(script.asked)
        finally:
            await engine.stop()

    (waited, served, asked), _ = timed(bad, main)
    assert waited.texts[0] == "yes"
    assert all(isinstance(one, OverloadedError) and 44 < one.retry_after <= 45 for one in served)
    assert asked == 3  # the second one was not sent
