"""`penstock serve` with the flags that people type for `vllm serve`."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from click.testing import CliRunner

from penstock.cli import serve as commands
from penstock.cli.serve import serve
from penstock.cli.serve.vllm_flags import as_options
from penstock.errors import ConfigError
from penstock.serve.config.serving_args import load_serving_args
from penstock.serve.config.settings import HttpSettings
from serve_process import simulated


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What `penstock serve` makes of its arguments: the model and the settings."""

    def run(*args: str) -> Any:
        taken: list[Any] = []

        async def note(args: Any, settings: Any, listening: Any, *_: Any) -> None:
            listening.close()
            taken.extend([args.llm_configs[0], settings])

        monkeypatch.setattr(commands, "_serve", note)
        result = CliRunner().invoke(serve, [*args, "--port", "0"])
        if result.exception is not None:
            raise result.exception
        return taken

    return run


def test_replicas_are_a_number_of_the_model(told: Any) -> None:
    config, _ = told("m", "--engine", "simulated", "--replicas", "3")
    assert config.deployment_config.num_replicas == 3
    plain, _ = told("m", "--engine", "simulated")
    assert plain.deployment_config.num_replicas is None


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ("m --api-key a b --dev", "m --api-key a --api-key b --dev"),
        ("--api-key a m", "--api-key a m"),
        ("--engine vllm m --api_key a b", "--engine vllm m --api-key a --api-key b"),
        ("--dev m --api-key a b", "--dev m --api-key a --api-key b"),
        ("m --api-key=a", "m --api-key=a"),
        ("m --enable-auto-tool-choice --disable_log_requests --dtype auto", "m --dtype auto"),
        ("--enforce-eager m --api-key a b", "--enforce-eager m --api-key a --api-key b"),
        (
            "--no-enforce-eager --tracing m --api-key a b",
            "--no-enforce-eager --tracing m --api-key a --api-key b",
        ),
        ("m --lora-modules x=/x y=/y -tp 2", "m --lora-modules x=/x --lora-modules y=/y -tp 2"),
    ],
)
def test_arguments_are_read_as_vllm_reads_them(args: str, options: str) -> None:
    params = serve.get_params(click.Context(serve))
    assert as_options(args.split(), params) == options.split()


def test_flags_of_the_server(told: Any) -> None:
    config, settings = told(
        *("./tiny", "--engine", "simulated", "--served-model-name", "one", "two", "three"),
        *("--api-key", "k1", "k2", "--lora-modules", "x=/x", '{"name": "y", "path": "/y"}'),
        *("--root-path", "/llm/", "--vllm-metrics", "--allowed-origins", '["https://a"]'),
    )
    assert config.model_id == "one"
    assert config.model_loading_config.aliases == ["two", "three"]
    assert config.lora_config.adapters == {"x": "/x", "y": "/y"}
    assert settings.api_keys == {"k1", "k2"}
    assert (settings.root_path, settings.vllm_metrics) == ("/llm", True)
    assert settings.cors_origins == ("https://a",)


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ("--max-model-len 4k --max-num-seqs 8", {"max_model_len": 4000, "max_num_seqs": 8}),
        ("--max-model-len 4K", {"max_model_len": 4096}),
        ("--dtype bfloat16", {"inference_precision": "bf16"}),
        ("--no-enable-prefix-caching", {"enable_prefix_caching": False}),
        ("--dtype auto -tp 1 --trust-remote-code --enforce-eager --enable-lora", {}),
        ("--generation-config vllm --exclude-tools-when-tool-choice-none", {}),
        ('--max-num-seqs 8 --engine-kwargs {"max_num_seqs":4}', {"max_num_seqs": 4}),
    ],
)
def test_flags_of_the_embedded_engine(told: Any, args: str, options: dict[str, Any]) -> None:
    config, _ = told("./tiny", *args.split())
    assert config.engine_kwargs == options


def test_flags_of_other_engines(told: Any) -> None:
    args = [
        "--max-model-len",
        "4096",
        "--gpu-memory-utilization",
        "0.5",
        "-tp",
        "2",
        "--seed",
        "3",
        "--dtype",
        "half",
    ]
    config, _ = told("./tiny", "--engine", "vllm", *args, "--hf-overrides", '{"a": 1}')
    assert config.engine_kwargs == {
        "max_model_len": 4096,
        "gpu_memory_utilization": 0.5,
        "tensor_parallel_size": 2,
        "seed": 3,
        "dtype": "half",
        "hf_overrides": {"a": 1},
    }
    front = "--return-tokens-as-token-ids --trust-request-mm-kwargs --tool-parser-plugin a.py"
    config, _ = told("./tiny", "--engine", "vllm", *front.split())
    assert config.engine_kwargs == {
        "return_tokens_as_token_ids": True,
        "trust_request_mm_kwargs": True,
        "tool_parser_plugin": "a.py",
    }
    config, _ = told("./tiny", "--engine", "sglang", *args)
    assert config.engine_kwargs == {
        "context_length": 4096,
        "mem_fraction_static": 0.5,
        "tp_size": 2,
        "random_seed": 3,
        "dtype": "half",
    }


@pytest.mark.parametrize(
    ("args", "field", "hint"),
    [
        ("./tiny --gpu-memory-utilization 0.5", "--gpu-memory-utilization", "kv-cache-memory"),
        ("./tiny --generation-config auto", "--generation-config", "OpenAI's default"),
        ("./tiny --return-tokens-as-token-ids", "as-token-ids", "return_token_ids"),
        ("./tiny --trust-request-mm-kwargs", "mm-kwargs", "--engine vllm"),
        ("./tiny --enable-force-include-usage", "include-usage", "stream_options"),
        ("./tiny -tp 2", "--tensor-parallel-size", "--engine vllm"),
        ("./tiny --engine remote --dtype half", "--dtype", "server that it asks"),
        ("./tiny --middleware a.b", "--middleware", "ingress_cls_config"),
        ("./tiny --hf-overrides 1", "--hf-overrides", "JSON object"),
        ("./tiny --lora-modules x", "--lora-modules", "NAME=PATH"),
        ("./tiny --allowed-origins a", "--allowed-origins", "JSON list"),
        ("./tiny --ssl-keyfile a", "--ssl-certfile", "missing"),
        ("./tiny --ssl-cert-reqs 2", "--ssl-certfile", "missing"),
        ("./tiny --uds a", "--port", "beside --uds"),
        ("./tiny --batch-dir=", "path", "empty"),
        ("./tiny --batch-files=", "files", "empty"),
        ("./tiny --runtime ray --uds a", "--uds", "local runtime"),
        ("./tiny --runtime ray --engine-app /e", "--engine-app", "local runtime"),
        ("./tiny --root-path llm", "root_path", "slash"),
        ("./tiny --cors-origin https://ui.example/", "cors_origins", "no path"),
        ("./tiny --cors-origin localhost:3000", "cors_origins", "no web origin"),
        ("./tiny --cors-origin https://*.ui.example", "cors_origins", "no web origin"),
        ("./tiny --allowed-host box:8000", "allowed_hosts", "no port"),
        ("models.yaml --max-model-len 5", "", "for a MODEL"),
    ],
)
def test_what_is_not_honoured_is_refused(told: Any, args: str, field: str, hint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        told(*args.split())
    assert field in str(refused.value)
    assert hint in str(refused.value)


def test_settings_of_a_file_that_do_not_count_are_named(
    told: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    monkeypatch.setattr(commands._log, "warning", lambda text, *of: warned.append(text % of))
    file = tmp_path / "models.yaml"
    model = {"model_loading_config": {"model_id": "m", "model_source": "demo"}}
    stored = {"llm_configs": [model], "http": {"store": {"path": str(tmp_path / "a.db")}}}
    file.write_text(json.dumps(stored))
    told(str(file))
    assert warned == []
    asks = {"import_path": "ray.serve.llm:build_dev_openai_app", "args": stored}
    file.write_text(json.dumps({"applications": [asks]}))
    assert told(str(file))[1].dev
    assert warned == []
    file.write_text(json.dumps({**stored, "listen": "127.0.0.1:8000"}))
    told(str(file))
    (only,) = warned
    assert "passes over listen" in only


def test_the_http_of_a_file_counts_below_the_command(
    told: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with keys has never made a server that is open to all."""
    model = {"model_loading_config": {"model_id": "m", "model_source": "demo"}}
    http = {
        "api_keys": ["one"],
        "admin_keys": ["boss"],
        "dev": True,
        "cors_origins": ["https://a.example"],
        "allowed_hosts": ["a.example"],
        "limits": {"max_tokens": 5, "max_inflight": 3},
        "trust_request_chat_template": True,
        "vllm_metrics": True,
        "root_path": "/llm",
        "engine_app": "/engine",
        "drain_timeout_s": 30,
        "store": {"path": "a.db"},
        "batches": {"path": "b"},
        "console": False,
    }
    assert http.keys() == {*HttpSettings.__struct_fields__}
    file = tmp_path / "models.yaml"
    file.write_text(json.dumps({"llm_configs": [model], "http": http}))
    assert told(str(file))[1] == load_serving_args(str(file)).http
    monkeypatch.setenv("PENSTOCK_API_KEYS", "two")
    typed = ("--max-tokens", "7", "--drain-timeout", "0", "--root-path", "/b")
    given = told(str(file), *typed, "--allowed-host", "b.example")[1]
    assert given.api_keys == {"one", "two"}
    assert (given.limits.max_tokens, given.limits.max_inflight) == (7, 3)
    assert (given.drain_timeout_s, given.root_path) == (0, "/b")
    assert given.allowed_hosts == ("a.example", "b.example")


def test_the_application_of_an_engine_is_refused_on_ray(told: Any, tmp_path: Path) -> None:
    """The ingress would fail at it in a replica, which Ray starts again and again."""
    model = {"model_loading_config": {"model_id": "m"}, "llm_engine": "simulated"}
    file = tmp_path / "models.yaml"
    file.write_text(json.dumps({"llm_configs": [model], "http": {"engine_app": "/engine"}}))
    with pytest.raises(ConfigError, match="local runtime") as caught:
        told(str(file), "--runtime", "ray")
    assert caught.value.field == "http.engine_app"


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "penstock.sock"
    argv = [*simulated(), "--uds", str(path), "--served-model-name", "one", "two"]
    with _started(argv, f"Listening on unix:{path} ") as (process, _):
        with httpx.Client(
            transport=httpx.HTTPTransport(uds=str(path)), base_url="http://x"
        ) as client:
            assert client.get("/health").status_code == 200
            cards = client.get("/v1/models").json()["data"]
            assert [(card["id"], card["parent"]) for card in cards] == [
                ("one", None),
                ("two", "one"),
            ]
            answer = client.post("/tokenize", json={"model": "two", "prompt": "a"})
            assert answer.json()["count"] == 1
        process.terminate()
        assert process.wait(30) == 0
    assert not path.exists()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl makes certificates")
def test_tls(tmp_path: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    argv = [*simulated(), "--port", "0", "--ssl-certfile", str(cert), "--ssl-keyfile", str(key)]
    with _started(argv, "Listening on https://127.0.0.1:") as (process, line):
        url = line.split()[2]
        trusted = ssl.create_default_context(cafile=str(cert))
        assert httpx.get(f"{url}/health", verify=trusted).status_code == 200
        process.terminate()
        assert process.wait(30) == 0
    with _started([*simulated(), "--port", "0", "--ssl-certfile", str(key)], "") as (process, _):
        assert process.wait(30) == 2


@contextmanager
def _started(argv: list[str], begin: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server, and the first line that it wrote. It is killed if it does not end."""
    with subprocess.Popen(
        [sys.executable, "-m", "penstock.cli", "serve", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith(begin), line
            yield process, line
        finally:
            process.kill()
