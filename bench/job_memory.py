"""Whether a job's memory is bounded: the peak for many small rows against the peak for a tenth of
them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import harness
from harness import PENSTOCK, Bar, Contestant


def main() -> int:
    """Measure, print, and return the exit code."""
    options = harness.parser(__doc__, rounds=1)
    options.add_argument(
        "--rows", type=int, default=1_000_000, help="of the large job (default: %(default)s)"
    )
    options.add_argument(
        "--engine-kwargs", default="{}", metavar="JSON", help="of the simulated engine"
    )
    args = options.parse_args()

    with tempfile.TemporaryDirectory() as folder:

        def job(rows: int) -> Contestant:
            source = Path(folder, f"rows-{rows}.jsonl")
            with source.open("w") as lines:
                lines.writelines(
                    json.dumps({"text": f"row {number}"}) + "\n" for number in range(rows)
                )

            def measure() -> float:
                # A used output would be resumed.
                with tempfile.TemporaryDirectory(dir=folder) as run:
                    argv = [
                        PENSTOCK,
                        "run",
                        str(source),
                        "-o",
                        f"{run}/out.jsonl",
                        "--model",
                        "simulated",
                    ]
                    argv += ["--prompt", "{text}", "--engine-kwargs", args.engine_kwargs]
                    return harness.command(argv).peak_mb

            return Contestant(f"{rows:,} rows", measure)

        small, large = job(args.rows // 10), job(args.rows)
        peaks = harness.compare("peak memory", "MB", [small, large], args.rounds, warmups=0)
    ratio = peaks.ratio(large.name, small.name).median
    bar = Bar(f"peak for {large.name} over {small.name}", ratio, 1.5)
    return harness.finish(args, [peaks], [bar], packages=["pyarrow"])


if __name__ == "__main__":
    sys.exit(main())
