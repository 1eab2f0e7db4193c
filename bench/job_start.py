"""How soon a small job is done: from process start to exit, on the simulated engine at zero
latency.
"""

from __future__ import annotations

import json
import sys
import tempfile
from itertools import count
from pathlib import Path

import harness
from harness import PENSTOCK, Bar, Contestant

BASE = "import pyarrow.parquet"


def main() -> int:
    """Measure, print, and return the exit code."""
    options = harness.parser(__doc__)
    options.add_argument(
        "--rows", type=int, default=100, help="rows of the job (default: %(default)s)"
    )
    options.add_argument(
        "--engine-kwargs", default="{}", metavar="JSON", help="of the simulated engine"
    )
    args = options.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "rows.jsonl")
        with source.open("w") as lines:
            lines.writelines(
                json.dumps({"text": f"row {number}"}) + "\n" for number in range(args.rows)
            )
        jobs = count()

        def job() -> float:
            target = Path(folder, f"out-{next(jobs)}.jsonl")  # a used one would be resumed
            argv = [PENSTOCK, "run", str(source), "-o", str(target), "--model", "simulated"]
            argv += ["--prompt", "{text}", "--engine-kwargs", args.engine_kwargs]
            seconds = harness.command(argv).seconds
            with target.open() as lines:
                written = sum(1 for _ in lines)
            if written != args.rows:
                raise RuntimeError(f"{written} of {args.rows} rows were written")
            return seconds

        contestants = [
            Contestant(BASE, lambda: harness.command([sys.executable, "-c", BASE]).seconds),
            Contestant("penstock run", job),
        ]
        start = harness.compare("from process start to exit", "s", contestants, args.rounds)
    limit = 1.5 * start[BASE].median + 1
    bar = Bar(f"{args.rows} rows, s (1.5 x {BASE}, plus 1)", start["penstock run"].median, limit)
    return harness.finish(args, [start], [bar], packages=["pyarrow"])


if __name__ == "__main__":
    sys.exit(main())
