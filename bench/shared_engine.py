"""Two processors in a row on one engine, over the same two with an engine each: throughput of an
engine, and memory.

Each ticket gets an answer, then the conversation goes on with a second question. The engines run a
model with 27 M random weights on all cores, which is large enough to keep them busy. Shared, the
second question finds the first conversation in the prefix cache. A side is a process of its own;
rows/s are of its second run, when everything is loaded; memory is what all its processes hold then
(PSS).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
from harness import Bar, Contestant
from random_model import SMALL_27M, write_random_model

SHARED, APART = "one engine", "two engines"
SAMPLING = {"temperature": 0.0, "max_tokens": 32, "ignore_eos": True}
KWARGS = {"max_num_seqs": 64, "kv_cache_memory_bytes": 128 << 20}


def _first(row: dict[str, Any]) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"{row['ticket']} ({row['number']})"}]
    return {"messages": messages, "sampling_params": SAMPLING}


def _second(row: dict[str, Any]) -> dict[str, Any]:
    turns = [*row["messages"], {"role": "assistant", "content": row["said"]}]
    return {
        "messages": [*turns, {"role": "user", "content": "And why?"}],
        "sampling_params": SAMPLING,
    }


def _memory_mb() -> float:
    """What this process and its children hold, shared pages counted once."""
    total = 0
    for pid in harness.family(os.getpid()):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


async def side(shared: bool, count: int, model: str) -> dict[str, float]:
    """Run the two processors; gives rows/s, MB, and the share of the second prompts' tokens that
    was cached.
    """
    from penstock.batch import OpenVINOEngineProcessorConfig, build_processor
    from penstock.demo import tickets_path
    from penstock.engines.registry import engines

    def config(name: str) -> Any:
        return OpenVINOEngineProcessorConfig(model_source=model, engine=name, engine_kwargs=KWARGS)

    first = build_processor(
        config("first"),
        _first,
        lambda row: {"messages": row["messages"], "said": row["generated_text"]},
    )
    second = build_processor(config("first" if shared else "second"), _second)
    with tickets_path().open(encoding="utf-8") as file:
        tickets = [json.loads(line)["ticket"] for line in file]
    result: dict[str, float] = {}
    for run, rows in enumerate((32, count)):
        source = [
            {"ticket": tickets[n % len(tickets)], "number": f"{run}-{n}"} for n in range(rows)
        ]
        began = time.perf_counter()
        prompt = cached = 0
        async for row in second(first(source)):
            prompt += row["num_input_tokens"]
            cached += row["num_cached_tokens"]
        seconds = time.perf_counter() - began
        result = {"rows_s": rows / seconds, "memory_mb": _memory_mb(), "cached": cached / prompt}
    await engines().stop()
    return result


def main() -> int:
    """Measure, print, and return the exit code."""
    options = harness.parser(__doc__)
    options.add_argument(
        "--rows", type=int, default=300, help="rows through both processors (default: %(default)s)"
    )
    options.add_argument("--side", choices=("shared", "apart"), help=argparse.SUPPRESS)
    options.add_argument("--model", help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.side:
        print(json.dumps(asyncio.run(side(args.side == "shared", args.rows, args.model))))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "27M.gguf"
        write_random_model(model, SMALL_27M)
        return compare(args, str(model))


def compare(args: argparse.Namespace, model: str) -> int:
    """Let the sides take turns."""
    runs: dict[str, list[dict[str, float]]] = {SHARED: [], APART: []}

    def per_engine(name: str, choice: str, engines: int) -> Contestant:
        def measure() -> float:
            argv = [
                sys.executable,
                __file__,
                "--side",
                choice,
                "--rows",
                str(args.rows),
                "--model",
                model,
            ]
            runs[name].append(json.loads(harness.command(argv).output))
            return runs[name][-1]["rows_s"] / engines

        return Contestant(name, measure)

    contestants = [per_engine(APART, "apart", 2), per_engine(SHARED, "shared", 1)]
    throughput = harness.compare(
        "rows/s of an engine", "rows/s", contestants, args.rounds, warmups=0
    )

    def again(name: str, what: str) -> Contestant:
        values = iter([run[what] for run in runs[name]])
        return Contestant(name, lambda: next(values))

    memory = harness.compare(
        "memory",
        "MB",
        [again(APART, "memory_mb"), again(SHARED, "memory_mb")],
        args.rounds,
        warmups=0,
    )
    cached = harness.compare(
        "second prompts cached",
        "share",
        [again(APART, "cached"), again(SHARED, "cached")],
        args.rounds,
        warmups=0,
    )
    bars = [
        Bar(
            "rows/s of an engine, shared over apart",
            throughput.ratio(SHARED, APART).median,
            1.9,
            at_least=True,
        ),
        Bar("memory, shared over apart", memory.ratio(SHARED, APART).median, 0.6),
    ]
    return harness.finish(args, [throughput, memory, cached], bars, packages=["openvino-genai"])


if __name__ == "__main__":
    sys.exit(main())
