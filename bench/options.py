"""What each option of the embedded engine does to its speed and memory, beside the default.

Both engines are loaded, and take turns: one stream of 48 tokens, 16 streams of 16, the first token
of a prompt of 600, and the first token of that prompt with another end. The figures are ratios to
the default, medians of paired rounds: tokens a second and seconds, both of processor time, which
other work on the machine hardly changes, and the resident size of the engine's process. `--write`
puts the table into `docs/engines.md`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import harness
from penstock import demo
from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.engines.tasks import generated
from penstock.openai.responses import Answers
from penstock.types import CompletionRequest, Sampling

PAGE = Path(__file__).resolve().parent.parent / "docs/engines.md"
BEGIN, END = "<!-- options: by bench/options.py -->\n", "<!-- end of options -->\n"
LONG = 600
_GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
_UNCACHED = {"enable_prefix_caching": False}
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "`prompt_lookup`": {"prompt_lookup": True},
    "`kv_cache_precision` u4": {"kv_cache_precision": "u4"},
    "`kv_cache_precision` bf16": {"kv_cache_precision": "bf16"},
    "`kv_cache_precision` f16": {"kv_cache_precision": "f16"},
    "`inference_precision` f32": {"inference_precision": "f32"},
    "`deterministic`": {"deterministic": True},
    "`enable_prefix_caching` false": _UNCACHED,
    "`cache_eviction` to 256 tokens": {
        "cache_eviction": {"max_cache_size": 256},
        **_UNCACHED,
    },
    "`sparse_attention` trishape, 32 + 256": {
        "sparse_attention": {
            "num_retained_start_tokens_in_cache": 32,
            "num_retained_recent_tokens_in_cache": 256,
        }
    },
    "`sparse_attention` xattention": {"sparse_attention": {"mode": "xattention"}},
    f"`properties` {_GROUP} 0": {"properties": {_GROUP: "0"}},
    f"`properties` {_GROUP} 128": {"properties": {_GROUP: "128"}},
    "`max_num_batched_tokens` 128": {"max_num_batched_tokens": 128},
    "`max_num_batched_tokens` 2048": {"max_num_batched_tokens": 2048},
    "`num_threads` 1": {"num_threads": 1},
    "`weight_format` int8 over fp16": {"weight_format": "int8"},
    "`weight_format` int4 over fp16": {
        "weight_format": "int4",
        "conversion": {"group_size": 64},
    },
}
_fresh = itertools.count()


class Figures(NamedTuple):
    """Of one engine in one round: tokens a second of processor time, seconds of it, MB."""

    one: float
    many: float
    first: float
    again: float
    memory: float


async def _answered(engine: OpenVINOEngine, prompts: list[list[int]], tokens: int) -> float:
    """Processor time until all are answered, side by side."""
    sampling = Sampling(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    begun = harness.processor_seconds(_pid(engine))
    await asyncio.gather(
        *(
            Answers.of(generated(engine, CompletionRequest(ids, sampling, stream=False)))
            for ids in prompts
        )
    )
    return harness.processor_seconds(_pid(engine)) - begun


async def _figures(engine: OpenVINOEngine, ids: list[int]) -> Figures:
    def prompt(size: int) -> list[int]:
        start = next(_fresh) * 7 % (len(ids) - LONG)  # nobody has it in a cache
        return ids[start : start + size]

    one = await _answered(engine, [prompt(64)], 48)
    many = await _answered(engine, [prompt(64) for _ in range(16)], 16)
    long = prompt(LONG)
    first = await _answered(engine, [long], 1)
    again = await _answered(engine, [[*long[:-8], *prompt(8)]], 1)
    return Figures(48 / one, 16 * 16 / many, first, again, _resident(engine))


def _pid(engine: OpenVINOEngine) -> int:
    process = engine._process
    assert process is not None
    assert process.pid is not None
    return process.pid


def _resident(engine: OpenVINOEngine) -> float:
    status = Path(f"/proc/{_pid(engine)}/status").read_text()
    size = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(size.split()[1]) / 1024


async def _started(model: str, options: Mapping[str, Any]) -> OpenVINOEngine:
    engine = OpenVINOEngine(model, engine_kwargs={"kv_cache_memory_bytes": 1 << 30, **options})
    await engine.start()
    return engine


async def _compared(args: Any, name: str, options: Mapping[str, Any]) -> list[list[Figures]]:
    """The rounds of the default and of the option."""
    weights = "weight_format" in options
    plain = {"weight_format": "fp16"} if weights else {}
    model = args.weights if weights else args.model
    engines = [await _started(model, one) for one in (plain, options)]
    try:
        texts = [json.loads(line)["ticket"] for line in demo.tickets_path().open(encoding="utf-8")]
        each = await asyncio.gather(*map(engines[0].tokenize, texts[:200]))
        ids = list(itertools.chain.from_iterable(each))
        for engine in engines:  # what is made at the first use
            await _answered(engine, [ids[:40]], 2)
        rounds = [[await _figures(engine, ids) for engine in engines] for _ in range(args.rounds)]
    finally:
        for engine in engines:
            await engine.stop()
    print(f"{name}: {_row(rounds)}", file=sys.stderr, flush=True)
    return rounds


def _row(rounds: list[list[Figures]]) -> str:
    ratios = [
        [mine / default for mine, default in zip(option, plain, strict=True)]
        for plain, option in rounds
    ]
    return " | ".join(f"{median(column):.2f}" for column in zip(*ratios, strict=True))


def main() -> int:
    """Compare the options and print the table. Returns the exit code."""
    parser = harness.parser(__doc__, rounds=3)
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights", help="the model in Hugging Face's form, for weight_format")
    parser.add_argument("--only", nargs="*", default=[""], help="parts of the options' names")
    parser.add_argument("--rows", type=Path, help="a JSON file that keeps the rows of several runs")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    kept = args.rows is not None and args.rows.exists()
    rows: dict[str, str] = json.loads(args.rows.read_text()) if kept else {}
    for name, options in OPTIONS.items():
        if not any(part in name for part in args.only):
            continue
        if "weight_format" in options and args.weights is None:
            continue
        rows[name] = _row(asyncio.run(_compared(args, name, options)))
        if args.rows is not None:
            args.rows.write_text(json.dumps(rows, indent=1))
    columns = ("option", "1 stream", "16 streams", "first token", "the same, cached", "memory")
    lines = [columns, ("---",) * len(columns)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    table += "".join(f"| {name} | {rows[name]} |\n" for name in OPTIONS if name in rows)
    print(table)
    print(harness.describe_machine(["openvino-genai"]))
    if args.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(before + BEGIN + "\n" + table + "\n" + END + rest.partition(END)[2])
    return 0


if __name__ == "__main__":
    sys.exit(main())
