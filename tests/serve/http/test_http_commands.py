"""The commands, and the process that serves: its start, its signals, its exit code."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from penstock.cli import serve as commands
from penstock.cli.serve import chat, models, serve
from penstock.errors import ConfigError

SERVE = "from penstock.cli.serve import serve; serve()"


@contextmanager
def process(*args: str, **env: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`penstock serve` as a process of its own, and its URL."""
    given = {**os.environ, "PYTHONUNBUFFERED": "1", **env}
    argv = [sys.executable, "-c", SERVE, *args, "--port", "0", "--log-level", "warning"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=given) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        try:
            line = running.stdout.readline()
            assert line.startswith("Listening on http://127.0.0.1:"), running.stderr.read()
            yield running, line.split()[2]
        finally:
            if running.poll() is None:
                running.kill()


def simulated(**options: Any) -> list[str]:
    return ["simulated", "--engine", "simulated", "--engine-kwargs", json.dumps(options)]


@pytest.mark.slow
def test_sigterm_ends_every_stream_and_exits_with_zero() -> None:
    options = simulated(time_per_token_ms=5, output_tokens=30_000, max_num_seqs=64)
    body = json.dumps({"messages": [{"role": "user", "content": "x"}], "stream": True}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}"
    with process(*options, "--drain-timeout", "0.5") as (server, url), ExitStack() as stack:
        host, port = url.removeprefix("http://").split(":")
        streams = [stack.enter_context(socket.create_connection((host, int(port)), timeout=20)) for _ in range(64)]
        for stream in streams:
            stream.sendall(head.encode() + b"\r\n\r\n" + body)
        for stream in streams:
            assert stream.recv(1 << 16)
        server.send_signal(signal.SIGTERM)
        for stream in streams:
            received = b""
            while part := stream.recv(1 << 16):
                received += part
            assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
            assert b'"code":"shutting_down"' in received
        assert server.wait(20) == 0


@pytest.mark.slow
def test_models_and_chat_speak_to_a_server(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sesame\n")
    with process(*simulated(), "--api-key-file", str(keys)) as (server, url):
        runner = CliRunner()
        asked = ["--url", url, "--api-key", "sesame"]
        table = runner.invoke(models, asked)
        assert table.exit_code == 0
        assert table.output.splitlines()[0].split() == ["MODEL", "STATE", "CONTEXT", "ENGINE", "REASON"]
        assert table.output.splitlines()[1].split()[0] == "simulated"
        said = runner.invoke(chat, [*asked, "--temperature", "0"], input="hello\n/new\nhello\n")
        assert said.exit_code == 0
        first, second = said.stdout.splitlines()
        assert first == second != ""
        refused = runner.invoke(models, ["--url", url])
        assert "API key" in str(refused.exception)
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_ends_the_command_with_its_reason() -> None:
    argv = [sys.executable, "-c", SERVE, "/no/such/model", "--port", "0"]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0
    assert "/no/such/model" in ended.stderr


def test_a_taken_port_is_told() -> None:
    from penstock.serve.http_server import listen

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="cannot listen"):
        listen("127.0.0.1", taken.getsockname()[1])


def test_no_server_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    result = CliRunner().invoke(models, ["--url", f"127.0.0.1:{port}"])
    assert f"no server answers at http://127.0.0.1:{port}" in str(result.exception)


def test_options_for_a_model_do_not_go_with_a_file() -> None:
    result = CliRunner().invoke(serve, ["models.yaml", "--engine", "simulated", "--port", "0"])
    assert isinstance(result.exception, ConfigError)


def test_options_become_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PENSTOCK_API_KEYS", "a,b")
    monkeypatch.setenv("PENSTOCK_ADMIN_KEYS", "c")
    taken: list[Any] = []

    async def note(args: Any, settings: Any, listening: Any) -> None:
        listening.close()
        taken.extend([args.llm_configs, settings])

    monkeypatch.setattr(commands, "_serve", note)
    monkeypatch.setattr("penstock.observability.configure_logging", lambda *_: None)
    options = ["--dev", "--max-body-mb", "1", "--max-tokens", "9", "--cors-origin", "https://a", "--port", "0"]
    result = CliRunner().invoke(serve, ["/models/tiny", "--engine", "simulated", *options])
    assert result.exception is None
    (config,), settings = taken
    assert config.model_loading_config.model_id == "tiny"
    assert config.llm_engine == "simulated"
    assert settings.api_keys == {"a", "b"}
    assert settings.admin_keys == {"c"}
    assert settings.dev
    assert settings.limits.max_body_bytes == 2**20
    assert settings.limits.max_tokens == 9
    assert settings.cors_origins == ("https://a",)
