"""Rows that kill the engine, among rows that do not."""

from __future__ import annotations

import random
import time
from pathlib import Path

from promises import Promise

import penstock

ROWS, FATAL = 300, 10


def campaign(seed: int, deadline: float, folder: Path) -> list[Promise]:
    """Any order, any concurrency."""
    promise = Promise(
        f"{FATAL} rows that kill the engine among {ROWS}: {ROWS - FATAL} good rows and {FATAL}"
        " error rows"
    )
    chance = random.Random(seed)
    while time.monotonic() < deadline:
        concurrency = chance.choice([1, 2, 8, 64, 256])
        texts = [f"row {number}" for number in range(ROWS - FATAL)] + [
            f"FATAL {number}" for number in range(FATAL)
        ]
        chance.shuffle(texts)
        result = penstock.run(
            [{"text": text} for text in texts],
            model="simulated",
            engine_kwargs={"max_num_seqs": concurrency, "die_on": "FATAL"},
            prompt="{text}",
            progress=False,
        )
        wrong = [
            row["text"]
            for row in result.rows()
            if (row["status"] == "ok") != ("FATAL" not in row["text"])
        ]
        if wrong:
            promise.broke(f"concurrency {concurrency}: {wrong[:5]}")
        else:
            promise.held()
    return [promise]
