"""Jobs as tests run them, and what they read of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import penstock
from penstock.batch import RunResult

Row = dict[str, Any]


def numbered(count: int) -> list[Row]:
    return [{"id": number, "text": f"text {number}"} for number in range(count)]


async def ask(source: Any, output: Any, engine: Any, **options: Any) -> RunResult:
    options = {"prompt": "{text}", "progress": False, **options}
    return await penstock.arun(source, output, engine=engine, **options)


def lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def settled(rows: Iterable[Row]) -> list[Row]:
    """Rows without what differs between two runs by right."""
    return [
        {key: value for key, value in row.items() if key not in ("latency_ms", "attempts")}
        for row in rows
    ]


async def interrupted(source: Any, output: Any, engine: Any, after: int, **options: Any) -> None:
    """A job that is cancelled when `after` requests have come."""
    job = asyncio.create_task(ask(source, output, engine, **options))
    await engine.was_asked(after)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
