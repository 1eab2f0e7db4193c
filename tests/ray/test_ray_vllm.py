"""vLLM's processes below a Ray of their own: whichever way it ends, they end with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from penstock.engines.vllm.processes import MARK, SHARED_MEMORY

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("ray")
    pytest.importorskip("vllm")
psutil = pytest.importorskip("psutil")

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

PATIENCE_S = 120


@pytest.fixture
def served(tmp_path: Any) -> Iterator[tuple[subprocess.Popen[str], list[Any]]]:
    """`penstock serve` on Ray that has answered once, and all processes below it."""
    config = {
        "model_loading_config": {"model_id": "m", "model_source": "demo"},
        "llm_engine": "vllm",
        "accelerator_config": {"kind": "cpu"},
    }
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps([config]))
    before = set(os.listdir(SHARED_MEMORY))
    argv = [
        sys.executable,
        "-m",
        "penstock.cli",
        "serve",
        str(path),
        "--runtime",
        "ray",
        "--port",
        "0",
    ]
    environment = {**os.environ, "RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            line = next(line for line in server.stdout if line.startswith("Listening on "))
            body = json.dumps({"model": "m", "prompt": "hi", "max_tokens": 4}).encode()
            asked = urllib.request.Request(
                f"{line.split()[2]}/v1/completions", body, {"content-type": "application/json"}
            )
            with urllib.request.urlopen(asked, timeout=PATIENCE_S) as answer:
                assert answer.status == 200
            below = psutil.Process(server.pid).children(recursive=True)
            assert marked(below)
            yield server, below
        finally:
            server.kill()
    left = {
        name for name in set(os.listdir(SHARED_MEMORY)) - before if not name.startswith(b"plasma")
    }
    assert not left


def marked(processes: list[Any]) -> list[Any]:
    """Those of an engine."""
    found = []
    for process in processes:
        try:
            if MARK in process.environ():
                found.append(process)
        except psutil.Error:
            pass
    return found


def assert_all_end(processes: list[Any]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE_S)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_ctrl_c_leaves_no_process(served: tuple[subprocess.Popen[str], list[Any]]) -> None:
    server, below = served
    server.send_signal(signal.SIGINT)
    assert server.wait(PATIENCE_S) == 0
    assert_all_end(below)


def test_a_killed_cluster_leaves_no_process_of_an_engine(
    served: tuple[subprocess.Popen[str], list[Any]],
) -> None:
    """What `ray stop --force` does, to this cluster alone: it kills Ray's own processes and none of
    their children.
    """
    _, below = served
    engine = marked(below)
    for process in below:
        try:
            name = (process.cmdline() or [""])[0]
            if name.startswith("ray::") or name.endswith(("/raylet", "/gcs_server")):
                process.kill()
        except psutil.NoSuchProcess:
            pass
    assert_all_end(engine)
