"""Batches of clients on a real Ray: `penstock serve --runtime ray` with replicas."""

from __future__ import annotations

import json
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("ray")
    pytest.importorskip("ray.serve")
    from ray import serve

anthropic = pytest.importorskip("anthropic")
openai = pytest.importorskip("openai")
psutil = pytest.importorskip("psutil")

from batch_service import ENDED, line, lines  # noqa: E402
from ray_cluster import PATIENCE_S, own_cluster, until  # noqa: E402
from serve_process import ServeProcess, serving  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]
LINES = 200
CONFIG = """
llm_configs:
  - model_loading_config: {model_id: m, model_source: simulated}
    llm_engine: simulated
    engine_kwargs: {time_per_token_ms: 25, max_num_seqs: 8}
    deployment_config: {num_replicas: 2}
  - model_loading_config: {model_id: cold, model_source: simulated}
    llm_engine: simulated
    deployment_config: {autoscaling_config: {min_replicas: 0, max_replicas: 1}}
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with own_cluster() as address:
        yield address


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    (tmp_path / "config.yaml").write_text(CONFIG)
    return [str(tmp_path / "config.yaml"), "--batch-dir", str(tmp_path / "state")]


def given() -> Iterator[dict[str, Any]]:
    for number in range(LINES):
        wrong: dict[str, Any] = {"max_tokens": -1} if number % 50 == 7 else {}
        yield line(f"row-{number}", f"say {number}", model="m", temperature=0, **wrong)


def client_of(server: ServeProcess) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=3)


def submitted(client: Any, content: bytes, endpoint: str = "/v1/chat/completions") -> str:
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")
    return str(batch.id)


def when(client: Any, batch: str, so: Callable[[Any], bool]) -> Any:
    """The batch once it is so; nobody announces it."""
    give_up = time.monotonic() + PATIENCE_S
    while not so(now := client.batches.retrieve(batch)):
        assert time.monotonic() < give_up, now
        time.sleep(0.1)
    return now


def ended(client: Any, batch: str) -> tuple[Any, list[Any]]:
    """The batch when it has ended, and its lines without what differs each time."""
    now = when(client, batch, lambda now: now.status in ENDED)
    assert now.status == "completed", now
    found = []
    for id in filter(None, (now.output_file_id, now.error_file_id)):
        for text in client.files.content(id).text.splitlines():
            one = json.loads(text)
            status, body = one["response"]["status_code"], one["response"]["body"]
            same = {name: value for name, value in body.items() if name not in ("id", "created")}
            found.append((one["custom_id"], status, same))
    return now, found


def replicas(model: str) -> list[int]:
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if (name := (process.info["cmdline"] or [""])[0]).startswith(
            "ray::ServeReplica:penstock-serve-"
        )
        and f":LLMServer:{model}" in name
    ]


def test_a_batch_outlives_a_replica_and_its_server(
    address: str, arguments: list[str], tmp_path: Path
) -> None:
    content = lines(given())
    with serving(*arguments[:1], "--batch-dir", str(tmp_path / "local")) as near:
        client = client_of(near)
        expected = ended(client, submitted(client, content))[1]
        near.stop()
    env = {"RAY_ADDRESS": address}
    with serving(*arguments, "--runtime", "ray", env=env) as server:
        client = client_of(server)
        batch = submitted(client, content)
        when(client, batch, lambda now: now.request_counts.completed >= 20)
        os.kill(replicas("m")[0], signal.SIGKILL)
        before = when(client, batch, lambda now: now.request_counts.completed >= 80)
        assert before.status == "in_progress"
        assert server.stop() == 0
    with serving(*arguments, "--runtime", "ray", env=env) as server:
        done, found = ended(client_of(server), batch)
        assert server.stop() == 0
    assert (done.request_counts.completed, done.request_counts.failed) == (LINES - 4, 4)
    assert found == expected


def test_only_lines_that_are_to_be_answered_wake_a_model(
    address: str, arguments: list[str]
) -> None:
    def woken() -> int:
        (app,) = (name for name in serve.status().applications if name.startswith("penstock-"))
        states = serve.status().applications[app].deployments["LLMServer:cold"].replica_states
        return sum(states.values())

    with serving(*arguments, "--runtime", "ray", env={"RAY_ADDRESS": address}) as server:
        client, url = client_of(server), "/v1/completions"
        wrong: dict[str, Any] = {"messages": None, "prompt": [5, 300]}  # beyond the vocabulary
        content = lines(line(f"row-{n}", model="cold", url=url, **wrong) for n in range(3))
        _, found = ended(client, submitted(client, content, url))
        assert [status for _, status, _ in found] == [400] * 3
        assert woken() == 0
        content = lines(line(f"row-{n}", model="cold") for n in range(3))
        _, found = ended(client, submitted(client, content))
        assert [status for _, status, _ in found] == [200] * 3
        assert woken() == 1

        other = anthropic.Anthropic(base_url=server.url, api_key="none")
        params = {"model": "m", "max_tokens": 4, "messages": [{"role": "user", "content": "a"}]}
        id = other.messages.batches.create(requests=[{"custom_id": "one", "params": params}]).id
        until(lambda: other.messages.batches.retrieve(id).processing_status == "ended")
        assert [one.result.type for one in other.messages.batches.results(id)] == ["succeeded"]
        assert server.stop() == 0
