"""One suite for every runtime: `penstock serve` with the demo model on the real engine, asked by
OpenAI's client.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

openai = pytest.importorskip("openai")
psutil = pytest.importorskip("psutil")

CONFIG = """
llm_configs:
  - model_loading_config: {model_id: tickets, model_source: demo}
  - model_loading_config: {model_id: spare, model_source: spare}
    llm_engine: simulated
    deployment_config: {autoscaling_config: {min_replicas: 0, max_replicas: 1}}
"""
TICKET: Any = [{"role": "user", "content": "My Solara 77 is broken. I want my money back!"}]
RUNTIMES = [
    pytest.param("local", marks=pytest.mark.slow),
    pytest.param("ray", marks=pytest.mark.ray),
]


@pytest.fixture(scope="module", params=RUNTIMES)
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`penstock serve` in a process group of its own; when it is told to stop, nothing of it may
    stay.
    """
    config = tmp_path_factory.mktemp("serve") / "config.yaml"
    config.write_text(CONFIG)
    argv = [
        Path(sys.executable).with_name("penstock"),
        "serve",
        config,
        "--runtime",
        request.param,
        "--port",
        "0",
    ]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    with subprocess.Popen(
        [*argv, "--dev", "--log-level", "error"], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        try:
            line = next((line for line in process.stdout if line.startswith("Listening on ")), None)
            assert line is not None, "the server did not start"
            yield line.split()[2]
            started = psutil.Process(process.pid).children(recursive=True)
        finally:
            process.send_signal(signal.SIGINT)
            code = process.wait(60)
    assert code == 0
    _, alive = psutil.wait_procs(started, timeout=20)
    assert [process.name() for process in alive] == []


@pytest.fixture(scope="module")
def client(url: str) -> Any:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_an_answer(client: Any) -> None:
    answer = client.chat.completions.create(model="tickets", messages=TICKET, temperature=0)
    content = json.loads(answer.choices[0].message.content)
    assert content["category"] == "refund"
    assert answer.usage.completion_tokens > 0


def test_a_stream_says_the_same(client: Any) -> None:
    whole = client.chat.completions.create(model="tickets", messages=TICKET, temperature=0)
    chunks = list(
        client.chat.completions.create(model="tickets", messages=TICKET, temperature=0, stream=True)
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert len(chunks) > 5
    assert text == whole.choices[0].message.content


def test_an_adapter(client: Any) -> None:
    answer = client.chat.completions.create(model="tickets:german", messages=TICKET, temperature=0)
    assert json.loads(answer.choices[0].message.content)["kategorie"] == "Erstattung"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="tickets:greek", messages=TICKET)


def test_a_schema(client: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"category": {"enum": ["refund", "other"]}},
        "required": ["category"],
    }
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = client.chat.completions.create(
        model="tickets", messages=TICKET, temperature=0, response_format=shape, max_tokens=64
    )
    assert json.loads(answer.choices[0].message.content)["category"] in ("refund", "other")


def test_a_decision(client: Any) -> None:
    categories = ("billing", "shipping", "technical", "account", "refund", "feature")
    choices = [{"value": category} for category in categories]
    body = {
        "model": "tickets",
        "input": [*TICKET, {"role": "assistant", "content": '{"category":"'}],
        "questions": [{"type": "choice", "instructions": "", "choices": choices}],
    }
    found = client.post("/decisions", cast_to=object, body=body)  # older clients lack a method
    (answer,) = found["answers"]
    assert answer["choice"] == "refund"
    chances = [one["probability"] for one in answer["probabilities"]]
    assert sum(chances) == pytest.approx(1, abs=1e-6)
    assert answer["mass"] > 0.9
    with pytest.raises(openai.BadRequestError, match="1 to 400"):
        client.post("/decisions", cast_to=object, body={**body, "questions": []})


def test_the_models_are_listed(client: Any) -> None:
    cards = {card.id: card for card in client.models.list()}
    assert set(cards) == {"tickets", "tickets:german", "tickets:summary", "spare"}
    assert cards["tickets"].state == "ready"
    assert cards["tickets"].max_model_len > 0
    assert cards["spare"].engine == "simulated"


def test_a_model_that_loads_on_demand(client: Any) -> None:
    assert {card.id: card for card in client.models.list()}["spare"].state == "cold"
    answer = client.chat.completions.create(model="spare", messages=TICKET, max_tokens=4)
    assert answer.usage.completion_tokens == 4
    assert {card.id: card for card in client.models.list()}["spare"].state == "ready"


def test_errors(client: Any, url: str) -> None:
    with pytest.raises(openai.NotFoundError, match="Did you mean 'tickets'"):
        client.chat.completions.create(model="ticket", messages=TICKET)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="tickets", messages=TICKET, temperature=3)
    assert httpx.post(f"{url}/v1/chat/completions", content="{").status_code == 400
    assert httpx.get(f"{url}/nothing").status_code == 404


def test_control(url: str, client: Any) -> None:
    slept = httpx.post(f"{url}/sleep", json={"model": "tickets"}, timeout=30).json()
    assert [replica["ok"] for replica in slept["replicas"]] == [True]
    assert httpx.get(f"{url}/is_sleeping?model=tickets").json()["replicas"][0]["result"] is True
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(model="tickets", messages=TICKET)
    assert refused.value.status_code == 503
    httpx.post(f"{url}/wakeup", json={"model": "tickets"}, timeout=60)
    answer = client.chat.completions.create(model="tickets", messages=TICKET, temperature=0)
    assert json.loads(answer.choices[0].message.content)["category"] == "refund"
