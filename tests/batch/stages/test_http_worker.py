"""The HTTP stage's worker against a real server on loopback."""

import asyncio
import json
import sys
from contextlib import asynccontextmanager

import aiohttp
import numpy
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from import_time import modules_added
from penstock.batch import HttpRequestProcessorConfig, build_processor
from penstock.batch.stages.http_worker import HttpRequests
from penstock.errors import (
    ConfigError,
    EngineDeadError,
    MissingExtraError,
    RequestError,
    UpstreamError,
)


@asynccontextmanager
async def worker(handler, **options):
    """A started worker whose every request `handler` answers."""
    app = web.Application()
    app.router.add_route("*", "/", handler)
    async with TestServer(app) as server:
        made = HttpRequests(str(server.make_url("/")), **options)
        await made.start()
        try:
            yield made
        finally:
            await made.stop()


async def echo(request):
    return web.json_response({"got": await request.json(), "type": request.content_type})


async def test_payloads_are_sent_as_json_and_answers_are_decoded():
    async with worker(echo) as made:
        answer = await made.process({"payload": {"a": [1, None, "ü"]}, "other": 1})
    assert answer == {"http_response": {"got": {"a": [1, None, "ü"]}, "type": "application/json"}}


@pytest.mark.parametrize(
    ("payload", "got"),
    [
        ({"a": numpy.arange(3)}, {"a": [0, 1, 2]}),
        ({"a": numpy.float32(0.5)}, {"a": 0.5}),
        ('{"a": 1}', {"a": 1}),
        (b"[1]", [1]),
        ([1], [1]),
    ],
)
async def test_what_can_be_a_payload(payload, got):
    async with worker(echo) as made:
        assert (await made.process({"payload": payload}))["http_response"]["got"] == got


async def test_what_json_cannot_hold_is_sent_as_a_form():
    async def look(request):
        found = {}
        async for part in await request.multipart():
            found[part.name] = [
                part.filename,
                part.headers["content-type"],
                (await part.read()).decode(),
            ]
        again = len(tries) < 2
        tries.append(1)
        return web.json_response(found, status=500 if again else 200)

    tries: list[int] = []
    named = {"content": b"RIFF", "filename": "a.wav", "content_type": "audio/wav"}
    payload = {
        "model": "m",
        "file": named,
        "raw": bytearray(b"xy"),
        "n": 2,
        "of": {"content": "text"},
        "lines": {"content": "{}", "filename": "a.jsonl"},
    }
    headers = {"Content-Type": "application/json", "X-Mine": "yes"}
    async with worker(look, headers=headers, max_retries=2, base_retry_wait_time_in_s=0) as made:
        found = (await made.process({"payload": payload}))["http_response"]
    assert len(tries) == 3
    assert found == {
        "model": [None, "text/plain; charset=utf-8", "m"],
        "file": ["a.wav", "audio/wav", "RIFF"],
        "raw": ["raw", "application/octet-stream", "xy"],
        "n": [None, "text/plain; charset=utf-8", "2"],
        "of": [None, "text/plain; charset=utf-8", '{"content":"text"}'],
        "lines": ["a.jsonl", "application/octet-stream", "{}"],
    }


@pytest.mark.parametrize("own_session", [False, True])
async def test_the_content_type_of_json_can_be_another(own_session):
    async def look(request):
        return web.json_response(
            [request.headers.getall("content-type"), request.headers["X-Mine"]]
        )

    options: dict = {"headers": {"content-type": "application/vnd.mine+json", "X-Mine": "yes"}}
    if own_session:
        options["session_factory"] = aiohttp.ClientSession
    async with worker(look, **options) as made:
        assert (await made.process({"payload": {}}))["http_response"] == [
            ["application/vnd.mine+json"],
            "yes",
        ]


@pytest.mark.parametrize("number", [float("nan"), numpy.float32("-inf")])
async def test_a_number_that_json_has_not_is_refused_and_its_name_is_none(number):
    async with worker(echo) as made:
        with pytest.raises(RequestError, match="that JSON has not"):
            await made.process({"payload": {"a": ["NaN", {"b": number}]}})
        named = await made.process({"payload": ["NaN", "Infinity"]})
    assert named["http_response"]["got"] == ["NaN", "Infinity"]


@pytest.mark.parametrize("row", [{}, {"payload": None}, {"payload": {"a": object()}}])
async def test_a_row_without_a_payload_is_a_bad_row(row):
    async with worker(echo) as made:
        with pytest.raises(RequestError, match="payload"):
            await made.process(row)


async def test_requests_are_under_way_together_up_to_the_concurrency():
    running = most = 0
    together = asyncio.Event()

    async def slow(request):
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 8:
            together.set()
        await together.wait()
        running -= 1
        return web.json_response(None)

    async with worker(slow, concurrency=8) as made:
        async with asyncio.timeout(10):
            await asyncio.gather(*(made.process({"payload": {}}) for _ in range(40)))
    assert most == 8


async def test_bad_statuses_are_errors_with_status_and_body():
    async def refuse(request):
        return web.json_response({"error": {"message": "no such thing"}}, status=422)

    async with worker(refuse) as made:
        with pytest.raises(UpstreamError, match="answered 422: no such thing") as caught:
            await made.process({"payload": {}})
    assert caught.value.http_status == 422
    assert json.loads(caught.value.body) == {"error": {"message": "no such thing"}}
    assert not caught.value.retryable


@pytest.mark.parametrize(("retries", "answers"), [(0, False), (1, False), (2, True)])
async def test_max_retries_is_kept(retries, answers):
    calls = 0

    async def sometimes(request):
        nonlocal calls
        calls += 1
        return web.json_response(calls, status=200 if calls == 3 else 500)

    async with worker(sometimes, max_retries=retries, base_retry_wait_time_in_s=0) as made:
        if answers:
            assert await made.process({"payload": {}}) == {"http_response": 3}
        else:
            with pytest.raises(UpstreamError):
                await made.process({"payload": {}})
            assert calls == retries + 1


async def test_refusals_for_load_are_waited_out_whatever_max_retries_says():
    calls = 0

    async def busy(request):
        nonlocal calls
        calls += 1
        if calls < 4:
            return web.Response(status=429, headers={"Retry-After": "0.01"})
        return web.json_response("done")

    async with worker(busy, base_retry_wait_time_in_s=0) as made:
        assert await made.process({"payload": {}}) == {"http_response": "done"}
    assert calls == 4


async def test_a_byte_order_mark_before_the_answer_is_no_fault():
    async def marked(request):
        return web.Response(body=b'\xef\xbb\xbf{"a": 1}', content_type="application/json")

    async with worker(marked) as made:
        assert await made.process({"payload": {}}) == {"http_response": {"a": 1}}


@pytest.mark.parametrize(
    ("body", "shown"), [(b"<html>", "<html>"), (b"\xff", "\ufffd"), (b"a sk-12345 b", "a *** b")]
)
async def test_an_answer_that_is_not_json_is_an_error(body, shown):
    async def page(request):
        return web.Response(body=body, content_type="text/html")

    async with worker(page, headers={"Authorization": "Bearer sk-12345"}) as made:
        with pytest.raises(
            UpstreamError, match=r"answered 200 with text/html.*, not JSON"
        ) as caught:
            await made.process({"payload": {}})
    assert caught.value.body == shown


@pytest.mark.parametrize(
    ("answer", "says", "asked"),
    [
        ({"error": {"message": "sk-12345 is down", "code": 502}}, r"an error: \*\*\* is down", 2),
        ({"error": "it broke"}, "it broke", 2),
        ({"error": {"message": "no", "code": "insufficient_quota"}}, "an error: no", 1),
        ({"error": {"message": "no", "code": 400}, "choices": None}, "an error: no", 1),
    ],
)
async def test_an_error_with_status_200_is_one_and_retried_by_its_code(answer, says, asked):
    calls = 0

    async def serve(request):
        nonlocal calls
        calls += 1
        return web.json_response(answer)

    options = {"max_retries": 1, "base_retry_wait_time_in_s": 0}
    async with worker(serve, headers={"Authorization": "Bearer sk-12345"}, **options) as made:
        with pytest.raises(UpstreamError, match=says) as caught:
            await made.process({"payload": {}})
    assert "sk-12345" not in caught.value.body
    assert calls == asked


@pytest.mark.parametrize(
    "answer",
    [
        {"error": 0.02},
        {"error": None, "a": 1},
        {"error": "x", "score": 1},
        {"error": {"rate": 1}},
        ["error"],
    ],
)
async def test_an_answer_may_have_a_field_of_that_name(answer):
    async def serve(request):
        return web.json_response(answer)

    async with worker(serve) as made:
        assert await made.process({"payload": {}}) == {"http_response": answer}


@pytest.mark.parametrize("pause", ["3600", "Fri, 31 Dec 9999 23:59:59 GMT"])
async def test_a_long_pause_is_not_waited_and_holds_nobody_up(pause):
    async def serve(request):
        if (await request.json())["bad"]:
            return web.Response(status=429, headers={"Retry-After": pause})
        return web.json_response("fine")

    async with worker(serve, max_retries=5) as made:
        with pytest.raises(UpstreamError, match="asks for a pause of") as caught:
            await made.process({"payload": {"bad": True}})
        assert caught.value.retryable
        assert await made.process({"payload": {"bad": False}}) == {"http_response": "fine"}


async def test_after_the_stop_it_says_so():
    async with worker(echo) as made:
        await made.stop()
        with pytest.raises(EngineDeadError):
            await made.process({"payload": {}})


async def test_an_empty_answer_is_none():
    async def nothing(request):
        return web.Response(status=204)

    async with worker(nothing) as made:
        assert await made.process({"payload": {}}) == {"http_response": None}


async def test_methods_headers_columns_and_session_are_the_callers():
    made_sessions = []

    def factory():
        made_sessions.append(aiohttp.ClientSession(headers={"X-Session": "mine"}))
        return made_sessions[0]

    async def look(request):
        return web.json_response(
            [request.method, request.headers["X-Mine"], request.headers["X-Session"]]
        )

    options = {
        "method": "PUT",
        "headers": {"X-Mine": "yes"},
        "payload_column": "body",
        "output_column": "out",
    }
    async with worker(look, session_factory=factory, **options) as made:
        assert await made.process({"body": {}}) == {"out": ["PUT", "yes", "mine"]}
    assert made_sessions[0].closed


async def test_a_session_that_raises_for_a_status_loses_neither_status_nor_body():
    async def refuse(request):
        return web.Response(status=422, text="because")

    async with worker(
        refuse, session_factory=lambda: aiohttp.ClientSession(raise_for_status=True)
    ) as made:
        with pytest.raises(UpstreamError, match="answered 422: because") as caught:
            await made.process({"payload": {}})
    assert (caught.value.http_status, caught.value.body) == (422, "because")


async def test_a_factory_that_makes_no_session_is_named():
    made = HttpRequests("http://127.0.0.1:1/", session_factory=lambda: None)
    with pytest.raises(
        ConfigError, match="session_factory: must make an aiohttp session, not a NoneType"
    ):
        await made.start()
    await made.stop()


async def test_a_processor_gives_answers_and_error_rows_with_status_and_body():
    async def sometimes(request):
        number = (await request.json())["number"]
        if number % 5 == 0:
            return web.json_response({"error": {"message": f"not {number}"}}, status=422)
        return web.json_response({"twice": 2 * number})

    async with worker(sometimes) as made:
        config = HttpRequestProcessorConfig(url=made.options.url, should_continue_on_error=True)
        processor = build_processor(
            config, preprocess=lambda row: {"payload": {"number": row["n"]}}
        )
        rows = [row async for row in processor([{"n": number} for number in range(20)])]
    assert [row["n"] for row in rows] == list(range(20))
    for row in rows:
        if row["n"] % 5:
            assert (row["status"], row["http_response"]) == ("ok", {"twice": 2 * row["n"]})
        else:
            assert row["status"] == "error"
            assert row["error"]["type"] == "upstream_error"
            assert row["error"]["status"] == 422
            assert json.loads(row["error"]["body"]) == {"error": {"message": f"not {row['n']}"}}


async def test_tokens_are_charged_by_what_the_answer_tells():
    async def used(request):
        return web.json_response({"usage": {"total_tokens": 1000}})

    async with worker(used, tokens_per_minute=60_000_000) as made:
        charged: list[float] = []
        made._limiter.charge = charged.append
        await made.process({"payload": {"prompt": "x" * 387}})
        await made.process({"payload": {"prompt": "x" * 371, "max_tokens": 50}})
    assert charged == [1000 - 400 / 4, 1000 - (400 / 4 + 50)]


@pytest.mark.parametrize(
    ("options", "per_minute"),
    [
        ({"qps": 100}, 6000),
        ({"qps": 1, "requests_per_minute": 30}, 30),
        ({"qps": 100, "processes": 4}, 1500),
    ],
)
async def test_rates_are_the_strictest_and_each_process_has_its_share(options, per_minute):
    async with worker(echo, **options) as made:
        assert made._limiter.limits.requests_per_minute == per_minute


async def test_two_workers_of_one_server_share_their_limits():
    async with worker(echo) as one:
        other = HttpRequests(one.options.url)
        await other.start()
        shared = one._limiter
        assert other._limiter is shared is not None
        assert shared.window == 128
        await other.stop()
        assert shared.window == 64


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"url": "nowhere"}, "must be an http://"),
        ({"url": "http://h", "qsp": 1}, "Did you mean 'qps'"),
        ({"url": "http://h", "qps": 0}, "http_request.qps"),
        ({"url": "http://h", "method": "GET"}, "http_request.method"),
        ({"url": "http://h", "headers": {"X-Mine": 3}}, "headers.X-Mine: must be a text, not int"),
    ],
)
def test_wrong_options_name_their_field(options, hint):
    with pytest.raises(ConfigError, match=hint):
        HttpRequests(**options)


def test_keys_are_not_shown():
    made = HttpRequests(
        "http://user:pass@h", headers={"Authorization": "Bearer sk-secret-1", "X-Team": "shown"}
    )
    assert "sk-secret-1" not in repr(made.options)
    assert "pass" not in repr(made.options)
    assert "shown" in repr(made.options)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    monkeypatch.delitem(sys.modules, "penstock.http.client", raising=False)
    with pytest.raises(MissingExtraError, match=r"pip install 'penstock\[http\]'"):
        HttpRequests("http://h")


def test_importing_it_loads_no_http_library():
    assert not {"aiohttp", "pyarrow"} & modules_added("import penstock.batch.stages.http_worker")
