"""Jobs through the batch APIs of Penstock's own server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

import penstock
from serve_process import serving, simulated

pytestmark = pytest.mark.slow
KINDS = ("openai-batch", "anthropic-batch")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = str(tmp_path_factory.mktemp("batches"))
    with serving(*simulated(time_per_token_ms=20), "--batch-dir", folder) as found:
        yield found


def batches(url: str, kind: str) -> list[Any]:
    path = "/v1/batches" if kind == "openai-batch" else "/v1/messages/batches"
    found: list[Any] = httpx.get(f"{url}{path}?limit=100").json()["data"]
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("killed", [False, True])
def test_a_job_takes_the_servers_batches(
    kind: str, killed: bool, server: Any, tmp_path: Path
) -> None:
    source, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(f'{{"n": {number}}}\n' for number in range(60)))
    before = len(batches(server.url, kind))
    options = {"base_url": f"{server.url}/v1", "gather_s": 0.2, "first_poll_s": 0.1}
    argv = [sys.executable, "-m", "penstock.cli", "run", str(source), "-o", str(output)]
    argv += ["--prompt", "row {n}", "--max-tokens", "20", "--engine", kind, "-q"]
    argv += ["--model", "simulated", "--engine-kwargs", json.dumps(options)]
    process = subprocess.Popen(argv, env=dict(os.environ))
    if killed:
        while len(batches(server.url, kind)) == before:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process = subprocess.Popen(argv, env=dict(os.environ))
    assert process.wait() == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    penstock.run(
        str(source), tmp_path / "own.jsonl", model="simulated", prompt="row {n}", max_tokens=20
    )
    own = [json.loads(line) for line in (tmp_path / "own.jsonl").read_text().splitlines()]
    assert [row["response"] for row in rows] == [row["response"] for row in own]
    assert len(batches(server.url, kind)) == before + 1
