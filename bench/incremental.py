"""What a job costs whose input has grown by one row in a hundred, beside a whole run, and then with
its first row changed, so that all rows are compared: processor time of this process and of the
engine's, which other work on the machine hardly changes.

All run on one engine that is loaded already: the load is the same for all.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path

import harness
import penstock
from harness import Bar, Contestant
from penstock.engines.registry import engine_for


def main() -> int:
    """Measure, print, and return the exit code."""
    options = harness.parser(__doc__, rounds=1)
    options.add_argument("--rows", type=int, default=4000, help="of the input (%(default)s)")
    options.add_argument("--model", default="demo")
    options.add_argument("--engine", default="openvino")
    options.add_argument("--engine-kwargs", type=json.loads, default={}, metavar="JSON")
    options.add_argument("--max-tokens", type=int, default=16)
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        times = asyncio.run(_measured(args, Path(folder)))
    sides = [Contestant(name, iter(found).__next__) for name, found in times.items()]
    found = harness.compare("processor time of the job", "s", sides, args.rounds, warmups=0)
    share = found["1 % more rows"].median / found["all rows"].median
    bar = Bar("1 % more rows, share of a whole run", share, 0.015)
    return harness.finish(args, [found], [bar], packages=["openvino-genai"])


async def _measured(args: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    more = args.rows // 100
    runs = (
        ("all rows", args.rows, "text 0", 0),
        ("1 % more rows", args.rows + more, "text 0", args.rows),
        ("the first row changed", args.rows + more, "other text", args.rows + more - 1),
    )
    times: dict[str, list[float]] = {name: [] for name, *_ in runs}
    engine = engine_for(args.model, args.engine, args.engine_kwargs)
    await engine.start()
    try:
        for number in range(args.rounds):
            source, output = folder / f"in-{number}.jsonl", folder / f"out-{number}.jsonl"
            for name, rows, first, kept in runs:
                lines = (f'{{"id": {row}, "text": "text {row}"}}\n' for row in range(1, rows))
                source.write_text(f'{{"id": 0, "text": "{first}"}}\n{"".join(lines)}')
                began = _processor_seconds()
                result = await penstock.arun(
                    source,
                    output,
                    engine=engine,
                    prompt="Tell me about {text}.",
                    max_tokens=args.max_tokens,
                    incremental=True,
                    key="id",
                    progress=False,
                )
                times[name].append(_processor_seconds() - began)
                if result.counts.kept != kept:
                    raise RuntimeError(f"{result.counts.kept} rows were kept")
    finally:
        await engine.stop()
    return times


def _processor_seconds() -> float:
    return sum(map(harness.processor_seconds, harness.family(os.getpid())))


if __name__ == "__main__":
    sys.exit(main())
