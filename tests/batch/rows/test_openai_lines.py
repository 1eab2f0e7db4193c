import asyncio
import json
import threading

import pytest

import penstock
from penstock.errors import ConfigError, ContextLengthError, EngineError, RequestError
from penstock.openai.parameters.body import parse_body
from penstock.types import Embeddings, Usage


def line(custom_id, body, url="/v1/chat/completions", **more):
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body, **more}


def chat(text, **more):
    return {
        "model": "any-name",
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        **more,
    }


async def answer(source, engine, output=None, **options):
    return await penstock.arun(source, output, engine=engine, progress=False, **options)


async def test_a_chat_line_and_its_answer(make_engine):
    result = await answer([line("a", chat("hello", max_tokens=7))], engine := make_engine())
    (row,) = result.rows()
    body = row["response"]["body"]
    assert row["custom_id"] == "a"
    assert row["id"].startswith("batch_req_")
    assert row["error"] is None
    assert row["response"]["status_code"] == 200
    assert row["response"]["request_id"].startswith("req_")
    assert body["object"] == "chat.completion"
    assert body["model"] == "any-name"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "HELLO"}
    assert body["usage"]["prompt_tokens"] == 5
    assert engine.requests[0].sampling.max_tokens == 7
    assert engine.requests[0].stream is False


async def test_completions_and_embeddings():
    source = [
        line("a", {"prompt": ["one", "two"], "max_tokens": 4}, "/v1/completions"),
        line("b", {"input": ["x", "y"], "dimensions": 3}, "/v1/embeddings"),
        line("c", chat("z", n=2, logprobs=True, seed=1)),
    ]
    result = await penstock.arun(source, model="simulated", progress=False)
    one, two, three = (row["response"]["body"] for row in result.rows())
    assert [choice["index"] for choice in one["choices"]] == [0, 1]
    assert all(len(choice["text"]) == 4 for choice in one["choices"])
    assert [len(item["embedding"]) for item in two["data"]] == [3, 3]
    assert [choice["index"] for choice in three["choices"]] == [0, 1]
    assert three["choices"][0]["logprobs"]["content"]


async def test_a_thread_reads_long_lines(monkeypatch):
    threads = []

    def noted(form, body):
        threads.append((len(body["messages"]), threading.current_thread()))
        return parse_body(form, body)

    monkeypatch.setattr("penstock.batch.rows.openai_lines.parse_body", noted)
    long = chat("hello", max_tokens=3)
    long["messages"] = long["messages"] * 5000
    wrong = {**long, "temperature": "hot"}
    source = [
        *[line("a", chat("hello")), line("b", long), line("c", chat("hello")), line("b", long)],
        *[line("d", wrong), line("e", long, url="/v1/nowhere"), {**line("f", long), "method": 1}],
    ]
    rows = list((await penstock.arun(source, model="simulated", progress=False)).rows())
    here = threading.current_thread()
    assert [(count, thread is here) for count, thread in threads] == [
        *[(1, True), (5000, False), (1, True)],
        *[(5000, False), (5000, False), (5000, False)],
    ]
    assert [row["custom_id"] for row in rows] == [*"abcbdef"]
    assert rows[1]["response"]["body"]["usage"]["completion_tokens"] == 3
    assert [row["response"] and row["response"]["status_code"] for row in rows[:3]] == [200] * 3
    assert rows[3]["error"]["message"] == "custom_id 'b' stands in an earlier line"
    assert rows[4]["response"]["body"]["error"]["param"] == "temperature"
    assert [row["error"]["message"].split()[0] for row in rows[5:]] == ["unknown", "method"]


URGENT = {"type": "predicate", "name": "urgent", "instructions": "Urgent?"}


async def test_decisions_and_bad_questions():
    two = [
        URGENT,
        {"type": "choice", "instructions": "Which?", "choices": [{"value": "a"}, {"value": "b"}]},
    ]
    lines = [
        line("a", {"model": "m", "input": "x", "questions": two}, "/v1/decisions"),
        line("b", {"model": "m", "input": "x", "questions": [URGENT, URGENT]}, "/v1/decisions"),
        line("c", {"model": "m:x", "input": "x", "questions": []}, "/v1/decisions"),
    ]
    result = await penstock.arun(lines, model="simulated", progress=False)
    one, same, none = (row["response"] for row in result.rows())
    assert [answer["type"] for answer in one["body"]["answers"]] == ["predicate", "choice"]
    assert one["body"]["answers"][0]["name"] == "urgent"
    assert one["body"]["usage"]["input_tokens"] > 0
    assert (same["status_code"], none["status_code"]) == (400, 400)
    assert "questions[1] ('urgent')" in same["body"]["error"]["message"]
    assert "1 to 400 questions" in none["body"]["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "x"}, "messages"),
        (chat("x", n="two"), "n"),
        (chat("x", nn=1), "nn"),
        (chat("x", stream=True), "stream"),
        (7, None),
    ],
)
async def test_a_bad_body_is_answered_with_400(make_engine, body, param):
    engine = make_engine()
    (row,) = (await answer([line("a", body)], engine)).rows()
    assert row["response"]["status_code"] == 400
    assert row["response"]["body"]["error"]["param"] == param
    assert row["error"] is None
    assert not engine.asked


async def test_errors_of_the_engine_have_their_status(make_engine):
    replies = {"long": ContextLengthError("too long"), "bad": EngineError("broken")}
    result = await answer([line(text, chat(text)) for text in replies], make_engine(replies.get))
    found = [
        (row["response"]["status_code"], row["response"]["body"]["error"]["code"])
        for row in result.rows()
    ]
    assert found == [(400, "context_length_exceeded"), (500, "engine_error")]
    assert result.counts.failed == 2


async def test_errors_name_what_the_line_has(make_engine):
    def refuse(_):
        raise RequestError("messages[1].content: no video", param="messages[1].content")

    turns = [{"role": "user", "content": "hi"}]
    source = [
        line("a", {"system": "s", "messages": turns, "max_tokens": 1}, "/v1/messages"),
        line("b", {"instructions": "s", "input": turns}, "/v1/responses"),
    ]
    rows = (await answer(source, make_engine(refuse))).rows()
    told = [row["response"]["body"]["error"]["message"] for row in rows]
    assert told == ["messages[0].content: no video", "input.content: no video"]


async def test_lines_that_are_wrong_themselves(make_engine, tmp_path):
    (tmp_path / "in.jsonl").write_text(
        "\n".join(
            [
                json.dumps(line("a", chat("x"))),
                "{broken",
                json.dumps(line("a", chat("y"))),
                json.dumps(line("", chat("y"))),
                json.dumps({**line("b", chat("y")), "method": "GET"}),
                json.dumps(line("c", chat("y"), "/v1/chat/completion")),
            ]
        )
    )
    result = await answer(tmp_path / "in.jsonl", make_engine())
    found = list(result.rows())
    assert found[0]["error"] is None
    assert all(row["response"] is None for row in found[1:])
    assert [row["error"]["code"] for row in found[1:]] == [
        "input_error",
        "duplicate_custom_id",
        "invalid_line",
        "invalid_line",
        "invalid_line",
    ]
    assert "in.jsonl:2: malformed JSON" in found[1]["error"]["message"]
    assert "Did you mean '/v1/chat/completions'" in found[5]["error"]["message"]
    assert len({row["id"] for row in found}) == 6


async def test_equal_bodies_are_computed_once(make_engine):
    engine = make_engine()
    source = [line(f"a{n}", chat(f"text {n % 3}")) for n in range(30)]
    found = list((await answer(source, engine)).rows())
    assert len(engine.asked) == 3
    assert [row["custom_id"] for row in found] == [f"a{n}" for n in range(30)]
    assert found[0]["response"]["body"] == found[3]["response"]["body"]
    engine = make_engine()
    found = list(
        (await answer([line(n, chat("same", temperature=1)) for n in "abc"], engine)).rows()
    )
    assert len(engine.asked) == 3
    assert len({row["response"]["body"]["id"] for row in found}) == 3


async def test_an_interrupted_job_gives_the_same_lines(make_engine, tmp_path, monkeypatch):
    monkeypatch.setattr("penstock.batch.write.sinks.PART_ROWS", 20)
    source = tmp_path / "in.jsonl"
    rows = [line(f"a{n % 95}", chat(f"text {n}")) for n in range(100)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    engine = make_engine()
    job = asyncio.create_task(answer(source, engine, tmp_path / "out.jsonl"))
    await engine.was_asked(70)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    manifest = tmp_path / "out.jsonl.penstock" / "manifest.json"
    created = json.loads(manifest.read_text())["created"]
    monkeypatch.setattr("time.time", lambda: created + 1000.0)
    result = await answer(source, make_engine(), tmp_path / "out.jsonl")
    monkeypatch.setattr("time.time", lambda: float(created))
    whole = await answer(source, make_engine(), tmp_path / "whole.jsonl")
    assert result.counts.resumed >= 60
    assert (tmp_path / "out.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
    assert whole.counts.errors == {"duplicate_custom_id": 5}


async def test_adapters_are_named_behind_the_model(make_engine):
    engine = make_engine()
    engine.adapters = {"fast": ""}
    source = [
        line(n, chat("x", model=name))
        for n, name in (("a", "scripted-model:fast"), ("b", "scripted-model"))
    ]
    await answer(source, engine)
    assert {request.adapter for request in engine.requests} == {"fast", None}


@pytest.mark.parametrize(
    "options", [{"max_tokens": 5}, {"system": "x"}, {"temperature": 0.5}, {"output": "out.csv"}]
)
async def test_what_bodies_say_is_not_said_twice(make_engine, tmp_path, options):
    if "output" in options:
        options = {"output": tmp_path / "out.csv"}
    with pytest.raises(ConfigError, match="OpenAI batch lines"):
        await answer([line("a", chat("x"))], make_engine(), **options)


async def test_a_prompt_makes_such_lines_ordinary_rows(make_engine):
    (row,) = (await answer([line("a", chat("x"))], make_engine(), prompt="{custom_id}")).rows()
    assert (row["response"], row["status"]) == ("A", "ok")


async def test_embeddings_that_the_engine_gives(make_engine):
    engine = make_engine()

    async def embeddings(request):
        return Embeddings([[1.0]], Usage(3, 0, 0))

    engine.embeddings = embeddings
    result = await answer([line("a", {"input": "x"}, "/v1/embeddings")], engine)
    (row,) = result.rows()
    assert row["response"]["body"]["data"][0]["embedding"] == [1.0]
    assert result.counts.prompt_tokens == 3


async def test_embeddings_in_base64_and_without_adapter(make_engine):
    engine = make_engine()

    async def embeddings(request):
        return Embeddings([[1.0]], Usage(3, 0, 0))

    engine.embeddings = embeddings
    source = [
        line("a", {"input": "x", "encoding_format": "base64"}, "/v1/embeddings"),
        line("b", {"input": "x", "model": "scripted-model:fast"}, "/v1/embeddings"),
    ]
    first, second = (await answer(source, engine)).rows()
    assert first["response"]["body"]["data"][0]["embedding"] == "AACAPw=="
    assert second["response"]["status_code"] == 400


async def test_a_line_without_a_body_says_so(make_engine):
    source = [
        line("a", chat("x")),
        {"custom_id": "b", "method": "POST", "url": "/v1/chat/completions"},
    ]
    _, second = (await answer(source, make_engine())).rows()
    assert second["error"] == {"code": "invalid_line", "message": "the line has no body"}


async def test_integers_that_no_message_can_hold(make_engine):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"maximum": 10**30}}}
    result = await answer([line("a", chat("x", tools=[tool])), line("b", chat("y"))], make_engine())
    first, second = result.rows()
    assert first["response"]["status_code"] == 400
    assert (
        first["response"]["body"]["error"]["message"]
        == "the body holds an integer of more than 64 bits"
    )
    assert second["response"]["status_code"] == 200
