"""Two replicas of a model on one machine over one, each with one thread: answered tokens a second.

The model has 27 M random weights, of which one thread serves as much as it can. Requests wait
always, so every replica is full.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

import harness
from harness import Bar, Contestant
from penstock.llm_config import LLMConfig
from penstock.serve.models.local import build_local_handles
from penstock.types import ChatRequest, Sampling
from random_model import SMALL_27M, write_random_model

ONE, TWO = "one replica", "two replicas"
TOKENS = 48
SAMPLING = Sampling(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
KWARGS = {"num_threads": 1, "max_num_seqs": 16, "kv_cache_memory_bytes": 128 << 20}


async def tokens_per_second(model: str, replicas: int, requests: int) -> float:
    """Tokens a second of so many chat requests at once."""
    config = LLMConfig.from_dict(
        {
            "model_loading_config": {"model_id": "m", "model_source": model},
            "engine_kwargs": KWARGS,
            "deployment_config": {
                "num_replicas": replicas,
                "request_router_config": {"request_router_class": "least_loaded"},
            },
        }
    )
    handle = build_local_handles([config])["m"]
    await handle.start()

    async def ask(number: int) -> int:
        message = {"role": "user", "content": f"Ticket {number}: the lamp of order {number} broke."}
        got = 0
        async for batch in handle.generate(ChatRequest([message], SAMPLING, stream=False)):
            usage = batch[-1].usage
            got += usage.completion_tokens if usage is not None else 0
        return got

    try:
        await asyncio.gather(*(ask(-number) for number in range(1, 9)))
        began = time.perf_counter()
        tokens = sum(await asyncio.gather(*map(ask, range(requests))))
        return tokens / (time.perf_counter() - began)
    finally:
        await handle.stop(0)


def main() -> int:
    """Measure, print, and return the exit code."""
    options: argparse.ArgumentParser = harness.parser(__doc__)
    options.add_argument("--requests", type=int, default=128)
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = str(Path(folder) / "27M.gguf")
        write_random_model(Path(model), SMALL_27M)

        def side(replicas: int) -> float:
            return asyncio.run(tokens_per_second(model, replicas, args.requests))

        contestants = [Contestant(ONE, lambda: side(1)), Contestant(TWO, lambda: side(2))]
        comparison = harness.compare("replicas here", "tokens/s", contestants, args.rounds)
    ratio = comparison.ratio(TWO, ONE)
    bar = Bar(f"{TWO} over {ONE}", ratio.median, 1.5, at_least=True)
    return harness.finish(args, [comparison], [bar], packages=["openvino-genai"])


if __name__ == "__main__":
    sys.exit(main())
