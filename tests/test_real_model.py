"""What is promised of jobs and of a server, on a real model: it is near ties, white space and odd
tokens that it knows and that the demo model does not. No test says what it answers.
"""

import json
import math
import subprocess
import sys
import time

import httpx
import jsonschema_rs
import pytest

from jobs import lines
from serve_process import serving

pytestmark = pytest.mark.slow

ROWS = 16
CONTEXT = 8192  # of the model
PREFIX = (
    "You are the clerk of a small shop that sells fruit, tea and paper. Answer in a few plain"
    " words. " * 6
)
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["fruit", "tea", "paper"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "sold": {"type": "boolean"},
        "note": {"type": "string", "maxLength": 30},
    },
    "required": ["kind", "count", "sold", "note"],
    "additionalProperties": False,
}


def run(source, output, model, *more, **options):
    command = [
        sys.executable,
        "-m",
        "penstock.cli",
        "run",
        str(source),
        "-o",
        str(output),
        "--model",
        model,
    ]
    return subprocess.Popen([*command, "--system", PREFIX, "--prompt", "{text}", *more], **options)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    rows = [
        {"id": number, "text": f"Customer {number} asks for {number + 1} of something."}
        for number in range(ROWS)
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_a_job_resumed_after_a_kill_has_every_row_once(source, tmp_path, smollm2):
    output = tmp_path / "out.jsonl"
    with run(source, output, smollm2, "--max-tokens", "8", stderr=subprocess.DEVNULL) as job:
        while (
            not any(part.stat().st_size for part in tmp_path.glob("out.jsonl.penstock/rows-*"))
            and job.poll() is None
        ):
            time.sleep(0.01)
        job.kill()
    assert not output.exists()
    with run(
        source, output, smollm2, "--max-tokens", "8", stderr=subprocess.PIPE, text=True
    ) as job:
        told = job.communicate(timeout=300)[1]
    assert "from an earlier run" in told
    rows = lines(output)
    assert [(row["id"], row["status"]) for row in rows] == [
        (number, "ok") for number in range(ROWS)
    ]
    assert {row["finish_reason"] for row in rows} <= {"stop", "length"}
    assert all(row["response"] and 0 < row["usage"]["completion_tokens"] <= 8 for row in rows)
    # The same beginning was computed once for all that came after.
    assert max(row["usage"]["cached_tokens"] for row in rows) > 64


def test_structured_answers_fit_their_schema(source, tmp_path, smollm2):
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    output = tmp_path / "out.jsonl"
    more = ["--schema", str(tmp_path / "schema.json"), "--max-tokens", "120", "--limit", "6"]
    with run(source, output, smollm2, *more, stderr=subprocess.DEVNULL) as job:
        assert job.wait(300) == 0
    rows = lines(output)
    assert [(row["id"], row["status"], row["finish_reason"]) for row in rows] == [
        (n, "ok", "stop") for n in range(6)
    ]
    fits = jsonschema_rs.validator_for(SCHEMA)
    for row in rows:
        answer = json.loads(row["response"])
        assert fits.is_valid(answer)
        assert {name: row[name] for name in answer} == answer


@pytest.fixture(scope="module")
def client(smollm2):
    with (
        serving(smollm2, "--name", "smol") as server,
        httpx.Client(base_url=server.url, timeout=120) as client,
    ):
        yield client


def chat(**fields):
    messages = [
        {"role": "system", "content": PREFIX},
        {"role": "user", "content": "What do you sell?"},
    ]
    return {"model": "smol", "messages": messages, "max_tokens": 16, "temperature": 0, **fields}


def events(client, body):
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        data = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert data.pop() == "[DONE]"
    return [json.loads(event) for event in data]


def test_chat_streamed_and_not(client):
    whole = client.post("/v1/chat/completions", json=chat()).json()
    (choice,) = whole["choices"]
    assert choice["message"]["content"]
    assert choice["finish_reason"] in ("stop", "length")
    assert 0 < whole["usage"]["completion_tokens"] <= 16

    chunks = events(client, chat(stream=True, stream_options={"include_usage": True}))
    assert "".join(
        part["delta"].get("content") or "" for chunk in chunks for part in chunk["choices"]
    )
    reasons = [part["finish_reason"] for chunk in chunks for part in chunk["choices"]]
    assert set(reasons[:-1]) == {None}
    assert reasons[-1] in ("stop", "length")
    assert chunks[-1]["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]
    # The system message was computed before.
    assert chunks[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] > 64


def test_log_probabilities(client):
    answer = client.post("/v1/chat/completions", json=chat(logprobs=True)).json()
    told = answer["choices"][0]["logprobs"]["content"]
    assert len(told) in (
        answer["usage"]["completion_tokens"],
        answer["usage"]["completion_tokens"] - 1,
    )
    # With the end's own token, where there is one.
    assert "".join(token["token"] for token in told).startswith(
        answer["choices"][0]["message"]["content"]
    )
    # It is greedy: every token is the likeliest of 49,152.
    assert all(math.log(1 / 49_152) < token["logprob"] <= 1e-3 for token in told)


def test_structured_chat(client):
    form = {"type": "json_schema", "json_schema": {"name": "sale", "schema": SCHEMA}}
    answer = client.post(
        "/v1/chat/completions", json=chat(max_tokens=120, response_format=form)
    ).json()
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert jsonschema_rs.validator_for(SCHEMA).is_valid(
        json.loads(answer["choices"][0]["message"]["content"])
    )


def test_a_prompt_beyond_the_context_is_refused(client):
    long = chat(messages=[{"role": "user", "content": "tea " * (CONTEXT + 100)}])
    for stream in (False, True):
        refused = client.post("/v1/chat/completions", json={**long, "stream": stream})
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert client.post("/v1/chat/completions", json=chat()).status_code == 200


async def test_a_text_that_its_tokenizer_would_cut_is_refused(smollm2):
    """A GGUF file's tokenizer cuts at 8,192 tokens in silence."""
    from penstock.engines.openvino.engine import OpenVINOEngine
    from penstock.errors import ContextLengthError

    engine = OpenVINOEngine(smollm2)
    await engine.start()
    try:
        assert len(await engine.tokenize("word " * 8000)) == 8001
        with pytest.raises(ContextLengthError, match="no text of more than 8191 tokens"):
            await engine.tokenize("word " * 9000)
    finally:
        await engine.stop()
