"""A served model for a campaign: the real one that ships with the package, in a process of its
own.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import psutil

CHAT = "/v1/chat/completions"


class Server:
    """A server at `url`; `process` is the parent, which must live on."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url

    def engine_pids(self) -> list[int]:
        """The processes that hold models."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return sorted(child.pid for child in children if "worker" in " ".join(child.cmdline()))

    def busy(self) -> float:
        """Requests that run or wait."""
        text = httpx.get(f"{self.url}/metrics").text
        wanted = ("penstock_num_requests_running", "penstock_num_requests_waiting")
        return sum(
            float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(wanted)
        )


@contextlib.contextmanager
def serving(*options: str) -> Iterator[Server]:
    """`penstock serve demo` on a free port, ready to answer."""
    argv = [
        sys.executable,
        "-m",
        "penstock.cli",
        "serve",
        "demo",
        "--port",
        "0",
        "--log-level",
        "error",
        *options,
    ]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[2]
            server = Server(process, url)
            httpx.post(
                f"{url}{CHAT}", json=chat("hello", max_tokens=1), timeout=60
            ).raise_for_status()
            yield server
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def chat(text: str, **options: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": "demo", "messages": [{"role": "user", "content": text}], **options}
