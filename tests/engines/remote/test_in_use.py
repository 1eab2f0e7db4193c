"""The remote engine where engines are used: under a batch job, and under a server before another
server.
"""

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest

import penstock
from penstock.engines.remote.engine import RemoteEngine
from penstock.errors import JobError
from penstock.testing import GREEDY, answer
from penstock.types import CompletionRequest
from scripted_api import penstock_serve, simulated

ROWS = [{"text": f"row {number}"} for number in range(40)]


def front(base_url, model_id="front", **options):
    """A served model that is somewhere else."""
    loading = {"model_id": model_id, "model_source": "sim"}
    given = {"base_url": base_url, **options}
    return {"model_loading_config": loading, "llm_engine": "remote", "engine_kwargs": given}


def answers_of(result):
    rows = list(result.rows())
    assert [row["status"] for row in rows] == ["ok"] * len(rows), rows
    return [row["response"] for row in rows]


@pytest.fixture(scope="module")
def upstream():
    with penstock_serve(simulated(output_tokens=12)) as url:
        yield url


def test_a_job_gives_what_the_engine_itself_gives(upstream):
    asked: Any = {"prompt": "{text}", "max_tokens": 8}
    options = {"base_url": upstream}
    remote = penstock.run(ROWS, engine="remote", engine_kwargs=options, **asked)
    local = penstock.run(ROWS, engine="simulated", engine_kwargs={"output_tokens": 12}, **asked)
    assert answers_of(remote) == answers_of(local)
    assert next(row["usage"] for row in remote.rows())["completion_tokens"] == 8


def test_a_job_goes_on_where_the_server_has_moved_and_its_manifest_holds_no_key(upstream, tmp_path):
    output = tmp_path / "out.jsonl"
    asked: Any = {
        "engine": "remote",
        "model": "sim",
        "prompt": "{text}",
        "max_tokens": 4,
        "progress": False,
    }
    secret = {"Authorization": "Bearer sk-very-secret-1234"}
    penstock.run(ROWS, output, engine_kwargs={"base_url": upstream, "headers": secret}, **asked)
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"sk-very-secret" not in file.read_bytes()
    again = penstock.run(ROWS, output, engine_kwargs={"base_url": "http://127.0.0.1:1/v1"}, **asked)
    assert again.already_complete


async def test_a_job_stops_where_no_server_is_left_and_goes_on_when_one_is(script, tmp_path):
    said = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}

    async def last(request):
        request.transport.abort()
        stopping.append(asyncio.create_task(script.stop()))

    stopping: list[Any] = []
    script.answers = [*[said] * 10, last]
    options = {
        "base_url": script.base_url,
        "patience_s": 0,
        "trip_after": 1,
        "base_retry_wait_s": 0,
        "concurrency": 2,
    }
    asked: Any = {
        "engine": "remote",
        "model": "m",
        "engine_kwargs": options,
        "prompt": "{text}",
        "progress": False,
    }
    output = tmp_path / "out.jsonl"
    with pytest.raises(JobError, match="cannot be reached"):
        await penstock.arun(ROWS, output, **asked)
    await asyncio.gather(*stopping)
    await script.start()
    script.answers = [said]
    before = len(script.asked)
    result = await penstock.arun(ROWS, output, **asked)
    assert (result.counts.ok, result.counts.errors) == (40, {})
    assert result.counts.resumed >= 10
    assert len(script.asked) - before == 40 - result.counts.resumed


def test_a_job_with_a_schema(upstream):
    schema = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}
    result = penstock.run(
        ROWS[:5],
        engine="remote",
        engine_kwargs={"base_url": upstream},
        prompt="{text}",
        schema=schema,
    )
    assert all(isinstance(row["sure"], bool) for row in result.rows())


def test_a_server_in_front_of_a_server_answers_alike(upstream):
    ask = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0, "seed": 1}
    with penstock_serve(front(upstream)) as url, httpx.Client() as client:

        def post(base, model, path="/chat/completions", **more):
            answer = client.post(base + path, json={"model": model, **ask, **more})
            assert answer.status_code == 200, answer.text
            return answer

        def streamed(base, model):
            text, reasons = "", []
            usage: Any = None
            options = {"stream": True, "stream_options": {"include_usage": True}}
            for line in post(base, model, **options).text.splitlines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    usage = event["usage"] or usage
                    for choice in event["choices"]:
                        text += choice["delta"].get("content") or ""
                        reasons.append(choice["finish_reason"])
            return text, usage["completion_tokens"], reasons[-1]

        theirs, ours = (post(*one).json() for one in ((upstream, "sim"), (url, "front")))
        assert ours["choices"] == theirs["choices"]
        assert ours["model"] == "front"
        assert ours["usage"]["completion_tokens"] == theirs["usage"]["completion_tokens"] == 12
        assert streamed(upstream, "sim") == streamed(url, "front")
        assert streamed(url, "front")[0] == ours["choices"][0]["message"]["content"]
        tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
        called = [
            post(base, model, tools=tools, tool_choice="required").json()["choices"][0]
            for base, model in ((upstream, "sim"), (url, "front"))
        ]
        assert (
            called[0]["message"]["tool_calls"][0]["function"]
            == called[1]["message"]["tool_calls"][0]["function"]
        )
        assert post(url, "front", max_tokens=10**6).json()["choices"] == ours["choices"]
        long = {"messages": [{"role": "user", "content": "word " * 10**4}]}
        refused = client.post(f"{url}/chat/completions", json={"model": "front", **ask, **long})
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "context_length_exceeded"
        card = client.get(f"{url}/models/front").json()
        assert (card["engine"], card["state"], card["max_model_len"]) == ("remote", "ready", 32768)


def test_openais_client_reads_what_is_handed_on(upstream):
    with (
        penstock_serve(front(upstream)) as url,
        openai.OpenAI(base_url=url, api_key="none") as client,
    ):
        asked: Any = {
            "model": "front",
            "messages": [{"role": "user", "content": "hello"}],
            "temperature": 0,
        }
        whole = client.chat.completions.create(**asked)
        chunks = list(
            client.chat.completions.create(
                **asked, stream=True, stream_options={"include_usage": True}
            )
        )
        assert {(chunk.id, chunk.model, chunk.created) for chunk in chunks} == {
            (chunks[0].id, "front", chunks[0].created)
        }
        text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage == whole.usage
        assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][
            -1
        ] == whole.choices[0].finish_reason


def test_a_wrong_model_is_a_reason_not_to_start(upstream):
    config = front(upstream)
    config["model_loading_config"]["model_source"] = "sin"
    config["deployment_config"] = {"autoscaling_config": {"min_replicas": 0}}
    with penstock_serve(config) as url, httpx.Client() as client:
        ask = {"model": "front", "messages": [{"role": "user", "content": "x"}]}
        answer = client.post(f"{url}/chat/completions", json=ask)
        assert answer.status_code == 503
        assert "Did you mean 'sim'" in answer.json()["error"]["message"]


async def test_a_client_that_goes_away_frees_the_slot_of_the_last_server():
    endless = simulated(output_tokens=30_000, time_per_token_ms=1)
    with penstock_serve(endless) as upstream, penstock_serve(front(upstream)) as url:
        ask = {"model": "front", "messages": [{"role": "user", "content": "x"}], "stream": True}
        async with httpx.AsyncClient() as client:
            async with client.stream("POST", f"{url}/chat/completions", json=ask) as answer:
                async for _ in answer.aiter_lines():
                    break
            async with asyncio.timeout(20):
                while not await _idle(client, upstream):  # noqa: ASYNC110 - nobody announces it
                    await asyncio.sleep(0.01)


async def _idle(client, upstream):
    """Whether the server has counted a request that its client left."""
    text = (await client.get(upstream.removesuffix("/v1") + "/metrics")).text
    return any('status="499"' in line for line in text.splitlines())


async def test_a_prompt_that_a_template_has_made_is_understood(upstream):
    engine = RemoteEngine("sim", engine_kwargs={"base_url": upstream})
    await engine.start()
    made = [
        await answer(engine, CompletionRequest("x", GREEDY, special_tokens=own))
        for own in (True, False)
    ]
    await engine.stop()
    assert made[0].texts == made[1].texts  # the simulated tokenizer has none to add


async def test_hundreds_of_requests_through_a_few_connections(upstream):
    engine = RemoteEngine("sim", engine_kwargs={"base_url": upstream, "concurrency": 8})
    result = await penstock.arun(
        [{"text": str(number)} for number in range(300)],
        engine=engine,
        prompt="{text}",
        max_tokens=4,
    )
    assert len(answers_of(result)) == 300
