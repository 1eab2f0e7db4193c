"""What a cascade saves, and whether it keeps its promise: the demo model's weights rounded to fewer
bits are the small model, the demo model itself is the large one.

Both decide about all 600 demo tickets once. Then 100 samples are drawn as a job draws its one: for
each, the least confidence follows, and with it how many rows have the large model's decision and
how many of its calls are saved, those for the sample counted.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import harness
from harness import Bar
from penstock import demo
from penstock.batch.decisions.thresholds import least_confidence
from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.types import ChoiceQuestion, DecideRequest, Option
from rounded_model import rounded_model

TEAMS = ("account", "billing", "feature", "refund", "shipping", "technical")
RUNS, MET, SAVED = 100, 95, 0.5


async def decided(model: str, tickets: list[str]) -> list[tuple[object, float]]:
    """What a model decides about each ticket, and how sure it is."""
    question = ChoiceQuestion("", tuple(Option(f'{{"category":"{team}') for team in TEAMS))
    engine = OpenVINOEngine(model)
    await engine.start()
    try:
        asked = (engine.decide(DecideRequest(ticket, (question,))) for ticket in tickets)
        found = await asyncio.gather(*asked)
    finally:
        await engine.stop()
    return [(each.items[0].value, max(each.items[0].probabilities)) for each in found]


def main() -> int:
    """Run the comparison. Returns the exit code."""
    parser = harness.parser(__doc__)
    parser.add_argument("--bits", type=int, nargs="+", default=[3, 2])
    parser.add_argument("--target", type=float, default=0.95)
    parser.add_argument("--delta", type=float, default=0.05)
    args = parser.parse_args()
    lines = demo.tickets_path().read_text(encoding="utf-8").splitlines()
    tickets = [json.loads(line)["ticket"] for line in lines]
    rows = len(tickets)
    large = asyncio.run(decided("demo", tickets))
    bars = []
    for bits in args.bits:
        with tempfile.TemporaryDirectory() as folder:
            model = rounded_model(Path(folder) / "small", bits)
            small = asyncio.run(decided(str(model), tickets))
        same = [one == other for (one, _), (other, _) in zip(small, large, strict=True)]
        met, saved = 0, []
        for seed in range(RUNS):
            sample = random.Random(seed).sample(range(rows), rows // 5)
            least = least_confidence(
                [small[row][1] for row in sample],
                [same[row] for row in sample],
                args.target,
                args.delta,
            )
            stand = {row for row in range(rows) if small[row][1] >= least} - set(sample)
            met += 1 - sum(not same[row] for row in stand) / rows >= args.target
            saved.append(len(stand) / rows)
        name = f"{bits} bits (as the large model in {mean(same):.1%})"
        bars += [
            Bar(f"{name}: runs of {RUNS} that met the target", met, MET, at_least=True),
            Bar(f"{name}: calls saved", mean(saved), SAVED, at_least=True),
        ]
    return harness.finish(args, [], bars)


if __name__ == "__main__":
    sys.exit(main())
