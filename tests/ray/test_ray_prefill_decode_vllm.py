"""Prefill and decode on real vLLM engines with NIXL between them, as two Ray Serve deployments,
held against the same requests to one engine of both kinds of work.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    ray = pytest.importorskip("ray")
    pytest.importorskip("vllm")
    from ray import serve

psutil = pytest.importorskip("psutil")

from penstock import demo  # noqa: E402
from penstock.kv import nixl  # noqa: E402
from penstock.ray.replicas import cluster_secret  # noqa: E402
from penstock.serve import build_openai_app, build_pd_openai_app  # noqa: E402

pytestmark = [
    pytest.mark.ray,
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(
        nixl.package_name() is None, reason="needs NIXL: VLLM_EXTRAS=nixl scripts/test_ray_vllm.sh"
    ),
]

PATIENCE_S = 240
AT_ONCE = 32
PREFILL, DECODE = "PrefillServer:m", "LLMServer:m"
TICKETS = [
    json.loads(line)["ticket"]
    for line in demo.tickets_path().read_text(encoding="utf-8").splitlines()[:120]
]


def config(**engine_kwargs: Any) -> dict[str, Any]:
    return {
        "model_loading_config": {"model_id": "m", "model_source": "demo"},
        "llm_engine": "vllm",
        "accelerator_config": {"kind": "cpu"},
        "engine_kwargs": {"max_num_seqs": AT_ONCE, **engine_kwargs},
        "deployment_config": {"graceful_shutdown_wait_loop_s": 0.2, "health_check_period_s": 1},
    }


# Requests
class Asked(NamedTuple):
    """A request: its route and its body."""

    path: str
    body: dict[str, Any]


def mixed(count: int) -> list[Asked]:
    """Requests of every kind: chats and texts, short and long, streamed or not, with and without
    adapters, some with log-probabilities or a schema.
    """
    made = []
    for number in range(count):
        text = TICKETS[number % len(TICKETS)]
        if number % 5 == 0:
            text = " ".join(TICKETS[(number + k) % len(TICKETS)] for k in range(20))
        name = ("m", "m:summary", "m:german")[number % 3]
        body: dict[str, Any] = {
            "model": name,
            "temperature": 0,
            "max_tokens": 40,
            "stream": number % 2 == 0,
        }
        if number % 4 == 3:
            body |= {"prompt": text} | ({"logprobs": 2} if number % 8 == 7 else {})
            made.append(Asked("/v1/completions", body))
            continue
        body["messages"] = [{"role": "user", "content": text}]
        if number % 12 == 0:
            schema = {"name": "answer", "schema": demo.SCHEMA}
            body |= {
                "max_tokens": 60,
                "response_format": {"type": "json_schema", "json_schema": schema},
            }
        elif number % 4 == 1:
            body |= {"logprobs": True, "top_logprobs": 2}
        made.append(Asked("/v1/chat/completions", body))
    return made


MIXED = mixed(200)


class Answer(NamedTuple):
    """What a client sees of an answer. `tokens` are those whose log-probabilities were asked
    for.
    """

    text: str
    reason: str | None
    tokens: tuple[str, ...]


def answer_of(asked: Asked, reply: httpx.Response) -> Answer:
    """The answer, from one body or from chunks."""
    assert reply.status_code == 200, reply.text
    if not asked.body["stream"]:
        parts = [reply.json()]
    else:
        lines = [
            line.removeprefix("data: ")
            for line in reply.text.splitlines()
            if line.startswith("data: ")
        ]
        assert lines[-1] == "[DONE]", reply.text
        parts = [json.loads(line) for line in lines[:-1]]
    text, reason = "", None
    tokens: list[str] = []
    for part in parts:
        assert "error" not in part, part
        for choice in part["choices"]:
            said = choice.get("message") or choice.get("delta") or {"content": choice.get("text")}
            text += said.get("content") or ""
            reason = choice["finish_reason"] or reason
            about = choice.get("logprobs") or {}
            tokens += (
                [one["token"] for one in about.get("content") or ()] or about.get("tokens") or []
            )
    return Answer(text, reason, tuple(tokens))


async def all_of(
    url: str, asked: Sequence[Asked], done: Callable[[int], None] = lambda count: None
) -> list[Answer]:
    """All answers. `done` is told how many there are, each time."""
    room = asyncio.Semaphore(AT_ONCE)
    count = 0
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:

        async def one(each: Asked) -> Answer:
            nonlocal count
            async with room:
                reply = await client.post(each.path, json=each.body)
            count += 1
            done(count)
            return answer_of(each, reply)

        return await asyncio.gather(*(one(each) for each in asked))


def different(
    answers: Sequence[Answer], expected: Sequence[Answer]
) -> list[tuple[int, Answer, Answer]]:
    return [
        (n, *both)
        for n, both in enumerate(zip(answers, expected, strict=True))
        if both[0] != both[1]
    ]


# The cluster
@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    # Engines that share cores: threads that spin while they wait would take them from each other.
    shared = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    # A node's address is none of loopback's, and caches need no other network here.
    shared |= {"UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "lo"}
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        num_cpus=8,
        object_store_memory=80 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": shared},
    )
    serve.start(proxy_location="Disabled")
    yield
    serve.shutdown()
    ray.shutdown()


@contextmanager
def deployed(app: Any) -> Iterator[str]:
    """Gives the URL of the ingress's own port."""
    try:
        yield serve.run(app, name="app", route_prefix="/").url.remote().result()
    finally:
        serve.delete("app")


@pytest.fixture(scope="module")
def expected(cluster: None) -> list[Answer]:
    """What one engine of both kinds of work answers."""
    with deployed(build_openai_app({"llm_configs": [config()], "listen": "127.0.0.1:0"})) as url:
        return asyncio.run(all_of(url, MIXED))


@pytest.fixture(scope="module")
def url(expected: list[Answer]) -> Iterator[str]:
    """A pair, once the one engine is gone."""
    side = config(kv_transfer_config={"kv_connector": "NixlConnector"})
    pair = {
        "prefill_config": side,
        "decode_config": side,
        "listen": "127.0.0.1:0",
        "http": {"dev": True},
    }
    with deployed(build_pd_openai_app(pair)) as one:
        until(lambda: asks_prefill(one))  # the decode side may not know of a replica at once
        yield one


# What the two sides tell
_SAMPLE = re.compile(r'penstock_(\w+)\{model_name="m"(?:,outcome="(\w+)")?\} (\S+)')


def counts(side: str = DECODE) -> Counter[str]:
    """What the only replica of a side counts, from its own page: numbers by name, those of
    hand-overs by outcome.
    """
    handle = serve.get_deployment_handle(side, "app")
    place = handle.record_replica_metadata.remote().result()["penstock"]
    headers = {"authorization": f"Bearer {asyncio.run(cluster_secret())}"}
    page = httpx.get(
        f"http://{place['host']}:{place['port']}/metrics", headers=headers, timeout=PATIENCE_S
    )
    assert page.status_code == 200, page.text
    told: Counter[str] = Counter()
    for name, outcome, value in _SAMPLE.findall(page.text):
        told[outcome or name] = float(value)  # type: ignore[assignment]
    return told


def handed(told: Counter[str]) -> float:
    """Prompts, whoever computed them."""
    return sum(
        told[outcome]
        for outcome in ("remote", "local", "unavailable", "failed", "slow", "mismatch")
    )


def asks_prefill(url: str) -> bool:
    """Whether the prefill side computes a prompt now."""
    before = counts()["remote"]
    asyncio.run(all_of(url, MIXED[1:2]))
    return counts()["remote"] > before


def forget(url: str) -> None:
    """Nothing that was asked before is cached on either side."""
    assert (
        httpx.post(f"{url}/reset_prefix_cache", json={"model": "m"}, timeout=PATIENCE_S).status_code
        == 200
    )


def until(so: Callable[[], bool]) -> None:
    """Wait until something is so, which nobody announces."""
    give_up = time.monotonic() + PATIENCE_S
    while not so():
        assert time.monotonic() < give_up, "it did not happen"
        time.sleep(0.1)


def replica(side: str) -> Any:
    """The process of a side's only replica."""
    title = f"ray::ServeReplica:app:{side}"
    (found,) = [
        p
        for p in psutil.process_iter(["cmdline"])
        if (p.info["cmdline"] or [""])[0].startswith(title)
    ]
    return found


def engine(side: str) -> list[Any]:
    """The processes of the replica's engine."""
    found = [
        p
        for p in replica(side).children(recursive=True)
        if (p.cmdline() or [""])[0].startswith("VLLM::")
    ]
    assert found
    return found


# Tests
def test_200_mixed_requests_are_answered_as_by_one_engine(url: str, expected: list[Answer]) -> None:
    forget(url)
    before = counts()
    answers = asyncio.run(all_of(url, MIXED))
    after = counts()
    assert different(answers, expected) == []
    assert sum(bool(answer.tokens) for answer in answers) > 20
    assert after["remote"] - before["remote"] == handed(after) - handed(before) == 200
    assert after["engine_kv_transfers_total"] > before["engine_kv_transfers_total"]
    assert after["engine_kv_transfer_failures_total"] == 0


LONG = Asked(
    "/v1/completions",
    {
        "model": "m",
        "prompt": " ".join(TICKETS)[:5000],
        "max_tokens": 1500,
        "ignore_eos": True,
        "stream": True,
    },
)


async def leave_when(url: str, so: Callable[[], bool]) -> None:
    """Ask, and leave when something is so."""
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
        asking = asyncio.create_task(client.post(LONG.path, json=LONG.body))
        await asyncio.to_thread(until, so)
        assert not asking.done()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


def is_idle(side: str) -> bool:
    """Whether a side's server has no request."""
    told = counts(side)
    return not told["num_requests_running"] and not told["num_requests_waiting"]


def kept(url: str) -> list[tuple[float, ...]]:
    """What each engine tells after the last step of a short request: requests beside it, and blocks
    in use.
    """
    forget(url)
    asyncio.run(all_of(url, MIXED[1:2]))
    names = ("engine_requests_running", "engine_requests_waiting", "engine_kv_cache_usage")
    return [tuple(counts(side)[name] for name in names) for side in (PREFILL, DECODE)]


@pytest.mark.parametrize("leg", ["prefill", "decode"])
def test_a_client_that_leaves_on_either_leg_frees_both(url: str, leg: str) -> None:
    before = kept(url)
    if leg == "decode":
        steps = counts()["engine_steps_total"]
        asyncio.run(leave_when(url, lambda: counts()["engine_steps_total"] > steps + 20))
    else:
        stopped = engine(PREFILL)  # which takes as long for the prompt as the test needs
        for process in stopped:
            process.suspend()
        try:
            asyncio.run(leave_when(url, lambda: not is_idle(PREFILL)))
            until(lambda: is_idle(PREFILL) and is_idle(DECODE))
        finally:
            for process in stopped:
                process.resume()
    until(lambda: is_idle(PREFILL) and is_idle(DECODE))
    until(lambda: kept(url) == before)
    assert before[1][:2] == (0, 0)


def test_a_prefill_replica_that_is_killed_is_noticed_by_no_client(
    url: str, expected: list[Answer]
) -> None:
    forget(url)
    victim, processes = replica(PREFILL), engine(PREFILL)
    before = counts()

    def kill(count: int) -> None:
        if count == 20:
            victim.send_signal(signal.SIGKILL)

    answers = asyncio.run(all_of(url, MIXED, kill))
    after = counts()
    assert different(answers, expected) == []
    assert handed(after) - handed(before) == 200
    assert 0 < after["remote"] - before["remote"] < 200
    until(lambda: asks_prefill(url))  # Ray starts a new one
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE_S)
    assert not alive
