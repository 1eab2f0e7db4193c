"""The programs in examples/ray run, on one cluster for all of them."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("ray")
    from ray import serve

from ray_cluster import PATIENCE_S, free_port, own_cluster

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]
EXAMPLES = Path(__file__).parents[2] / "examples" / "ray"
SHOWS = {
    "batch_own_deployment": "20 texts counted",
    "batch_quickstart": '"category"',
    "batch_shared_deployment": '{"category"',
    "bucket": "from the bucket: {",
    "callbacks": "m starts, and is ready",
    "data_parallel": "{'",
    "fractional_gpu": "GPUs left: 0.0",
    "multi_lora": "demo:german",
    "multi_turn": "1 assistant:",
    "prefill_decode": "PrefillServer:m",
    "prefix_routing": "4 of 8 prompts",
    "rl_control": "rolled out again",
    "serve_quickstart": "events",
}


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    port = free_port()
    with own_cluster(proxy_port=port, num_gpus=1) as address:
        yield {**os.environ, "RAY_ADDRESS": address, "SERVE_URL": f"http://127.0.0.1:{port}"}


def test_each_example_is_run() -> None:
    assert sorted(SHOWS) == sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", SHOWS)
def test_an_example(name: str, environment: dict[str, str]) -> None:
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", EXAMPLES / f"{name}.py"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert SHOWS[name] in done.stdout, done.stdout
    finally:
        for left in serve.status().applications:
            serve.delete(left)
