"""The same program under Ray's import and under ours, its outputs compared row by row.

Each side is a fresh process of `--python`, which has ray[data], vLLM and Penstock: the environment
of `scripts/test_ray_vllm.sh` with `VLLM_VERSION=0.29.0`, which Ray 2.60 asks for. Only the module
that the program imports differs. Both ask the demo model on vLLM for greedy answers. Columns that
hold times or numbers of requests are not compared.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import harness

PEER, OURS = "ray.data.llm", "penstock.compat.ray"
COLUMNS = (
    *("prompt", "prompt_token_ids", "num_input_tokens"),
    *("generated_text", "generated_tokens", "num_generated_tokens"),
    *("logprobs", "prompt_logprobs", "__inference_error__"),
)
ENGINE = {
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 64 << 20,
    "block_size": 32,
    "max_model_len": 512,
}
NEAR = 1e-3
"""Log probabilities this close are equal: the sums of a step depend on who else is in it."""


# The program
def run_program(module: str, rows: int, out: Path) -> None:
    """What a user of Ray wrote, with its imports from `module`."""
    import ray

    llm = importlib.import_module(module)
    ray.init(  # a worker of vLLM reserves a GPU on both sides, which need not be there
        address="local", num_cpus=8, num_gpus=1, include_dashboard=False, log_to_driver=False
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    config = llm.vLLMEngineProcessorConfig(
        model_source=str(demo_directory()),
        engine_kwargs=ENGINE,
        concurrency=1,
        batch_size=16,
        should_continue_on_error=True,
    )
    processor = llm.build_processor(
        config,
        preprocess=lambda row: {
            "messages": [{"role": "user", "content": row["ticket"]}],
            "sampling_params": {
                "temperature": 0.0,
                "max_tokens": 60,
                "logprobs": 1,
                "prompt_logprobs": 0,
            },
        },
        postprocess=lambda row: {
            "id": row["id"],
            "columns": json.dumps({name: row.get(name) for name in COLUMNS}, default=list),
        },
    )
    dataset = ray.data.from_items(tickets(rows))
    found = {row["id"]: json.loads(row["columns"]) for row in processor(dataset).take_all()}
    out.write_text(json.dumps([found[number] for number in range(rows)]))


def demo_directory() -> Path:
    """The demo model in Hugging Face's form."""
    from penstock import demo

    return demo.model_path("huggingface")


def tickets(rows: int) -> list[dict[str, Any]]:
    """The demo model's test tickets, numbered."""
    from penstock.demo import tickets_path

    with tickets_path().open(encoding="utf-8") as file:
        return [{"id": n, "ticket": json.loads(next(file))["ticket"]} for n in range(rows)]


# The comparison
def compared(
    theirs: Sequence[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]]
) -> dict[str, list[int]]:
    """By column the numbers of the rows that differ."""
    pairs = list(zip(theirs, ours, strict=True))
    return {
        name: [n for n, (one, other) in enumerate(pairs) if not equal(one[name], other[name])]
        for name in COLUMNS
    }


def equal(one: Any, other: Any) -> bool:
    """Whether two values are equal, numbers with a fraction nearly so."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= NEAR
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def main() -> None:
    """Run both sides, and print what differs."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--python", default=sys.executable, help="has Ray, vLLM and Penstock")
    options.add_argument("--rows", type=int, default=100)
    options.add_argument("--check", action="store_true", help="exit with 1 if a row differs")
    options.add_argument("--side", choices=(PEER, OURS), help=argparse.SUPPRESS)
    options.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.side:
        run_program(args.side, args.rows, args.out)
        return
    found = {}
    about = {
        **os.environ,
        **{"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "TORCHDYNAMO_DISABLE": "1"},
    }
    about.pop("PYTHONDONTWRITEBYTECODE", None)  # else each process compiles vLLM and torch anew
    with tempfile.TemporaryDirectory() as folder:
        for side in (PEER, OURS):
            out = Path(folder, side)
            argv = [args.python, "-W", "ignore", __file__, "--side", side, "--out", str(out)]
            used = harness.command([*argv, "--rows", str(args.rows)], env=about)
            found[side] = json.loads(out.read_text())
            print(f"{side}: {used.seconds:.0f} s with all starts")
    differing = compared(found[PEER], found[OURS])
    for name, rows in differing.items():
        print(f"{name}: {args.rows - len(rows)} of {args.rows} rows equal", rows[:5] or "")
        for number in rows[:1]:
            print(f"  {PEER}: {found[PEER][number][name]!r:.200}")
            print(f"  {OURS}: {found[OURS][number][name]!r:.200}")
    if args.check and any(differing.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
