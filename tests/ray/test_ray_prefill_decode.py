"""Prefill and decode as two Ray Serve deployments, on simulated engines."""

from __future__ import annotations

import asyncio
import signal
import warnings
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.serve")
    from ray import serve

psutil = pytest.importorskip("psutil")

from penstock.errors import ConfigError  # noqa: E402
from penstock.ray.replicas import cluster_secret  # noqa: E402
from penstock.serve import build_openai_app, build_pd_openai_app  # noqa: E402
from ray_cluster import own_cluster, until  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

PATIENCE_S = 240
QUICK = {"graceful_shutdown_wait_loop_s": 0.2, "health_check_period_s": 1}
KV = {"kv_transfer_config": {"kv_connector": "SimulatedConnector"}}
SIMULATED = {
    "model_loading_config": {"model_id": "m", "model_source": "simulated"},
    "llm_engine": "simulated",
    "engine_kwargs": KV,
}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with own_cluster():
        yield


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    """A pair with two prefill replicas and one decode replica; gives a client of the ingress's own
    port.
    """
    prefill = {**SIMULATED, "deployment_config": {**QUICK, "num_replicas": 2}}
    decode = {**SIMULATED, "deployment_config": QUICK}
    app = build_pd_openai_app(
        {"prefill_config": prefill, "decode_config": decode, "listen": "127.0.0.1:0"}
    )
    try:
        handle = serve.run(app, name="app", route_prefix="/")
        with httpx.Client(base_url=handle.url.remote().result(), timeout=PATIENCE_S) as made:
            yield made
    finally:
        serve.delete("app")


def text(number: int) -> str:
    return (
        f"Ticket {number}: my Solara 77 arrived broken and nobody answers, and the export does not"
        " work. " * 3
    )


def ask(client: httpx.Client, number: int, **options: Any) -> dict[str, Any]:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": text(number)}],
        "temperature": 0,
        "max_tokens": 16,
    }
    answer = client.post("/v1/chat/completions", json={**body, **options})
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def counted(name: str) -> float:
    """What the decode replica counts, from its own page."""
    handle = serve.get_deployment_handle("LLMServer:m", "app")
    key = asyncio.run(cluster_secret())
    place = handle.record_replica_metadata.remote().result()["penstock"]
    url = f"http://{place['host']}:{place['port']}/metrics"
    page = httpx.get(url, headers={"authorization": f"Bearer {key}"}, timeout=PATIENCE_S)
    assert page.status_code == 200, page.text
    return sum(
        float(line.rpartition(" ")[2]) for line in page.text.splitlines() if line.startswith(name)
    )


REMOTE = 'penstock_prefill_handoffs_total{model_name="m",outcome="remote"}'
TRANSFERS = "penstock_engine_kv_transfers_total"


def transferred(client: httpx.Client, number: int) -> bool:
    """Whether the prefill side computes this prompt."""
    before = counted(REMOTE)
    ask(client, number)
    return counted(REMOTE) > before


def replicas(side: str) -> list[Any]:
    title = f"ray::ServeReplica:app:{side}:m"
    return [
        p
        for p in psutil.process_iter(["cmdline"])
        if (p.info["cmdline"] or [""])[0].startswith(title)
    ]


def test_the_two_sides_scale_apart(client: httpx.Client) -> None:
    deployments = serve.status().applications["app"].deployments
    counts = {name: sum(d.replica_states.values()) for name, d in deployments.items()}
    assert counts == {"LLMServer:m": 1, "PrefillServer:m": 2, "OpenAiIngress": 1}
    assert client.get("/v1/models").json()["data"][0]["id"] == "m"


def test_prompts_are_computed_on_the_prefill_side(client: httpx.Client) -> None:
    number = iter(range(1000, 2000))
    until(lambda: transferred(client, next(number)))  # it may not know of replicas at once
    before = counted(REMOTE), counted(TRANSFERS)
    answers = [ask(client, number) for number in range(8)]
    assert (counted(REMOTE), counted(TRANSFERS)) == (before[0] + 8, before[1] + 8)
    again = [ask(client, number) for number in range(8)]  # from its own cache
    assert [a["choices"][0]["message"]["content"] for a in answers] == [
        a["choices"][0]["message"]["content"] for a in again
    ]


def test_a_stream(client: httpx.Client) -> None:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": text(50)}],
        "temperature": 0,
        "max_tokens": 16,
    }
    stream = client.post("/v1/chat/completions", json={**body, "stream": True}).text
    assert stream.rstrip().endswith("data: [DONE]")
    assert stream.count('"delta"') > 8


def test_prefill_replicas_that_are_killed_are_noticed_by_no_client(client: httpx.Client) -> None:
    async def many() -> list[int]:
        async with httpx.AsyncClient(base_url=client.base_url, timeout=PATIENCE_S) as one:

            async def post(number: int) -> int:
                messages = [{"role": "user", "content": text(100 + number)}]
                body = {"model": "m", "messages": messages, "temperature": 0, "max_tokens": 16}
                return (await one.post("/v1/chat/completions", json=body)).status_code

            asked = [asyncio.create_task(post(number)) for number in range(40)]
            await asked[0]
            for process in replicas("PrefillServer"):
                process.send_signal(signal.SIGKILL)
            return await asyncio.gather(*asked)

    assert asyncio.run(many()) == [200] * 40
    number = iter(range(2000, 10_000))
    until(lambda: transferred(client, next(number)))  # Ray starts new ones


def scaling(target_ongoing_requests: float, **engine_kwargs: Any) -> dict[str, Any]:
    """A side of one or two replicas."""
    fast = {
        "look_back_period_s": 1,
        "metrics_interval_s": 0.5,
        "upscale_delay_s": 0,
        "downscale_delay_s": 2,
    }
    counts = {
        "min_replicas": 1,
        "max_replicas": 2,
        "target_ongoing_requests": target_ongoing_requests,
    }
    return {
        **SIMULATED,
        "engine_kwargs": {**KV, **engine_kwargs},
        "deployment_config": {**QUICK, "autoscaling_config": {**counts, **fast}},
    }


def running(side: str) -> int:
    """Replicas of the model whose sides scale."""
    return serve.status().applications["scaled"].deployments[side].replica_states.get("RUNNING", 0)


def test_a_busy_prefill_side_grows_and_shrinks_without_the_decode_side() -> None:
    sides = {
        "prefill_config": scaling(2, time_to_first_token_ms=500, max_num_seqs=4),
        "decode_config": scaling(100),
    }
    app = build_pd_openai_app({**sides, "listen": "127.0.0.1:0"})
    grown = False

    async def ask_on(one: httpx.AsyncClient, number: int) -> None:
        while not grown:
            messages = [{"role": "user", "content": text(5000 + number)}]
            answer = await one.post(
                "/v1/chat/completions", json={"model": "m", "messages": messages, "max_tokens": 2}
            )
            assert answer.status_code == 200

    async def load(url: str) -> None:
        nonlocal grown
        async with (
            httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as one,
            asyncio.TaskGroup() as clients,
        ):
            for number in range(12):
                clients.create_task(ask_on(one, number))
            await asyncio.to_thread(until, lambda: running("PrefillServer:m") == 2)
            grown = True

    try:
        url = serve.run(app, name="scaled", route_prefix="/scaled").url.remote().result()
        asyncio.run(load(url))
        assert running("LLMServer:m") == 1
        until(lambda: running("PrefillServer:m") == 1)
        assert running("LLMServer:m") == 1
    finally:
        serve.delete("scaled")


def test_a_configuration_without_a_prefill_side_is_no_pair() -> None:
    with pytest.raises(ConfigError, match="must have prefill_config and decode_config"):
        build_pd_openai_app({"llm_configs": [SIMULATED]})
    assert build_openai_app({"prefill_config": SIMULATED, "decode_config": SIMULATED}) is not None
