"""A job on a live server's engine, and on an engine that a server has in the same process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
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
def test_a_killed_job_goes_on_where_it_was(server: Any, key: None, tmp_path: Path) -> None:
    source, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(f'{{"n": {number}}}\n' for number in range(400)))
    argv = [sys.executable, "-m", "penstock.cli", "run", str(source), "-o", str(output)]
    argv += ["--prompt", "row {n}", "--max-tokens", "8", "--attach", server.url]
    argv += ["--engine-kwargs", '{"concurrency": 4}']
    process = subprocess.Popen(argv, env=dict(os.environ))
    state = next_state(tmp_path, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert state
    assert subprocess.run(argv, env=dict(os.environ), check=False).returncode == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["n"] for row in rows] == list(range(400))
    assert all(row["response"] for row in rows)


def next_state(folder: Path, process: subprocess.Popen[bytes]) -> bool:
    """Wait until some rows are in the journal."""
    while process.poll() is None:
        files = [file for file in folder.rglob("*") if file.is_file() and file.stem != "rows"]
        if sum(file.stat().st_size for file in files) > 6000:
            return True
    return False


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
