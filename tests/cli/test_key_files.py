"""Keys of files that change while a server runs."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from penstock.cli.serve import keys
from penstock.cli.serve.keys import KeyFiles
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.serve.api.exchange import IngressState
from penstock.serve.config.settings import HttpSettings
from penstock.serve.models.handle import ModelNames
from replica_cluster import until


def followed(file: Path | None, admins: Path | None = None) -> KeyFiles:
    options = {"api_key_file": file and str(file), "keys": ("typed",)}
    configured = HttpSettings(api_keys=frozenset({"configured"}))
    return KeyFiles({**options, "admin_key_file": admins and str(admins)}, configured)


def put(file: Path, *keys: str) -> None:
    """Replace a file, as tools do that change one which others read."""
    new = file.with_name("new")
    new.write_text("# ours\n" + "".join(f"{key}\n" for key in keys))
    new.replace(file)


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    file, admins = tmp_path / "keys", tmp_path / "admins"
    put(file, "one")
    put(admins, "boss")
    files = followed(file, admins)
    users = {"configured", "typed", "one"}
    found: Any = files.changed()
    assert found == {"api_keys": users, "admin_keys": {"boss"}}
    assert files.changed() is None
    put(file, "one", "two")
    found = files.changed()
    assert found == {"api_keys": {*users, "two"}, "admin_keys": {"boss"}}
    put(admins, "chief")
    found = files.changed()
    assert found == {"api_keys": {*users, "two"}, "admin_keys": {"chief"}}


def test_so_is_a_link_that_leads_elsewhere(tmp_path: Path) -> None:  # as a secret of Kubernetes
    for name in ("a", "b"):
        put(tmp_path / name, name * 3)
        os.utime(tmp_path / name, (1, 1))
    link = tmp_path / "keys"
    link.symlink_to("a")
    files = followed(link)
    assert "aaa" in (files.changed() or {})["api_keys"]
    link.unlink()
    link.symlink_to("b")
    assert "bbb" in (files.changed() or {})["api_keys"]


def test_one_that_cannot_be_used_leaves_the_keys(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    put(file, "one")
    files = followed(file)
    files.changed()
    for spoil, why in (
        (lambda: put(file), "the file holds no keys"),
        (lambda: put(file, "a key"), "without spaces"),
        (file.unlink, "No such file"),
    ):
        spoil()
        caplog.clear()
        assert files.changed() is None
        assert files.changed() is None
        (told,) = caplog.messages  # once
        assert told.startswith("the API keys stay as they were: ")
        assert why in told
    put(file, "two")
    assert files.changed() is not None


async def test_what_is_no_file_is_not_read_again(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    state: Any = None
    for files in (followed(pipe), followed(None)):
        await files.follow(state)


async def test_the_ingress_gets_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "LOOK_S", 0.001)
    file = tmp_path / "keys"
    put(file, "one")
    state = IngressState(ModelNames({}), HttpSettings(api_keys=frozenset({"one"}), dev=True))
    following = asyncio.create_task(followed(file).follow(state))
    put(file, "two")
    await until(lambda: "two" in state.settings.api_keys)
    assert state.settings.api_keys == {"configured", "typed", "two"}
    assert state.settings.dev
    following.cancel()


def test_a_server_takes_new_keys_and_refuses_old_ones(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    put(file, "one")
    argv = ["m", "--engine", SimulatedEngine.name, "--port", "0", "--api-key-file", str(file)]
    with subprocess.Popen(
        [sys.executable, "-m", "penstock.cli", "serve", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[2]

            def status(key: str) -> int:
                headers = {"authorization": f"Bearer {key}"}
                return httpx.get(f"{url}/v1/models", headers=headers).status_code

            assert (status("one"), status("two")) == (200, 401)
            put(file, "two")
            while status("two") != 200:
                pass
            assert status("one") == 401
        finally:
            process.kill()
