"""Data-parallel groups on a real Ray: a replica is a group, placed and started as a whole."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from typing import Any

import httpx
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.serve")
    from ray import cloudpickle, serve

psutil = pytest.importorskip("psutil")

from penstock.llm_config import LLMConfig  # noqa: E402
from penstock.ray.replicas import cluster_secret  # noqa: E402
from penstock.serve import build_dp_deployment, build_dp_openai_app  # noqa: E402
from penstock.serve.config.placement import replica_bundles  # noqa: E402
from ray_cluster import own_cluster, until  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

PATIENCE_S = 90
GROUP: dict[str, Any] = {
    "model_loading_config": {"model_id": "m", "model_source": "demo"},
    "engine_kwargs": {
        "data_parallel_size": 2,
        "kv_cache_memory_bytes": 64 << 20,
        "inference_precision": "f32",
    },
    "deployment_config": {"graceful_shutdown_wait_loop_s": 0.2},
}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with own_cluster():
        yield


def workers() -> list[int]:
    """The processes of the ranks' engines."""
    wanted = "penstock.engines.openvino.worker"
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if wanted in process.cmdline():
                found.append(process.pid)
    return found


def placement_groups() -> dict[str, Any]:
    """Those that are held now, by id."""
    return {
        name: one
        for name, one in ray.util.placement_group_table().items()
        if one["state"] == "CREATED"
    }


def ask(client: httpx.Client) -> str:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "Where is my order?"}],
        "temperature": 0,
    }
    answer = client.post("/v1/chat/completions", json={**body, "max_tokens": 16})
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def test_a_replica_is_a_group_whose_ranks_live_and_die_together() -> None:
    before = set(workers())
    app = build_dp_openai_app({"llm_config": GROUP, "listen": "127.0.0.1:0"})
    try:
        handle = serve.run(app, name="app", route_prefix="/")
        with httpx.Client(base_url=handle.url.remote().result(), timeout=PATIENCE_S) as client:
            (placed,) = placement_groups().values()
            assert list(placed["bundles"].values()) == replica_bundles(LLMConfig.from_dict(GROUP))
            assert placed["strategy"] == "STRICT_PACK"
            ranks = set(workers()) - before
            assert len(ranks) == 2
            with ThreadPoolExecutor(8) as many:
                assert len(set(many.map(lambda _: ask(client), range(24)))) == 1
            os.kill(min(ranks), signal.SIGKILL)
            assert ask(client)
            until(lambda: len(set(workers()) - before) == 2)
            assert not ranks & set(workers())
    finally:
        serve.delete("app")
    until(lambda: not set(workers()) - before)


def test_groups_are_counted_placed_and_drained_as_wholes() -> None:
    options = {
        "data_parallel_size": 2,
        "max_num_seqs": 8,
        "time_per_token_ms": 20,
        "output_tokens": 1000,
    }
    group = {
        "model_loading_config": {"model_id": "m", "model_source": "simulated"},
        "llm_engine": "simulated",
        "engine_kwargs": options,
        "deployment_config": {"num_replicas": 2, "graceful_shutdown_wait_loop_s": 0.2},
    }
    before = set(placement_groups())
    serve.run(build_dp_deployment(group, name_prefix="Group:"), name="groups", route_prefix=None)
    leaving = Thread(target=serve.delete, args=("groups",))
    try:
        placed = [
            list(one["bundles"].values())
            for name, one in placement_groups().items()
            if name not in before
        ]
        # Two replicas are two groups, of four ranks.
        assert placed == [replica_bundles(LLMConfig.from_dict(group))] * 2
        handle = serve.get_deployment_handle("Group:m", "groups")
        assert handle.capabilities.remote().result().max_concurrency == 2 * 8
        key = asyncio.run(cluster_secret())
        place = handle.record_replica_metadata.remote().result()["penstock"]
        body = {"model": "m", "prompt": "x", "max_tokens": 150, "ignore_eos": True, "stream": True}
        url, headers = f"http://{place['host']}:{place['port']}", {"authorization": f"Bearer {key}"}
        with (
            httpx.Client(base_url=url, headers=headers, timeout=PATIENCE_S) as client,
            client.stream("POST", "/v1/completions", json=body) as answer,
        ):
            lines = (line for line in answer.iter_lines() if line)
            assert next(lines).startswith("data: {")
            leaving.start()
            assert list(lines)[-1] == "data: [DONE]"  # what has begun is finished
    finally:
        if not leaving.ident:
            leaving.start()
        leaving.join()
    until(lambda: not set(placement_groups()) - before)
