"""What a batch job costs on top of the engine: tokens/s of `penstock.run` over a bare OpenVINO
GenAI loop.

Both sides answer the same conversations with the same model, scheduler settings and number of new
tokens. The bare side does what anyone would write first: render the chat template, add every
request, step until all are done, read and decode. With `--llama-cpp` the library of llama.cpp takes
part, which answers eight requests at once. Each measurement is a fresh process, and the
clock runs from the first request to the last text (ours: to the finished output file), the model
being loaded.
"""

from __future__ import annotations

import json
import sys
import tempfile
from functools import partial
from pathlib import Path

import harness
from harness import Bar, Comparison, Contestant
from random_model import SMALL_27M, write_random_model

SIDES = Path(__file__).with_name("batch_openvino_sides.py")
LEAST = {"bare": 0.97, "llama.cpp": 1.0}
"""Tokens/s of ours over those of the others, at least."""


def main() -> int:
    """Measure, print, and return the exit code."""
    options = harness.parser(__doc__, rounds=3)
    options.add_argument(
        "--rows", type=int, default=4096, help="conversations (default: %(default)s)"
    )
    options.add_argument(
        "--tokens", type=int, nargs="+", default=[16, 64], help="new tokens a row (default: 16 64)"
    )
    options.add_argument(
        "--models", nargs="+", default=["27M", "demo"], help="also a GGUF file (default: 27M demo)"
    )
    options.add_argument("--llama-cpp", help="a Python with xllamacpp (default: without it)")
    args = options.parse_args()

    comparisons: list[Comparison] = []
    bars: list[Bar] = []
    with tempfile.TemporaryDirectory() as folder:
        random_model = Path(folder, "random-27m.gguf")
        if "27M" in args.models:
            write_random_model(random_model, SMALL_27M)
        pythons = {"bare": sys.executable, "penstock": sys.executable}
        if args.llama_cpp:
            pythons["llama.cpp"] = args.llama_cpp
        for name in args.models:
            for tokens in args.tokens:
                title = f"{Path(name).stem}, {args.rows} rows, {tokens} new tokens"
                model = str(random_model) if name == "27M" else name
                measure = partial(_run, model, args.rows, tokens, folder)
                sides = [
                    Contestant(side, partial(measure, side, python))
                    for side, python in pythons.items()
                ]
                comparison = harness.compare(title, "tokens/s", sides, args.rounds, warmups=0)
                comparisons.append(comparison)
                for peer in sorted(pythons.keys() - {"penstock"}):
                    ratio = comparison.ratio("penstock", peer).median
                    text = f"penstock.run over {peer}, {title}"
                    bars.append(Bar(text, ratio, LEAST[peer], at_least=True))
    return harness.finish(args, comparisons, bars, packages=["openvino-genai"])


def _run(model: str, rows: int, tokens: int, folder: str, side: str, python: str) -> float:
    usage = harness.command([python, SIDES, side, model, str(rows), str(tokens)], cwd=folder)
    result = json.loads(usage.output.splitlines()[-1])
    if result["tokens"] != rows * tokens:
        raise RuntimeError(f"{side} made {result['tokens']} of {rows * tokens} tokens")
    return float(result["tokens"] / result["seconds"])


if __name__ == "__main__":
    sys.exit(main())
