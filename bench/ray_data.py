"""Rows a second over Ray data sets, beside `ray.data.llm`: the HTTP processor, same endpoint, same rows, same cluster.

Each side runs in a fresh process; the time is from the call of the processor to its last row, without Ray's own start.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import harness
from harness import Bar, Contestant

PEER, OURS = "ray.data.llm", "penstock"
ROWS_KWARGS = {"batch_size": 64, "concurrency": 1}


# The endpoint
def serve_endpoint(delay_s: float) -> None:
    """Answers each request after a delay; prints its port."""
    import asyncio
    import socket

    import uvicorn

    body = json.dumps({"answer": "x" * 64}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await asyncio.sleep(delay_s)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        print(listening.getsockname()[1], flush=True)
        config = uvicorn.Config(app, lifespan="off", log_level="error", access_log=False)
        asyncio.run(uvicorn.Server(config).serve(sockets=[listening]))


# The sides
def run_side(side: str, url: str, rows: int) -> None:
    """Process so many rows, and print the seconds."""
    import ray

    ray.init(address="local", num_cpus=4, object_store_memory=200 * 2**20, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False

    def preprocess(row: dict[str, Any]) -> dict[str, Any]:
        return {"payload": {"number": int(row["id"])}}

    def postprocess(row: dict[str, Any]) -> dict[str, Any]:
        return {"answer": row["http_response"]["answer"]}

    if side == PEER:
        from ray.data.llm import HttpRequestProcessorConfig, build_processor
    else:
        from penstock.batch import (
            HttpRequestProcessorConfig,
            build_processor,
        )
    processor = build_processor(
        HttpRequestProcessorConfig(url=url, **ROWS_KWARGS), preprocess=preprocess, postprocess=postprocess
    )
    began = time.perf_counter()
    done = processor(ray.data.range(rows)).materialize()
    seconds = time.perf_counter() - began
    assert done.count() == rows
    ray.shutdown()
    print(json.dumps(seconds))


def main() -> int:
    """Measure, print, and return the exit code."""
    options = harness.parser(__doc__)
    options.add_argument("--rows", type=int, default=5000, help="of a run (default: %(default)s)")
    options.add_argument("--delay-ms", type=float, default=5.0, help="of the endpoint (default: %(default)s)")
    options.add_argument("--side", help=argparse.SUPPRESS)
    options.add_argument("--url", help=argparse.SUPPRESS)
    options.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.serve:
        serve_endpoint(args.delay_ms / 1000)
        return 0
    if args.side:
        run_side(args.side, args.url, args.rows)
        return 0
    argv = [sys.executable, __file__]
    with subprocess.Popen(
        [*argv, "--serve", "--delay-ms", str(args.delay_ms)], stdout=subprocess.PIPE, text=True
    ) as endpoint:
        assert endpoint.stdout is not None
        try:
            url = f"http://127.0.0.1:{int(endpoint.stdout.readline())}/"

            def rows_per_second(side: str) -> float:
                used = harness.command([*argv, "--side", side, "--url", url, "--rows", str(args.rows)])
                return float(args.rows / json.loads(used.output.strip().splitlines()[-1]))

            contestants = [Contestant(side, lambda side=side: rows_per_second(side)) for side in (PEER, OURS)]  # type: ignore[misc]
            compared = harness.compare("HTTP processor", "rows/s", contestants, args.rounds, warmups=0)
        finally:
            endpoint.terminate()
            endpoint.wait(10)
    bars = [Bar("rows/s over ray.data.llm's", compared.ratio(OURS, PEER).median, 2, at_least=True)]
    return harness.finish(args, [compared], bars, packages=["ray", "aiohttp"])


if __name__ == "__main__":
    sys.exit(main())
