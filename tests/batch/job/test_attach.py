"""A job on a live server's engine, and on an engine that a server has in the same process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

import penstock
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import ConfigError
from penstock.llm_config import LLMConfig
from penstock.serve.models.local import LocalModel
from penstock.types import CompletionRequest, Sampling
from serve_process import serving, simulated

SUPPORT = Path(__file__).parents[2] / "support"
GREEDY = Sampling(temperature=0.0)
ROWS = [{"n": number} for number in range(40)]
ASK: dict[str, Any] = {"prompt": "row {n}", "max_tokens": 8}


@pytest.fixture(scope="module")
def server() -> Any:
    with serving(*simulated(time_per_token_ms=1), "--api-key", "secret") as found:
        yield found


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_API_KEY", "secret")


def evictable_metrics(url: str) -> dict[str, float]:
    page = httpx.get(f"{url}/metrics", headers={"authorization": "Bearer secret"}).text
    lines = [line.split() for line in page.splitlines() if not line.startswith("#")]
    return {name.partition("{")[0]: float(value) for name, value in (line[:2] for line in lines)}


def test_a_job_runs_on_the_servers_engine_in_the_batch_class(
    server: Any, key: None, tmp_path: Path
) -> None:
    attached = penstock.run(ROWS, tmp_path / "a.jsonl", attach=server.url, **ASK)
    alone = penstock.run(ROWS, tmp_path / "b.jsonl", model="simulated", **ASK)
    texts = [
        [json.loads(line)["response"] for line in (tmp_path / name).read_text().splitlines()]
        for name in ("a.jsonl", "b.jsonl")
    ]
    assert texts[0] == texts[1]
    assert attached.counts.ok == alone.counts.ok == 40
    # Only batch requests make the engine's controller count.
    assert "penstock_engine_batch_rows_allowed" in evictable_metrics(server.url)


def test_without_the_key_it_says_so(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PENSTOCK_API_KEY", raising=False)
    with pytest.raises(penstock.errors.PenstockError, match="401"):
        penstock.run(ROWS, attach=server.url, **ASK)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"attach": "localhost:8000"}, "attach"),
        ({"attach": "http://x", "engine": "simulated"}, "engine"),
        ({"attach": "http://x", "deterministic": True}, "deterministic"),
        ({"attach": "http://x", "runtime": "ray"}, "runtime"),
        ({"attach": "http://x", "model": ["a", "b"]}, "attach"),
        ({"attach": "http://x", "engine_kwargs": {"base_url": "y"}}, "engine_kwargs.base_url"),
        ({"attach": 5}, "attach"),
    ],
)
def test_what_the_server_decides_is_refused(options: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        penstock.run(ROWS, **options, **ASK)
    assert caught.value.field == field


def test_a_deadline_is_refused_before_the_work_if_it_cannot_be_kept(
    server: Any, key: None, tmp_path: Path
) -> None:
    rows = [{"n": number} for number in range(30_000)]
    with pytest.raises(ConfigError, match=r"would take about .* rows/s") as caught:
        penstock.run(rows, tmp_path / "a.jsonl", attach=server.url, deadline="2s", **ASK)
    assert caught.value.field == "deadline"
    assert not (tmp_path / "a.jsonl.penstock").exists()
    result = penstock.run(ROWS, tmp_path / "a.jsonl", attach=server.url, deadline="10m", **ASK)
    assert result.counts.ok == 40


def test_an_input_that_is_read_once_is_not_checked(
    server: Any, key: None, caplog: pytest.LogCaptureFixture
) -> None:
    result = penstock.run(iter(ROWS), attach=server.url, deadline="10m", **ASK)
    assert result.counts.ok == 40
    assert "deadline is not checked" in caplog.text


@pytest.mark.slow
def test_killed_jobs_ask_nothing_twice_but_rows_in_flight(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows, kills, in_flight = 400, 3, 4
    monkeypatch.delenv("PENSTOCK_API_KEY", raising=False)
    source, output, noted = (tmp_path / name for name in ("rows.jsonl", "out.jsonl", "noted"))
    source.write_text("".join(f'{{"n": {number}}}\n' for number in range(rows)))
    path = os.pathsep.join((str(SUPPORT), os.environ.get("PYTHONPATH", "")))
    env = {"PENSTOCK_ENGINE_CLS": "noting_engine.NotingEngine", "NOTED_PROMPTS": str(noted)}
    with serving(*simulated(time_per_token_ms=2), env={**env, "PYTHONPATH": path}) as server:
        argv = [sys.executable, "-m", "penstock.cli", "run", str(source), "-o", str(output)]
        argv += ["--prompt", "row {n}", "--max-tokens", "8", "--attach", server.url, "-q"]
        argv += ["--engine-kwargs", json.dumps({"concurrency": in_flight})]
        for kill in range(1, kills + 1):
            process = subprocess.Popen(argv, env=dict(os.environ))
            while process.poll() is None and asked(noted).total() < kill * rows // (kills + 1):
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        assert subprocess.run(argv, env=dict(os.environ), check=False).returncode == 0
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["n"] for row in found] == list(range(rows))
    assert all(row["response"] for row in found)
    asks = asked(noted)
    assert len(asks) == rows
    # The client keeps a little more in flight than the server is asked at once.
    assert asks.total() - rows <= kills * (in_flight + 2)


def asked(noted: Path) -> Counter[str]:
    """How often the engine had each prompt."""
    return Counter(noted.read_text().splitlines() if noted.exists() else ())


async def test_one_engine_serves_requests_and_runs_a_job_at_once(tmp_path: Path) -> None:
    engine = SimulatedEngine(engine_kwargs={"time_per_token_ms": 1, "max_num_seqs": 4})
    config = LLMConfig(model_loading_config={"model_id": "m"}, llm_engine="simulated")  # type: ignore[arg-type]
    model = LocalModel(config, engine=engine)
    await model.start()
    job = penstock.arun(ROWS, tmp_path / "out.jsonl", engine=engine, **ASK)
    running = asyncio.ensure_future(job)
    texts = []
    while not running.done():
        text = ""
        async for delta in model.completions(CompletionRequest("online", GREEDY)):
            text += delta.text
        texts.append(text)
    assert (await running).counts.ok == 40
    assert len(set(texts)) == 1
    metrics = await engine.metrics()
    assert "batch_rows_allowed" in metrics
    assert metrics["online_first_token_p95_seconds"] > 0
    await engine.check_health()  # the job has left it to the server
    await model.stop()
