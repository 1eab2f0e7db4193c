"""The commands, and the process that serves: its start, its signals, its exit code."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from msgspec import structs

from penstock.cli import serve as commands
from penstock.cli.chat import chat
from penstock.cli.models import models
from penstock.cli.serve import serve
from penstock.errors import ConfigError
from serve_process import serving, simulated


@pytest.fixture(autouse=True)
def logging_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in the tests' own process: what they make of its logging would last, and hide it
    from `caplog`.
    """
    monkeypatch.setattr("penstock.observability.configure_logging", lambda *_: None)


@pytest.mark.slow
def test_models_and_chat_speak_to_a_server(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sesame\n")
    with serving(*simulated(), "--api-key-file", str(keys)) as server:
        runner = CliRunner()
        asked = ["--url", server.url, "--api-key", "sesame"]
        table = runner.invoke(models, asked)
        assert table.exit_code == 0
        assert table.output.splitlines()[0].split() == [
            "MODEL",
            "STATE",
            "CONTEXT",
            "ENGINE",
            "REASON",
        ]
        assert table.output.splitlines()[1].split()[0] == "simulated"
        said = runner.invoke(chat, [*asked, "--temperature", "0"], input="hello\n/new\nhello\n")
        assert said.exit_code == 0
        first, second = said.stdout.splitlines()
        assert first == second != ""
        refused = runner.invoke(models, ["--url", server.url])
        assert "an API key is needed" in str(refused.exception)
        assert "PENSTOCK_API_KEY" in str(refused.exception)
        assert server.stop(signal.SIGINT) == 0


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_ends_the_command_with_its_reason() -> None:
    argv = [sys.executable, "-m", "penstock.cli", "serve", "/no/such/model", "--port", "0"]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0
    assert "/no/such/model" in ended.stderr


def test_a_taken_port_is_told() -> None:
    from penstock.serve.http_server import listen

    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match="cannot listen"),
    ):
        listen("127.0.0.1", taken.getsockname()[1])


def test_no_server_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    result = CliRunner().invoke(models, ["--url", f"127.0.0.1:{port}"])
    assert f"no server answers at http://127.0.0.1:{port}" in str(result.exception)


def test_options_for_a_model_do_not_go_with_a_file() -> None:
    result = CliRunner().invoke(serve, ["models.yaml", "--engine", "simulated", "--port", "0"])
    assert isinstance(result.exception, ConfigError)


def test_a_memory_budget_is_for_one_process() -> None:
    result = CliRunner().invoke(serve, ["demo", "--runtime", "ray", "--memory-budget-gb", "1"])
    assert isinstance(result.exception, ConfigError)
    assert "local runtime" in str(result.exception)


def test_options_become_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PENSTOCK_API_KEYS", "a,b")
    monkeypatch.setenv("PENSTOCK_ADMIN_KEYS", "c")
    taken: list[Any] = []

    async def note(
        args: Any, settings: Any, listening: Any, keys: Any, budget: Any, *_: Any
    ) -> None:
        listening.close()
        taken.extend([args.llm_configs, settings, budget])

    monkeypatch.setattr(commands, "_serve", note)
    options = [
        "--dev",
        "--max-body-mb",
        "1",
        "--max-tokens",
        "9",
        "--cors-origin",
        "https://a",
        "--port",
        "0",
    ]
    options += ["--memory-budget-gb", "1.5", "--max-prompt-chars", "7"]
    result = CliRunner().invoke(serve, ["/models/tiny", "--engine", "simulated", *options])
    assert result.exception is None
    (config,), settings, budget = taken
    assert budget == 3 << 29
    assert settings.drain_timeout_s == 20
    assert config.model_loading_config.model_id == "tiny"
    assert config.llm_engine == "simulated"
    assert settings.api_keys == {"a", "b"}
    assert settings.admin_keys == {"c"}
    assert settings.dev
    assert settings.limits.max_body_bytes == 2**20
    assert settings.limits.max_tokens == 9
    assert (settings.limits.max_prompt_chars, settings.limits.max_choices) == (7, 128)
    assert settings.cors_origins == ("https://a",)


def test_a_replica_that_is_the_front_has_no_batches(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    model = {"model_loading_config": {"model_id": "m"}, "llm_engine": "simulated"}
    file.write_text(
        json.dumps({"llm_configs": [model], "listen": "127.0.0.1:1", "front": "replica"})
    )
    taken: list[Any] = []

    def note(args: Any, settings: Any, listening: Any) -> None:
        listening.close()
        taken.append(structs.replace(args, http=settings).http.batches)

    monkeypatch.setattr(commands, "_serve_on_ray", note)
    command = [str(file), "--runtime", "ray", "--port", "0"]
    assert CliRunner().invoke(serve, command).exception is None
    assert taken == [None]
    refused = CliRunner().invoke(serve, [*command, "--batch-dir", str(tmp_path)])
    assert isinstance(refused.exception, ConfigError)
    assert "batch and files APIs are the ingress's" in str(refused.exception)
