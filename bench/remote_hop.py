"""What a hop through `penstock serve` and the remote engine costs a streamed chat, over the
upstream asked directly.

The upstream is the minimal ASGI app of serve_overhead.py, which writes each token by itself. One
client shows what the hop adds to the time to the first token; many show how many tokens a second
the hop carries on one core.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from statistics import median

import harness
from harness import Contestant
from serve_overhead import MINIMAL, load, server

HOP = "penstock, remote"
SERVE = "from penstock.cli.serve import serve; serve()"


@contextlib.contextmanager
def hop(port: int) -> Iterator[int]:
    """A Penstock server whose model is the upstream; gives its port."""
    options = {"base_url": f"http://127.0.0.1:{port}/v1", "discover": False, "concurrency": 256}
    argv = [
        sys.executable,
        "-c",
        SERVE,
        "simulated",
        "--engine",
        "remote",
        "--engine-kwargs",
        json.dumps(options),
    ]
    argv += ["--port", "0", "--log-level", "warning"]
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline().split()[2].rpartition(":")[2])
        finally:
            process.terminate()
            process.wait(30)


def main() -> int:
    """Measure, print, and return the exit code."""
    options = harness.parser(__doc__)
    options.add_argument(
        "--tokens", type=int, default=64, help="of an answer (default: %(default)s)"
    )
    options.add_argument(
        "--requests", type=int, default=256, help="of a run (default: %(default)s)"
    )
    options.add_argument("--clients", type=int, nargs="+", default=[8, 64], help="(default: 8 64)")
    args = options.parse_args()
    with server(MINIMAL, args.tokens) as upstream, hop(upstream) as front:
        ports = {MINIMAL: upstream, HOP: front}

        def first_token(name: str) -> float:
            _, made = asyncio.run(load(ports[name], 1, max(args.requests // 4, 1)))
            return median(made[0].first_token) * 1e6

        def tokens_per_second(name: str, clients: int) -> float:
            requests = max(args.requests // clients, 1)
            seconds, _ = asyncio.run(load(ports[name], clients, requests))
            return float(requests * clients * args.tokens / seconds)

        comparisons = [
            harness.compare(
                "time to first token, 1 client",
                "µs",
                [Contestant(name, lambda name=name: first_token(name)) for name in ports],  # type: ignore[misc]
                args.rounds,
            )
        ]
        for clients in args.clients:
            contestants = [
                Contestant(name, partial(tokens_per_second, name, clients)) for name in ports
            ]
            comparisons.append(
                harness.compare(f"{clients} clients", "tokens/s", contestants, args.rounds)
            )
    return harness.finish(args, comparisons, [], packages=["aiohttp", "uvicorn"])


if __name__ == "__main__":
    sys.exit(main())
