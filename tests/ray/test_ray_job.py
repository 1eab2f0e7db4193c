"""Batch jobs on a real Ray, started for these tests and stopped by them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.serve")
    from ray import serve

psutil = pytest.importorskip("psutil")

from penstock.batch.job.job import Job  # noqa: E402
from penstock.errors import ConfigError, EngineStartError  # noqa: E402
from ray_cluster import own_cluster  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

PATIENCE_S = 90
SLOW = {"time_per_token_ms": 10, "max_num_seqs": 8, "output_tokens": 20}


@pytest.fixture(scope="module", autouse=True)
def address() -> Iterator[str]:
    with own_cluster() as address:
        yield address


def rows(count: int) -> list[dict[str, Any]]:
    return [{"text": f"row {number}"} for number in range(count)]


def job(source: Any, output: Any = None, **options: Any) -> Job:
    options = {"model": "simulated", "prompt": "{text}", **options}
    return Job(source, output, runtime="ray", progress=False, **options)


def replicas() -> list[int]:
    found = psutil.process_iter(["cmdline"])
    return [
        p.pid
        for p in found
        if (p.info["cmdline"] or [""])[0].startswith("ray::ServeReplica:penstock-job-")
    ]


def applications() -> list[str]:
    return [name for name in serve.status().applications if name.startswith("penstock-job-")]


def test_the_rows_are_those_of_the_local_runtime_though_a_replica_dies() -> None:
    near = Job(
        rows(200), model="simulated", prompt="{text}", engine_kwargs={"output_tokens": 20}
    ).run()
    killed: list[int] = []

    def kill() -> None:
        give_up = time.monotonic() + PATIENCE_S
        while len(running := replicas()) < 2 and time.monotonic() < give_up:
            time.sleep(0.1)
        time.sleep(0.5)
        os.kill(running[0], signal.SIGKILL)
        killed.append(running[0])

    killing = threading.Thread(target=kill)
    killing.start()
    far = job(rows(200), replicas=2, engine_kwargs=SLOW).run()
    killing.join()
    assert killed
    assert far.counts.ok == 200
    assert [row["response"] for row in far.rows()] == [row["response"] for row in near.rows()]
    assert not applications()


def test_decisions_are_those_of_the_local_runtime() -> None:
    asked: dict[str, Any] = {"choices": "billing,shipping", "filter": "Is it late?"}
    near = Job(rows(40), model="simulated", prompt="{text}", **asked).run()
    far = job(rows(40), replicas=2, **asked).run()
    names = ("text", "choice", "choice_probabilities", "filter_probabilities")
    kept = [[row[name] for name in names] for row in far.rows()]
    assert kept == [[row[name] for name in names] for row in near.rows()]
    assert 0 < len(kept) < 40
    assert not applications()


def test_a_job_that_was_killed_goes_on(tmp_path: Path, address: str) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows(400)))
    argv = [
        sys.executable,
        "-m",
        "penstock.cli",
        "run",
        str(source),
        "-o",
        str(output),
        "--runtime",
        "ray",
    ]
    argv += [
        "--model",
        "simulated",
        "--engine-kwargs",
        json.dumps(SLOW),
        "--prompt",
        "{text}",
        "-q",
    ]
    with subprocess.Popen(argv, env={**os.environ, "RAY_ADDRESS": address}) as process:
        give_up = time.monotonic() + PATIENCE_S
        journals: list[Path] = []
        while (
            not any(path.stat().st_size > 4096 for path in journals) and time.monotonic() < give_up
        ):
            time.sleep(0.05)
            journals = [path for path in tmp_path.rglob("rows-*.jsonl") if path.is_file()]
        process.kill()
    assert applications()  # which nobody could remove
    result = job(str(source), str(output), engine_kwargs=SLOW).run()
    assert 0 < result.counts.resumed < 400
    assert result.counts.ok == 400
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["text"] for row in written] == [row["text"] for row in rows(400)]
    assert not applications()


def test_what_cannot_be_started_is_told() -> None:
    with pytest.raises(EngineStartError, match="there is no model 'nowhere'"):
        job(rows(1), model="nowhere", engine="openvino").run()
    assert not applications()


def test_what_has_no_meaning_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="replicas"):
        job(rows(1), replicas=0).run()
