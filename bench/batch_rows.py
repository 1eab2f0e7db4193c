"""The rows of the batch benchmarks, and the job over them whose time is taken."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.engines.base import LLMEngine

WORDS = (
    *(
        "the",
        "order",
        "arrived",
        "late",
        "and",
        "my",
        "invoice",
        "shows",
        "twice",
        "amount",
        "please",
        "check",
    ),
    *(
        "account",
        "locked",
        "since",
        "monday",
        "device",
        "restarts",
        "every",
        "hour",
        "thanks",
        "broken",
        "refund",
    ),
)


def texts(rows: int) -> list[str]:
    """Different short tickets, the same for every side."""
    draw = random.Random(7)
    return [
        f"{number} " + " ".join(draw.choices(WORDS, k=draw.randint(8, 24)))
        for number in range(rows)
    ]


async def timed_job(engine: LLMEngine, rows: int, tokens: int) -> tuple[int, float]:
    """A whole job on a running engine, rows in, JSONL file with a journal out: its tokens and its
    seconds.
    """
    from penstock import arun  # late: the other side of a comparison must not pay for it

    data = [{"text": text} for text in texts(rows)]
    start = time.perf_counter()
    result = await arun(
        data,
        Path(f"out-{time.time_ns()}.jsonl"),
        engine=engine,
        prompt="{text}",
        max_tokens=tokens,
        temperature=0.0,
        ignore_eos=True,
        progress=False,
    )
    return result.counts.completion_tokens, time.perf_counter() - start
