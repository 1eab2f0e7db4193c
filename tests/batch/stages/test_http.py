"""The HTTP processor, on a real server on loopback."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

import penstock
from penstock.batch import HttpRequestProcessorConfig, build_processor
from penstock.errors import ConfigError, JobError, JobLimitError


@asynccontextmanager
async def serving(handler):
    app = web.Application()
    app.router.add_route("*", "/", handler)
    async with TestServer(app) as server:
        yield str(server.make_url("/"))


async def echo(request):
    body = await request.json()
    if body["n"] == "bad":
        return web.json_response({"why": "because"}, status=422)
    return web.json_response({"got": body["n"]})


def processor(url, **config):
    return build_processor(
        HttpRequestProcessorConfig(url=url, **config),
        preprocess=lambda row: {"payload": {"n": row["n"]}},
        postprocess=lambda row: {"n": row["n"], "got": row["http_response"]["got"]},
    )


async def all_of(stream):
    return [row async for row in stream]


async def test_rows_come_one_to_one_and_in_order():
    async with serving(echo) as url:
        made = processor(url)
        assert made.list_stage_names() == ["HttpRequestStage"]
        assert await all_of(made([{"n": n} for n in range(200)])) == [
            {"n": n, "got": n} for n in range(200)
        ]


def test_mistakes_show_when_it_is_built():
    for config, message in (
        ({"url": "h/"}, "url: must be an http:// or https:// URL"),
        ({"url": "http://h/", "headers": {"X": 1}}, "headers.X: must be a text, not int"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_processor(HttpRequestProcessorConfig(**config))


async def test_a_plain_loop_has_no_event_loop():
    async with serving(echo) as url:
        found = await asyncio.to_thread(processor(url)([{"n": 1}]).take_all)
    assert found == [{"n": 1, "got": 1}]


async def test_a_refusal_is_an_error_of_its_row():
    rows = [{"n": 1}, {"n": "bad"}, {"n": 3}]
    async with serving(echo) as url:
        with pytest.raises(JobError, match="row 1 failed at stage HttpRequestStage"):
            await all_of(processor(url)(rows))
        found = await all_of(processor(url, should_continue_on_error=True)(rows))
    assert [row["status"] for row in found] == ["ok", "error", "ok"]
    error = found[1]["error"]
    assert (error["status"], json.loads(error["body"])) == (422, {"why": "because"})
    assert found[1]["n"] == "bad"


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ({}, 64),
        ({"batch_size": 5}, 5),
        ({"concurrency": 3, "batch_size": 4}, 12),
        ({"http_request_stage": {"batch_size": 7}}, 7),
    ],
)
async def test_so_many_requests_are_under_way(config, most):
    here, seen = 0, 0
    full = asyncio.Event()

    async def handler(request):
        nonlocal here, seen
        here += 1
        seen = max(seen, here)
        if seen == most:
            full.set()
        await full.wait()
        here -= 1
        return web.json_response({"got": 1})

    async with serving(handler) as url:
        await all_of(processor(url, **config)([{"n": n} for n in range(100)]))
    assert seen == most


async def test_a_journaled_job_asks_no_row_twice(tmp_path):
    asked: list[int] = []
    fail_at = 60

    async def handler(request):
        number = (await request.json())["n"]
        asked.append(number)
        return web.json_response({"got": number}, status=400 if number == fail_at else 200)

    rows = [{"n": n} for n in range(100)]
    async with serving(handler) as url:
        made = processor(url, batch_size=4)
        with pytest.raises(JobError, match="row 60"):
            await penstock.arun(rows, tmp_path / "out.jsonl", processor=made, progress=False)
        fail_at = -1
        before = len(asked)
        await penstock.arun(rows, tmp_path / "out.jsonl", processor=made, progress=False)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines == [{"n": n, "got": n} for n in range(100)]
    assert before + 30 < len(asked) < 110


async def test_keys_are_written_nowhere(tmp_path, monkeypatch, caplog):
    """Neither those in headers nor those in the address, whatever the endpoint repeats of them."""
    monkeypatch.setenv("MY_KEY", "sesame-1")

    async def refuse(request):
        return web.json_response(
            {"error": f"no: {request.headers['Authorization']}, {request.url}"}, status=401
        )

    headers = {"Authorization": "Bearer ${MY_KEY}", "X-Api-Key": "sesame-2"}
    async with serving(refuse) as url:
        made = processor(
            f"{url}?api_key=sesame-3&page=2", headers=headers, should_continue_on_error=True
        )
        with caplog.at_level("DEBUG"):
            result = await penstock.arun(
                [{"n": 1}], tmp_path / "out.jsonl", processor=made, progress=False
            )
    (row,) = result.rows()
    assert row["error"]["status"] == 401
    assert "no: ***" in row["error"]["body"]
    assert "page=2" in row["error"]["body"]
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(kept) > 2
    assert b"sesame" not in b"".join(kept)
    logged = [
        record.getMessage() for record in caplog.records if record.name.startswith("penstock")
    ]
    assert "sesame" not in f"{made!r} {made.config!r} {logged} {row}"


async def test_tokens_that_answers_tell_of_are_counted(tmp_path):
    """And so `max_tokens_total` holds for endpoints too."""

    async def handler(request):
        usage = {
            "prompt_tokens": 6,
            "completion_tokens": 4,
            "prompt_tokens_details": {"cached_tokens": 2},
        }
        return web.json_response({"got": (await request.json())["n"], "usage": usage})

    rows, output = [{"n": n} for n in range(100)], tmp_path / "out.jsonl"
    async with serving(handler) as url:
        made = processor(url, batch_size=4)
        with pytest.raises(JobLimitError, match="max_tokens_total is 300"):
            await penstock.arun(rows, output, processor=made, progress=False, max_tokens_total=300)
        result = await penstock.arun(rows, output, processor=made, progress=False)
    counts, asked = result.counts, 100 - result.counts.resumed
    assert 60 < asked < 75
    assert (counts.prompt_tokens, counts.completion_tokens, counts.cached_tokens) == (
        6 * asked,
        4 * asked,
        2 * asked,
    )
    assert [json.loads(line)["got"] for line in output.read_text().splitlines()] == list(range(100))


async def test_cancelling_closes_the_connections():
    arrived = asyncio.Event()
    servers: set = set()

    async def handle(reader, writer):
        servers.add(asyncio.current_task())
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        await reader.read()  # to the end of what the client sends: until it closes the connection
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        before = asyncio.all_tasks()
        task = asyncio.create_task(all_of(processor(url)([{"n": 1}])))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() - servers == before  # nobody is left who asks
        await asyncio.gather(*servers)
