"""Two replicas of a model on one machine over one, each with one thread: answered tokens a second.

The model has 27 M random weights, and each replica is full all the time. By the clock the figure
needs two cores that nobody else uses. By processor time it does not: that is what the busiest
process used, or half of what all used together, whichever is more.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import harness
from harness import Bar, Contestant
from penstock.engines.tasks import generated
from penstock.llm_config import LLMConfig
from penstock.openai.responses import Answers
from penstock.serve.models.local import build_local_handles
from penstock.types import ChatRequest, Sampling
from random_model import SMALL_27M, write_random_model

ONE, TWO = "one replica", "two replicas"
TOKENS = 48
SAMPLING = Sampling(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
KWARGS = {"num_threads": 1, "max_num_seqs": 16, "kv_cache_memory_bytes": 128 << 20}


class Run(NamedTuple):
    """Tokens a second by the clock, and of the processor time that the cores were used."""

    wall: float
    used: float


async def run(model: str, replicas: int, requests: int) -> Run:
    """Put so many chat requests at once to a model with these replicas."""
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

    async def ask(number: int) -> int:
        message = {"role": "user", "content": f"Ticket {number}: the lamp of order {number} broke."}
        request = ChatRequest([message], SAMPLING, stream=False)
        answers = await Answers.of(generated(handle, request))
        return answers.usage.completion_tokens

    try:
        await handle.start()
        await asyncio.gather(*(ask(-number) for number in range(1, 9)))
        before, began = _processor_seconds(), time.perf_counter()
        tokens = sum(await asyncio.gather(*map(ask, range(requests))))
        wall = time.perf_counter() - began
        used = [now - then for now, then in zip(_processor_seconds(), before, strict=True)]
        return Run(tokens / wall, tokens / max(*used, sum(used) / 2))
    finally:
        await handle.stop(0)


def _processor_seconds() -> list[float]:
    """Those that this process and each that it started have used."""
    return list(map(harness.processor_seconds, harness.family(os.getpid())))


def main() -> int:
    """Measure, print, and return the exit code."""
    options = harness.parser(__doc__)
    options.add_argument("--requests", type=int, default=128)
    args = options.parse_args()
    runs: dict[str, list[Run]] = {ONE: [], TWO: []}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "27M.gguf"
        write_random_model(model, SMALL_27M)

        def side(name: str, replicas: int) -> Contestant:
            def measure() -> float:
                runs[name].append(asyncio.run(run(str(model), replicas, args.requests)))
                return runs[name][-1].wall

            return Contestant(name, measure)

        contestants = [side(ONE, 1), side(TWO, 2)]
        wall = harness.compare("by the clock", "tokens/s", contestants, args.rounds, warmups=0)

    def again(name: str) -> Contestant:
        values = iter(runs[name])
        return Contestant(name, lambda: next(values).used)

    used = harness.compare(
        "by processor time", "tokens/s", [again(ONE), again(TWO)], args.rounds, warmups=0
    )
    bar = Bar(f"{TWO} over {ONE}, by processor time", used.ratio(TWO, ONE).median, 1.5, True)
    return harness.finish(args, [wall, used], [bar], packages=["openvino-genai"])


if __name__ == "__main__":
    sys.exit(main())
