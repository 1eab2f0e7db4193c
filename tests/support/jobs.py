"""Jobs as tests run them, and what they read of them."""

import asyncio
import json

import pytest

import penstock


def numbered(count):
    return [{"id": number, "text": f"text {number}"} for number in range(count)]


async def ask(source, output, engine, **options):
    options = {"prompt": "{text}", "progress": False, **options}
    return await penstock.arun(source, output, engine=engine, **options)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def settled(rows):
    """Rows without what differs between two runs by right."""
    return [{key: value for key, value in row.items() if key not in ("latency_ms", "attempts")} for row in rows]


async def interrupted(source, output, engine, after, **options):
    """A job that is cancelled when `after` requests have come."""
    job = asyncio.create_task(ask(source, output, engine, **options))
    await engine.was_asked(after)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
