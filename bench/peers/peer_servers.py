"""Starts the servers of peers, each with the Python of its own environment."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from harness import PENSTOCK  # noqa: E402

_START_TIMEOUT_S = 120.0


def interpreter(peer: str) -> str:
    """The Python of the peer's environment, which is made at first use."""
    command = [str(HERE / "install.sh"), peer]
    made = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return made.stdout.strip()


def versions(peer: str) -> dict[str, str]:
    """What its environment was made of, by package."""
    packages = Path(interpreter(peer)).parents[1].joinpath("installed").read_text().split()
    return dict(package.split("==", 1) for package in packages if "==" in package)


@contextlib.contextmanager
def llama_cpp(model: str, slots: int) -> Iterator[str]:
    """llama.cpp's server over a GGUF file; gives its address."""
    port = _free_port()
    argv = [str(HERE / "llama_cpp_server.py"), model, str(port), str(slots)]
    with _running([interpreter("llama_cpp"), *argv], port) as url:
        yield url


@contextlib.contextmanager
def litellm(upstream: str) -> Iterator[str]:
    """LiteLLM's proxy in front of the server at `upstream`; gives its address."""
    port = _free_port()
    target = {"model": "openai/simulated", "api_base": f"{upstream}/v1", "api_key": "none"}
    config = {
        "model_list": [{"model_name": "simulated", "litellm_params": target}],
        "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},
    }
    command = Path(interpreter("litellm")).with_name("litellm")
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(config, file)  # JSON is YAML
        file.flush()
        argv = [str(command), "--config", file.name, "--host", "127.0.0.1", "--port", str(port)]
        with _running([*argv, "--telemetry", "False"], port) as url:
            yield url


@contextlib.contextmanager
def upstream() -> Iterator[str]:
    """A server without a model, which writes each token by itself, one in 2 ms a stream; gives
    its address.
    """
    port = _free_port()
    pace = json.dumps({"time_per_token_ms": 2, "output_tokens": 64, "max_num_seqs": 256})
    options = ["--engine", "simulated", "--engine-kwargs", pace, "--port", str(port)]
    with _running([PENSTOCK, "serve", "simulated", *options], port, os.environ) as url:
        yield url


@contextlib.contextmanager
def _running(
    argv: list[str], port: int, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    url = f"http://127.0.0.1:{port}"
    if environment is None:  # a peer's: it asks no hub, and sees nothing of this environment
        environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        environment.pop("PYTHONPATH", None)
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, env=environment)
        try:
            deadline = time.monotonic() + _START_TIMEOUT_S
            while not _answers(f"{url}/v1/models"):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"{argv[0]} did not start: {log.read()[-500:]}")
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
        return bool(answer.status == 200)
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
