"""What a job costs whose input has grown by one row in a hundred, beside a whole run: processor
time of this process and of the engine's, which other work on the machine hardly changes.

Both run on one engine that is loaded already: the load is the same for both.
"""

from __future__ import annotations

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


async def _measured(args: object, folder: Path) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {"all rows": [], "1 % more rows": []}
    engine = engine_for(args.model, args.engine, args.engine_kwargs)  # type: ignore[attr-defined]
    await engine.start()
    rows = args.rows  # type: ignore[attr-defined]
    try:
        for number in range(args.rounds):  # type: ignore[attr-defined]
            source, output = folder / f"in-{number}.jsonl", folder / f"out-{number}.jsonl"
            for name, count in (("all rows", rows), ("1 % more rows", rows + rows // 100)):
                lines = (f'{{"id": {row}, "text": "text {row}"}}\n' for row in range(count))
                source.write_text("".join(lines))
                began = _processor_seconds(os.getpid())
                result = await penstock.arun(
                    source,
                    output,
                    engine=engine,
                    prompt="Tell me about {text}.",
                    max_tokens=args.max_tokens,  # type: ignore[attr-defined]
                    incremental=True,
                    key="id",
                    progress=False,
                )
                times[name].append(_processor_seconds(os.getpid()) - began)
                if result.counts.kept != (rows if count > rows else 0):
                    raise RuntimeError(f"{result.counts.kept} rows were kept")
    finally:
        await engine.stop()
    return times


def _processor_seconds(process: int) -> float:
    """That a process and those that it started have used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    for thread in Path(f"/proc/{process}/task").iterdir():
        used += sum(map(_processor_seconds, map(int, (thread / "children").read_text().split())))
    return used


if __name__ == "__main__":
    sys.exit(main())
