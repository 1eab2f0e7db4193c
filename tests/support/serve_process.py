"""`penstock serve` as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class ServeProcess:
    """A server that listens at `url`. What it logs is in `log`."""

    def __init__(self, process: subprocess.Popen[str], url: str, log: Any) -> None:
        self.process = process
        self.url = url
        self._log = log

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    @property
    def log(self) -> str:
        """What it has written to stderr so far."""
        self._log.seek(0)
        return str(self._log.read())

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal it, and wait for its exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)


def simulated(**options: Any) -> list[str]:
    """Arguments that serve a simulated engine with these options, as "simulated"."""
    return ["simulated", "--engine", "simulated", "--engine-kwargs", json.dumps(options)]


@contextmanager
def serving(
    *args: str, env: Mapping[str, str] | None = None, python: str = sys.executable
) -> Iterator[ServeProcess]:
    """Serve until the context ends. The process takes a free port, and is killed if it was not
    stopped.
    """
    argv = [python, "-m", "penstock.cli", "serve", *args, "--port", "0"]
    given = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=log, text=True, env=given, start_new_session=True
        ) as process,
    ):
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            server = ServeProcess(process, line.split()[2] if line else "", log)
            assert line.startswith("Listening on http://127.0.0.1:"), server.log
            yield server
        finally:
            if process.poll() is None:
                process.kill()
