"""Jobs of a campaign: their input, the command that runs them, and what stands in their output."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

FORMS = ("jsonl", "csv", "parquet")
MODEL = ("--engine", "simulated", "--model", "simulated")


def tickets(path: Path, count: int, seed: int) -> Path:
    """A file of `count` rows with ids in order; some texts are equal."""
    chance = random.Random(seed)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            text = f"My order {chance.randrange(count)} has not come, please help."
            file.write(json.dumps({"id": number, "text": text}) + "\n")
    return path


def command(source: Path, output: Path, *options: str) -> list[str]:
    """The command that runs a job."""
    program = [sys.executable, "-m", "penstock.cli", "run", str(source), "-o", str(output)]
    return [*program, "--prompt", "{text}", "-q", *options]


def ended(argv: list[str], timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=timeout_s, env={**os.environ, "NO_COLOR": "1"}
    )


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of an output."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        import csv

        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    import pyarrow.parquet as pq

    return list(pq.read_table(path).to_pylist())


def settled(path: Path) -> list[dict[str, Any]]:
    """The rows without what differs between two runs by right."""
    differs = ("latency_ms", "attempts", "usage.cached_tokens")
    found = [
        {name: value for name, value in row.items() if name not in differs} for row in rows(path)
    ]
    for row in found:
        if isinstance(row.get("usage"), dict):
            row["usage"].pop("cached_tokens", None)
    return found


def ids(path: Path) -> list[int]:
    """The ids of an output, in its order."""
    return [int(row["id"]) for row in rows(path)]


def leftovers(output: Path, source: Path) -> list[str]:
    """What stands beside a finished output but should not: everything but the record that the job
    is complete.
    """
    state = [path.name for path in output.parent.iterdir() if path not in (output, source)]
    inside = [path.name for name in state for path in (output.parent / name).glob("*")]
    return [
        name
        for name in inside
        if name.endswith((".tmp", ".jsonl", ".parquet")) and not name.startswith("parts-")
    ]
