"""Streaming chat on Ray, beside the same server on the local runtime.

Every side runs the same engine in processes of its own, and the same load generator reads its streams.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import harness
import serve_overhead
from harness import PENSTOCK, Bar, Contestant

LOCAL, RAY = "local runtime", "Ray runtime"
ENGINES: dict[str, dict[str, Any]] = {
    "simulated": {
        "model_loading_config": {"model_id": "simulated", "model_source": "simulated"},
        "llm_engine": "simulated",
        "engine_kwargs": {"time_to_first_token_ms": 2, "time_per_token_ms": 4, "max_num_seqs": 128},
    },
    "openvino": {"model_loading_config": {"model_id": "simulated", "model_source": "demo"}},
}
START_TIMEOUT_S = 120


@contextlib.contextmanager
def served(runtime: str, engine: str) -> Iterator[int]:
    """`penstock serve` on a runtime; gives its port."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "config.yaml")
        config.write_text(json.dumps([ENGINES[engine]]))  # JSON is YAML
        argv = [PENSTOCK, "serve", str(config), "--runtime", runtime, "--port", "0", "--log-level", "error"]
        environment = {**os.environ, "RAY_ADDRESS": "local"}
        with subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    if line.startswith("Listening on "):
                        yield int(line.split()[2].rpartition(":")[2])
                        break
                else:
                    raise RuntimeError(f"{' '.join(argv)} did not start")
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(START_TIMEOUT_S)


def main() -> int:
    """Measure, print, and return the exit code."""
    options = harness.parser(__doc__)
    options.add_argument("--engine", choices=ENGINES, default="simulated", help="(default: %(default)s)")
    options.add_argument("--tokens", type=int, default=64, help="of an answer (default: %(default)s)")
    options.add_argument("--requests", type=int, default=512, help="of a run (default: %(default)s)")
    options.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64], help="(default: 1 8 64)")
    options.add_argument("--sides", nargs="+", default=[LOCAL, RAY], help=argparse.SUPPRESS)
    args = options.parse_args()
    serve_overhead.BODY.update(max_tokens=args.tokens, ignore_eos=True)
    with contextlib.ExitStack() as stack:
        runtimes = {LOCAL: "local", RAY: "ray"}
        ports = {name: stack.enter_context(served(runtimes[name], args.engine)) for name in args.sides}
        for port in ports.values():  # the first request may start a replica
            asyncio.run(serve_overhead.load(port, 1, 2))
        comparisons, bars = [], []
        for clients in args.clients:

            def tokens_per_second(name: str, clients: int = clients) -> float:
                requests = max(args.requests // clients, 1)
                seconds, _ = asyncio.run(serve_overhead.load(ports[name], clients, requests))
                return float(requests * clients * args.tokens / seconds)

            contestants = [Contestant(name, lambda name=name: tokens_per_second(name)) for name in ports]  # type: ignore[misc]
            compared = harness.compare(f"{clients} clients", "tokens/s", contestants, args.rounds)
            comparisons.append(compared)
            ratio = compared.ratio(RAY, LOCAL).median
            bars.append(Bar(f"{clients} clients, tokens/s on Ray over the local runtime's", ratio, 0.7, at_least=True))

        def first_token(name: str) -> float:
            _, made = asyncio.run(serve_overhead.load(ports[name], 1, 64))
            return float(median(made[0].first_token)) * 1e3

        contestants = [Contestant(name, lambda name=name: first_token(name)) for name in ports]  # type: ignore[misc]
        comparisons.append(harness.compare("time to first token, 1 client", "ms", contestants, args.rounds))
    return harness.finish(args, comparisons, bars, packages=["ray", "uvicorn", "starlette", "httptools", "uvloop"])


if __name__ == "__main__":
    sys.exit(main())
