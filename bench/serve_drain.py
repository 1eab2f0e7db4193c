"""How long a server with 64 endless streams takes from SIGTERM to its exit, over the drain timeout
it was given.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import harness
from harness import PENSTOCK, Bar, Contestant

STREAMS = 64
TIMEOUTS_S = (0.0, 1.0, 3.0)
ALLOWANCE_S = 2.0
"""For the last words of the aborted streams and the end of the process."""


def exit_seconds(drain_timeout: float) -> float:
    """Seconds from the signal to the exit. Raises `RuntimeError` if a stream ends without its error
    event.
    """
    engine = {"time_per_token_ms": 20, "output_tokens": 30_000, "max_num_seqs": STREAMS}
    argv = [
        PENSTOCK,
        "serve",
        "simulated",
        "--engine",
        "simulated",
        "--engine-kwargs",
        json.dumps(engine),
    ]
    argv += ["--port", "0", "--drain-timeout", str(drain_timeout)]
    body = json.dumps({"messages": [{"role": "user", "content": "x"}], "stream": True}).encode()
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
        + f"content-length: {len(body)}\r\n\r\n".encode()
        + body
    )
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with (
        subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env
        ) as server,
        ExitStack() as stack,
        ThreadPoolExecutor(STREAMS) as threads,
    ):
        assert server.stdout is not None
        host, _, port = server.stdout.readline().split()[2].removeprefix("http://").rpartition(":")
        streams = [
            stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(STREAMS)
        ]
        for stream in streams:
            stream.sendall(request)
        for stream in streams:
            stream.recv(1 << 12)
        ends = [threads.submit(_rest, stream) for stream in streams]
        start = time.perf_counter()
        server.send_signal(signal.SIGTERM)
        code = server.wait(120)
        seconds = time.perf_counter() - start
        if code != 0 or not all(b'"code":"shutting_down"' in end.result() for end in ends):
            raise RuntimeError(f"the server ended with {code}, or a stream without its error event")
        return seconds


def _rest(stream: socket.socket) -> bytes:
    received = b""
    while part := stream.recv(1 << 16):
        received += part
    return received


def main() -> int:
    """Measure, print, and return the exit code."""
    args = harness.parser(__doc__, rounds=3).parse_args()
    contestants = [
        Contestant(f"{timeout:g} s drain timeout", lambda timeout=timeout: exit_seconds(timeout))  # type: ignore[misc]
        for timeout in TIMEOUTS_S
    ]
    exits = harness.compare("SIGTERM to exit, 64 streams", "s", contestants, args.rounds, warmups=0)
    bars = [
        Bar(
            f"{contestant.name}: exit after, s",
            exits[contestant.name].median,
            timeout + ALLOWANCE_S,
        )
        for timeout, contestant in zip(TIMEOUTS_S, contestants, strict=True)
    ]
    return harness.finish(args, [exits], bars)


if __name__ == "__main__":
    sys.exit(main())
