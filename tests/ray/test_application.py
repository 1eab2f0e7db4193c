"""The Ray runtime on a real cluster of two logical nodes, started for these tests and stopped by
them.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.serve")
    from ray import cloudpickle, serve
    from ray.cluster_utils import Cluster
    from ray.serve.config import AutoscalingConfig

psutil = pytest.importorskip("psutil")

from penstock.balance.policies.load import RoundRobin  # noqa: E402
from penstock.balance.policies.table import AdapterPreference, configured_policy  # noqa: E402
from penstock.engines.simulated.engine import SimulatedEngine  # noqa: E402
from penstock.errors import ConfigError  # noqa: E402
from penstock.llm_config import LLMConfig  # noqa: E402
from penstock.ray.deployments import LLMReplica  # noqa: E402
from penstock.ray.replicas import ClusterStore  # noqa: E402
from penstock.serve import (  # noqa: E402
    OpenAiIngress,
    build_dev_openai_app,
    build_dp_deployment,
    build_llm_deployment,
    build_openai_app,
    served_model,
)
from penstock.serve.config.placement import replica_bundles  # noqa: E402
from penstock.serve.replicas.runtime import change_desired  # noqa: E402
from ray_cluster import free_port, until  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

PATIENCE_S = 90
TO_ZERO = {"min_replicas": 0, "max_replicas": 1, "downscale_to_zero_delay_s": 2}
FAST = {
    "look_back_period_s": 1,
    "metrics_interval_s": 0.5,
    "upscale_delay_s": 0,
    "downscale_delay_s": 2,
}
MESSAGES = [{"role": "user", "content": "My Solara 77 is broken. I want my money back!"}]


def model(model_id: str, engine: dict[str, Any] | None = None, **deployment: Any) -> dict[str, Any]:
    scaling = deployment.pop("autoscaling_config", None)
    if scaling is not None:
        deployment["autoscaling_config"] = {**FAST, **scaling}
    return {
        "model_loading_config": {"model_id": model_id, "model_source": "simulated"},
        "llm_engine": "simulated",
        "engine_kwargs": engine or {},
        "deployment_config": {"graceful_shutdown_wait_loop_s": 0.2, **deployment},
    }


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster of two nodes, both on this machine."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    one = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 8,
            "num_gpus": 2,
            "object_store_memory": 80 * 2**20,
            "include_dashboard": False,
        },
    )
    one.add_node(num_cpus=2, resources={"other": 1}, object_store_memory=80 * 2**20)
    ray.init(
        address=one.address,
        log_to_driver=False,
        runtime_env={"env_vars": dict.fromkeys("ABC", "job")},
    )
    yield one
    serve.shutdown()
    ray.shutdown()
    one.shutdown()


@pytest.fixture(scope="module", autouse=True)
def proxy(cluster: Cluster) -> str:
    """The URL of Ray's own proxy."""
    port = free_port()
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    return f"http://127.0.0.1:{port}"


@contextmanager
def deployed(
    *models: dict[str, Any], build: Any = build_dev_openai_app, **options: Any
) -> Iterator[httpx.Client]:
    """These models behind an ingress; gives a client of its own port."""
    app = build({"llm_configs": list(models), "listen": "127.0.0.1:0", **options})
    try:
        handle = serve.run(app, name="app", route_prefix="/")
        with httpx.Client(base_url=handle.url.remote().result(), timeout=PATIENCE_S) as client:
            yield client
    finally:
        serve.delete("app")


STREAM = {"stream": True, "stream_options": {"include_usage": True}}


def tokens_of(stream: str) -> int:
    """How many tokens a whole stream had, however they were joined."""
    *_, last, done, _ = stream.split("\n\n")
    assert done == "data: [DONE]"
    count: int = json.loads(last.removeprefix("data: "))["usage"]["completion_tokens"]
    return count


def running(model_id: str) -> int:
    """How many replicas of a model Ray has."""
    deployments = serve.status().applications["app"].deployments
    states = {
        str(state): count
        for state, count in deployments[f"LLMServer:{model_id}"].replica_states.items()
    }
    return states.get("RUNNING", 0)


def ask(client: httpx.Client, model_id: str, **options: Any) -> httpx.Response:
    body = {"model": model_id, "messages": MESSAGES, "temperature": 0, **options}
    return client.post("/v1/chat/completions", json=body)


def replicas(model_id: str) -> dict[int, Any]:
    """The processes of a model's replicas."""
    title = f"ray::ServeReplica:app:LLMServer:{model_id}"
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [""])[0].startswith(title):
            found[process.pid] = process
    return found


def test_three_models_scale_to_zero_and_a_broken_one_harms_nobody() -> None:
    demo = model("demo", autoscaling_config=TO_ZERO)
    demo["model_loading_config"]["model_source"] = "demo"
    broken = model("broken", autoscaling_config=TO_ZERO)
    demo["llm_engine"] = broken["llm_engine"] = "openvino"
    names = ("plain", "demo", "broken")
    with deployed(model("plain", autoscaling_config=TO_ZERO), demo, broken) as client:
        # Nothing runs, and nothing is wrong.
        assert [running(name) for name in names] == [0, 0, 0]
        assert serve.status().applications["app"].status == "RUNNING"
        assert client.get("/health").status_code == 200
        cards = {card["id"]: card["state"] for card in client.get("/v1/models").json()["data"]}
        assert cards == {
            "plain": "cold",
            "demo": "cold",
            "demo:german": "cold",
            "demo:summary": "cold",
            "broken": "cold",
        }
        assert [running(name) for name in names] == [0, 0, 0]

        # The first request starts its own model and no other.
        assert ask(client, "plain").status_code == 200
        assert [running(name) for name in names] == [1, 0, 0]
        answer = ask(client, "demo")
        assert answer.status_code == 200, answer.text
        assert json.loads(answer.json()["choices"][0]["message"]["content"])["category"] == "refund"
        assert running("demo") == 1

        # The broken one says why, and the others answer on.
        refused = ask(client, "broken")
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "engine_start_failed"
        assert "simulated" in refused.json()["error"]["message"]
        state = client.get("/v1/models/broken").json()
        assert state["state"] == "failed"
        assert "simulated" in state["reason"]
        assert ask(client, "plain").status_code == 200

        # Idle models go, and come back.
        until(lambda: [running(name) for name in names] == [0, 0, 0])
        assert serve.status().applications["app"].status == "RUNNING"
        assert ask(client, "plain").status_code == 200
        assert running("plain") == 1


def test_scaling_sees_the_requests_that_ray_does_not_carry() -> None:
    slow = {"time_per_token_ms": 40, "output_tokens": 100}
    scaling = {
        "min_replicas": 0,
        "max_replicas": 2,
        "target_ongoing_requests": 2,
        "downscale_to_zero_delay_s": 1,
    }
    with deployed(model("m", slow, autoscaling_config=scaling)) as client:

        async def stream(asking: httpx.AsyncClient) -> int:
            body = {
                "model": "m",
                "messages": MESSAGES,
                "max_tokens": 250,
                "ignore_eos": True,
                **STREAM,
            }
            answer = await asking.post("/v1/chat/completions", json=body)
            return tokens_of(answer.text)

        async def load() -> list[int]:
            counts, grown = [], asyncio.Event()

            async def keep(asking: httpx.AsyncClient) -> None:
                while True:
                    counts.append(await stream(asking))
                    if grown.is_set():
                        return

            async with httpx.AsyncClient(base_url=client.base_url, timeout=PATIENCE_S) as asking:
                streams = [asyncio.create_task(keep(asking)) for _ in range(8)]
                try:
                    await asyncio.to_thread(until, lambda: running("m") == 2)
                finally:
                    grown.set()
                await asyncio.gather(*streams)
            return counts

        # Streams of ten seconds on a model that goes after one idle second: none is cut. They go
        # on until a second replica is there, which a busy machine may take a while to start.
        counts = asyncio.run(load())
        assert len(counts) >= 8
        assert set(counts) == {250}
        until(lambda: running("m") == 0)


def test_a_killed_replica() -> None:
    slow = {"time_to_first_token_ms": 1500, "time_per_token_ms": 20, "output_tokens": 100}
    with deployed(model("m", slow, num_replicas=2, health_check_period_s=1)) as client:
        until(lambda: len(replicas("m")) == 2 and running("m") == 2)
        before = set(replicas("m"))

        async def load() -> tuple[list[httpx.Response], list[httpx.Response]]:
            body = {"model": "m", "messages": MESSAGES, "max_tokens": 100, "ignore_eos": True}
            async with httpx.AsyncClient(base_url=client.base_url, timeout=PATIENCE_S) as asking:

                def send(stream: bool) -> asyncio.Task[httpx.Response]:
                    return asyncio.create_task(
                        asking.post("/v1/chat/completions", json={**body, "stream": stream})
                    )

                early = [send(True) for _ in range(6)]
                await asyncio.sleep(2.2)  # they stream by now
                late = [send(True) for _ in range(6)]
                await asyncio.sleep(0.5)  # and these have no token yet
                os.kill(min(before), signal.SIGKILL)
                return [await one for one in early], [await one for one in late]

        early, late = asyncio.run(load())
        ended = [answer.text.rstrip("\n").split("\n\n") for answer in early]
        broken = [events for events in ended if "is gone" in events[-2]]
        assert broken
        assert len(broken) < len(ended)
        assert all(
            json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "engine_dead"
            for events in broken
        )
        for answer in late:
            assert "error" not in answer.text
            assert answer.text.count('"content":') == 101
        until(lambda: running("m") == 2 and len(set(replicas("m")) - before) == 1)


def test_what_was_asked_of_a_model_holds_for_replicas_that_start_later() -> None:
    with deployed(model("m", num_replicas=2, health_check_period_s=1)) as client:
        until(lambda: len(replicas("m")) == 2)
        told = client.post("/sleep", json={"model": "m"}).json()["replicas"]
        assert [replica["ok"] for replica in told] == [True, True]
        victim = min(replicas("m"))
        os.kill(victim, signal.SIGKILL)
        until(lambda: running("m") == 2 and len(set(replicas("m")) - {victim}) == 2)

        def asleep() -> list[Any]:
            return [
                part.get("result") for part in client.get("/is_sleeping?model=m").json()["replicas"]
            ]

        until(lambda: len(asleep()) == 2)
        until(lambda: asleep() == [True, True])
        assert ask(client, "m").status_code == 503
        assert all(
            part["ok"] for part in client.post("/wakeup", json={"model": "m"}).json()["replicas"]
        )
        assert ask(client, "m").status_code == 200


def test_bundles_land_where_they_are_asked_to() -> None:
    spread = model("m")
    spread["placement_group_config"] = {
        "bundles": [{"CPU": 1}, {"CPU": 1, "other": 0.5}],
        "strategy": "STRICT_SPREAD",
    }
    with deployed(spread) as client:
        assert ask(client, "m").status_code == 200
        groups = [
            group
            for group in ray.util.placement_group_table().values()
            if group["state"] == "CREATED"
        ]
        wanted = replica_bundles(LLMConfig.from_dict(spread))
        (group,) = (group for group in groups if len(group["bundles"]) == 2)
        assert [group["bundles"][number] for number in (0, 1)] == wanted
        assert group["strategy"] == "STRICT_SPREAD"
        assert len(set(group["bundles_to_node_id"].values())) == 2


def test_files_of_a_bucket_are_copied_where_the_replica_runs(tmp_path: Path) -> None:
    bucket, here = tmp_path / "bucket", tmp_path / "here"
    bucket.mkdir()
    (bucket / "more.txt").write_text("more")
    one = model("m")
    one["model_loading_config"]["model_source"] = {
        "bucket_uri": f"file://{bucket}",
        "extra_files": [{"bucket_uri": f"file://{bucket}", "destination_path": str(here)}],
    }
    with deployed(one) as client:
        assert ask(client, "m").status_code == 200
        assert (here / "more.txt").read_text() == "more"


class Greeting(OpenAiIngress):
    """An ingress of a user's own."""

    def __init__(self, *args: Any, greeting: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._greeting = greeting.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope.get("path") != "/greeting":
            await super().__call__(scope, receive, send)
            return
        handle = self.ingress.models.handles["m"]
        tokens = await handle.tokenize("hi")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": self._greeting + str(tokens).encode()})


def test_an_ingress_class_of_ones_own() -> None:
    custom = {"ingress_cls": Greeting, "ingress_extra_kwargs": {"greeting": "hello "}}
    with deployed(model("m"), ingress_cls_config=custom) as client:
        assert client.get("/greeting").text == "hello [104, 105]"
        assert ask(client, "m").status_code == 200


def test_an_import_path_and_rays_own_proxy(proxy: str) -> None:
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

    import penstock.serve

    args = {"llm_configs": [model("m", {"time_per_token_ms": 2})]}
    app = call_user_app_builder_with_args_if_necessary(penstock.serve.build_openai_app, args)
    try:
        handle = serve.run(app, name="app", route_prefix="/llm")
        assert handle.url.remote().result() == ""  # it listens only where it was told to
        with httpx.Client(base_url=f"{proxy}/llm", timeout=PATIENCE_S) as client:
            assert [card["id"] for card in client.get("/v1/models").json()["data"]] == ["m"]
            body = {"model": "m", "messages": MESSAGES, "stream": True, "max_tokens": 8}
            with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                lines = [line for line in answer.iter_lines() if line]
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert lines[-1] == "data: [DONE]"
            assert len(lines) == 1 + 8 + 1
            (id,) = answer.headers.get_list("x-request-id")  # the proxy's
            assert id in lines[0]
            assert client.post("/sleep", json={"model": "m"}).status_code == 404  # not without dev

            # A client that leaves frees its place, through Ray's proxy too.
            served = serve.get_deployment_handle("LLMServer:m", "app").record_autoscaling_stats
            endless = {**body, "max_tokens": 30_000, "ignore_eos": True}
            with client.stream("POST", "/v1/chat/completions", json=endless) as answer:
                events = answer.iter_lines()
                next(events)
                assert served.remote().result() == {"running_requests": 1.0}
            until(lambda: served.remote().result() == {"running_requests": 0.0})
    finally:
        serve.delete("app")


def test_the_only_replica_as_the_front() -> None:
    port = free_port()
    app = build_openai_app(
        {"llm_configs": [model("m")], "listen": f"127.0.0.1:{port}", "front": "replica"}
    )
    try:
        handle = serve.run(app, name="app", route_prefix="/")
        assert handle.url.remote().result() == ""  # the ingress does not listen
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as client:
            assert [card["id"] for card in client.get("/v1/models").json()["data"]] == ["m"]
            assert ask(client, "m", max_tokens=4).status_code == 200
            assert client.post("/penstock/control", json={"method": "is_paused"}).status_code == 404
            (victim,) = replicas("m")
            os.kill(victim, signal.SIGKILL)

            def answers() -> bool:
                try:
                    return ask(client, "m", max_tokens=4).status_code == 200
                except httpx.TransportError:
                    return False

            until(lambda: victim not in replicas("m") and answers())
    finally:
        serve.delete("app")


@pytest.mark.skipif(
    "max_surge_percent" not in inspect.signature(serve.deployment).parameters,
    reason="this Ray stops an ingress before it starts the next one",
)
def test_a_new_version_replaces_the_old_one_and_no_client_notices() -> None:
    port = free_port()
    slow = {"time_per_token_ms": 20, "output_tokens": 100}
    app = build_openai_app(
        {"llm_configs": [model("m", slow, num_replicas=2)], "listen": f"127.0.0.1:{port}"}
    )

    async def asked_meanwhile(done: asyncio.Task[Any]) -> tuple[list[httpx.Response], list[str]]:
        body = {"model": "m", "messages": MESSAGES, "max_tokens": 100, "ignore_eos": True}
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        kept, streams = [], []
        async with httpx.AsyncClient(timeout=PATIENCE_S) as one:  # its connections are kept
            while not done.done():
                streams.append(asyncio.create_task(one.post(url, json={**body, **STREAM})))
                kept.append(await one.post(url, json={**body, "max_tokens": 5}))
            return kept, [(await stream).text for stream in streams]

    async def update() -> tuple[list[httpx.Response], list[str]]:
        again = asyncio.create_task(asyncio.to_thread(serve.run, app, name="app", route_prefix="/"))
        return await asked_meanwhile(again)

    try:
        serve.run(app, name="app", route_prefix="/")
        until(lambda: running("m") == 2)
        before = set(replicas("m"))
        answers, streams = asyncio.run(update())
        until(lambda: len(set(replicas("m")) - before) == 2)
        assert {answer.status_code for answer in answers} == {200}
        assert [tokens_of(text) for text in streams] == [100] * len(streams)
    finally:
        serve.delete("app")


class Probe(LLMReplica):
    """A replica that tells of its process."""

    async def variables(self, *names: str) -> tuple[str | None, ...]:
        return tuple(os.environ.get(name) for name in names)


def test_what_a_replicas_process_has() -> None:
    """Runtime environments by precedence, and of the machine's devices its own."""
    one = model(
        "m",
        ray_actor_options={"runtime_env": {"env_vars": {"B": "actor", "C": "actor"}}},
        num_replicas=2,
    )
    one["runtime_env"] = {"env_vars": {"C": "model"}}
    one["placement_group_config"] = {"bundles": [{"GPU": 1}]}
    app = build_llm_deployment(one, deployment_cls=Probe)
    try:
        handle = serve.run(app, name="app", route_prefix=None)
        seen: set[tuple[str, ...]] = set()

        def both() -> bool:
            seen.add(handle.variables.remote("A", "B", "C", "CUDA_VISIBLE_DEVICES").result())
            return len(seen) == 2

        until(both)
        assert seen == {("job", "actor", "model", "0"), ("job", "actor", "model", "1")}
    finally:
        serve.delete("app")


class Mine:
    """A deployment of a user's own, in front of a model."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm

    async def tokens(self, text: str) -> list[int]:
        served = await served_model(self._llm)
        ids: list[int] = await served.tokenize(text)
        return ids


def test_a_model_in_an_application_of_ones_own() -> None:
    try:
        handle = serve.run(
            serve.deployment(Mine).bind(build_llm_deployment(model("m"))),
            name="app",
            route_prefix=None,
        )
        assert handle.tokens.remote("hi").result() == [104, 105]
    finally:
        serve.delete("app")


def test_a_lost_node_cuts_the_streams_that_it_had_begun_and_nothing_else(cluster: Cluster) -> None:
    doomed, _ = [
        cluster.add_node(num_cpus=2, resources={"model": 1}, object_store_memory=80 * 2**20)
        for _ in range(2)
    ]
    # Each on a node of its own, and so slow that answers are under way on both.
    slow = model(
        "m",
        {"time_per_token_ms": 20},
        num_replicas=2,
        ray_actor_options={"resources": {"model": 1}},
    )
    on_head = {"ray_actor_options": {"resources": {"node:__internal_head__": 0.001}}}
    lost = threading.Event()

    def ask_often(client: httpx.Client, number: int) -> Counter[str]:
        """What became of one client's requests: all plain, or all streams."""
        ends, more = Counter[str](), 5
        while more:
            more -= lost.is_set()
            if number % 2:
                stream = ask(client, "m", max_tokens=40, ignore_eos=True, **STREAM).text
                is_cut = '"code":"engine_dead"' in stream
                ends["cut"] += is_cut
                ends["whole"] += not is_cut and tokens_of(stream) == 40
            else:
                answer = ask(client, "m", max_tokens=40, ignore_eos=True)
                ends[str(answer.status_code)] += 1
        return ends

    with (
        deployed(slow, ingress_deployment_config=on_head) as client,
        ThreadPoolExecutor(6) as threads,
    ):
        until(lambda: running("m") == 2)
        asking = [threads.submit(ask_often, client, number) for number in range(6)]
        ask(client, "m", max_tokens=80)
        cluster.remove_node(doomed, allow_graceful=False)
        lost.set()
        ends = [one.result() for one in asking]
    # An answer of which the client has a part cannot be begun anew.
    assert all(end.keys() == {"200"} for end in ends[::2])
    assert all(end["cut"] <= 1 and end["whole"] >= 5 for end in ends[1::2])


def test_the_clusters_store_loses_nothing_that_is_asked_at_once() -> None:
    def ask_often(method: str) -> None:
        async def asks() -> None:
            store = ClusterStore("mark", "org/m")
            for _ in range(10):
                await change_desired(store, method, {})

        asyncio.run(asks())

    with ThreadPoolExecutor() as threads:  # each with an event loop of its own
        list(threads.map(ask_often, ["sleep", "pause", "sleep", "pause"]))
    state = asyncio.run(ClusterStore("mark", "org/m").load())
    assert (state.version, state.asleep, state.paused) == (40, 1, "wait")
    assert asyncio.run(ClusterStore("mark", "org").load()).version == 0


def test_the_clusters_store_keeps_what_engines_can_do() -> None:
    store, able = ClusterStore("mark", "org/a"), SimulatedEngine().capabilities
    asyncio.run(store.note("one", able))
    assert asyncio.run(store.noted("one")) == able
    assert asyncio.run(store.noted("other")) is None
    assert asyncio.run(store.load()).version == 0


def test_options_of_a_deployment() -> None:
    app = build_llm_deployment(
        model("org/m.1", num_replicas=3, max_ongoing_requests=7),
        name_prefix="mine:",
        override_serve_options={"max_queued_requests": 2},
    )
    deployment = app._bound_deployment
    assert deployment.name == "mine:org--m_1"
    assert deployment.num_replicas == 3
    assert deployment._deployment_config.max_queued_requests == 2
    # What is overridden is what the replica goes by, too.
    assert (
        app._bound_deployment.init_kwargs["llm_config"].deployment_config.max_queued_requests == 2
    )
    scaled = build_llm_deployment(
        model("m", num_replicas=3, max_ongoing_requests=8),
        override_serve_options={
            "autoscaling_config": AutoscalingConfig(min_replicas=0, max_replicas=2)
        },
    )._bound_deployment
    assert scaled._deployment_config.autoscaling_config.target_ongoing_requests == 6
    assert scaled._deployment_config.autoscaling_config.min_replicas == 0
    auto = build_llm_deployment(
        model("m", num_replicas="auto")
    )._bound_deployment._deployment_config
    assert (
        auto.autoscaling_config.max_replicas,
        auto.autoscaling_config.target_ongoing_requests,
    ) == (100, 32)
    group = model("a/b", {"data_parallel_size": 2})
    assert build_dp_deployment(group)._bound_deployment.name == "DPServer:a--b"
    routed = build_llm_deployment(
        model("m"),
        override_serve_options={"request_router_config": {"request_router_class": "round_robin"}},
    )._bound_deployment
    policy = configured_policy(routed.init_kwargs["llm_config"])
    assert isinstance(policy, AdapterPreference)
    assert isinstance(policy.policy, RoundRobin)
    with pytest.raises(
        ConfigError,
        match=r"override_serve_options: unknown key .*'max_replicas_per_node'",
    ):
        build_llm_deployment(model("m"), override_serve_options={"max_replicas_per_nod": 1})
    with pytest.raises(ConfigError, match="ingress_deployment_config"):
        build_openai_app(
            {"llm_configs": [model("m")], "ingress_deployment_config": {"num_replica": 2}}
        )
    with pytest.raises(ConfigError, match=r"http\.engine_app: is for the local runtime"):
        build_openai_app({"llm_configs": [model("m")], "http": {"engine_app": "/engine"}})
    for name in ("bind_kwargs", "deployment_kwargs"):
        given: dict[str, Any] = {name: {"host": "127.0.0.1"}}
        assert (
            build_llm_deployment(model("m"), **given)._bound_deployment.init_kwargs["host"]
            == "127.0.0.1"
        )
    with pytest.raises(ConfigError, match="Did you mean 'round_robin'"):
        build_llm_deployment(
            model("m", request_router_config={"request_router_class": "round_robbin"})
        )
    with pytest.raises(ConfigError, match="two models"):
        build_openai_app({"llm_configs": [model("m"), model("m")]})
