"""`penstock serve` with vLLM as a process of its own, and the official client."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from penstock import demo
from penstock.engines.vllm.processes import SHARED_MEMORY

httpx = pytest.importorskip("httpx")
openai = pytest.importorskip("openai")

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

USER = [
    {
        "role": "user",
        "content": "My Solara 77 arrived broken and nobody answers. I want my money back!",
    }
]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"sunny": {"type": "boolean"}},
            "required": ["sunny"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def served():
    """A running server and its URL. When it ends, so has everything that it started."""
    before = set(os.listdir(SHARED_MEMORY))
    argv = [
        sys.executable,
        "-m",
        "penstock.cli",
        "serve",
        "demo",
        "--port",
        "0",
        "--log-level",
        "warning",
    ]
    argv += ["--engine", "vllm", "--engine-app", "/vllm", "--vllm-metrics"]
    argv += ["--max-model-len", "1024", "--enable-auto-tool-choice"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            assert line.startswith("Listening on http://127.0.0.1:")
            yield server, line.split()[2]
        finally:
            server.kill()
    patience = time.monotonic() + 120  # who cleans up behind a killed server tells nobody here
    while not set(os.listdir(SHARED_MEMORY)) <= before:
        assert time.monotonic() < patience
        time.sleep(0.05)


@pytest.fixture
def client(served):
    _, url = served
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300) as made:
        yield made


def test_chat_streamed_and_not(client):
    asked = {"model": "demo", "messages": USER, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    text = whole.choices[0].message.content
    assert set(json.loads(text)) == set(demo.FIELDS)
    with client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    )
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_completions_and_models(client):
    answer = client.completions.create(model="demo", prompt=["a", "b"], max_tokens=3, logprobs=1)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert len(answer.choices[0].logprobs.tokens) == 3
    assert {model.id for model in client.models.list()} == {
        "demo",
        *(f"demo:{name}" for name in demo.ADAPTERS),
    }


def test_adapters(client):
    answer = client.chat.completions.create(model="demo:german", messages=USER, temperature=0)
    assert set(json.loads(answer.choices[0].message.content)) == set(demo.GERMAN_KEYS.values())
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="demo:french", messages=USER)


def test_tools_without_a_parser_of_vllms(client):
    asked = {
        "model": "demo",
        "messages": USER,
        "tools": [TOOL],
        "tool_choice": "required",
        "max_tokens": 200,
    }
    (call,) = client.chat.completions.create(**asked, temperature=0).choices[0].message.tool_calls
    assert call.function.name == "weather"
    assert isinstance(json.loads(call.function.arguments)["sunny"], bool)


def test_structured_output_and_responses(client):
    given = {"type": "json_schema", "json_schema": {"name": "ticket", "schema": demo.SCHEMA}}
    answer = client.chat.completions.create(
        model="demo", messages=USER, temperature=0, response_format=given
    )
    assert set(json.loads(answer.choices[0].message.content)) == set(demo.FIELDS)
    response = client.responses.create(model="demo", input=USER[0]["content"], temperature=0)
    assert set(json.loads(response.output_text)) == set(demo.FIELDS)


def test_errors_are_the_clients_own(client):
    for wrong, error in (
        ({"temperature": 7}, openai.BadRequestError),
        ({"max_tokens": 0}, openai.BadRequestError),
        ({"model": "dem"}, openai.NotFoundError),
    ):
        with pytest.raises(error):
            client.chat.completions.create(**{"model": "demo", "messages": USER, **wrong})
    with pytest.raises(openai.APIStatusError) as caught:
        client.embeddings.create(model="demo", input="text")
    assert caught.value.status_code == 400


def test_tokens_are_those_of_vllm_s_own_server(client):
    url = f"{str(client.base_url).removesuffix('/v1/')}"
    bodies = (
        {"prompt": "My Solara 77", "return_token_strs": True},
        {"prompt": "My Solara 77", "add_special_tokens": False},
        {"messages": USER},
        {"messages": USER, "add_generation_prompt": False},
        {"messages": USER, "tools": [TOOL], "chat_template_kwargs": {"enable_thinking": False}},
    )
    for body in bodies:
        ours, own = (
            httpx.post(f"{url}{root}/tokenize", json={"model": "demo", **body}, timeout=300)
            for root in ("", "/vllm")
        )
        assert ours.json() == own.json(), body
    for more in ({}, {"tools": [TOOL]}):
        fed = client.chat.completions.create(model="demo", messages=USER, max_tokens=1, **more)
        counted = httpx.post(f"{url}/tokenize", json={"messages": USER, **more}).json()
        assert counted["count"] == fed.usage.prompt_tokens
    assert counted["max_model_len"] == 1024
    info = httpx.get(f"{url}/tokenizer_info").json()
    assert info["chat_template"]
    assert info["eos_token"]


def test_the_forms_of_vllm_s_endpoints(client):
    url = f"{str(client.base_url).removesuffix('/v1/')}"
    body = {"model": "demo", "prompt": "My", "max_tokens": 2, "temperature": 0}
    ours, own = (
        httpx.post(f"{url}{root}/v1/completions", json=body, timeout=300).json()
        for root in ("", "/vllm")
    )
    assert ours["choices"][0]["text"] == own["choices"][0]["text"]
    for path in ("/version", "/load", "/ping"):
        assert httpx.get(url + path).status_code == 200
    names = {
        line.split()[2]
        for line in httpx.get(f"{url}/metrics").text.splitlines()
        if line.startswith("# TYPE vllm:")
    }
    assert {"vllm:num_requests_running", "vllm:num_requests_waiting"} <= names


def test_a_stopped_server_finishes_its_streams_and_leaves_nothing(served, client):
    # The last one: the others need the server.
    server, _ = served
    asked = {
        "model": "demo",
        "messages": USER,
        "temperature": 0,
        "max_tokens": 300,
        "extra_body": {"ignore_eos": True},
    }
    with client.chat.completions.create(**asked, stream=True) as stream:
        next(iter(stream))
        server.send_signal(signal.SIGTERM)
        chunks = list(stream)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert server.wait(60) == 0
