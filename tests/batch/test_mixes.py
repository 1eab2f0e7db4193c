"""Mixes of rows on the simulated engine, in simulated time: what the order of asking makes of
them.
"""

import asyncio
import random
import selectors

from penstock.batch import OpenVINOEngineProcessorConfig, build_processor
from penstock.engines.simulated.engine import SimulatedEngine


class _NoWaiting(selectors.DefaultSelector):
    """Does not wait, and lets the clock of its loop say that it did."""

    now = 0.0

    def select(self, timeout=None):
        events = super().select(0)
        if not events and timeout:
            self.now += timeout
        return events


def in_simulated_time(work):
    """Run `work(loop)`; gives its result and the seconds that passed on the loop's clock."""
    selector = _NoWaiting()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    try:
        result = loop.run_until_complete(work())
        return result, selector.now
    finally:
        loop.close()


async def arriving(rows):
    for row in rows:
        yield row


async def answered(engine, rows):
    """The counts after all rows; no thread has a part in it."""
    stream = build_processor(OpenVINOEngineProcessorConfig(engine=engine))(arriving(rows))
    found = [row async for row in stream]
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    return stream.counts


def request(number, prompt, tokens):
    params = {"temperature": 0.0, "max_tokens": tokens, "ignore_eos": True}
    return {"id": number, "prompt": prompt, "sampling_params": params}


def test_stragglers_do_not_leave_the_engine_empty():
    """2 of 100 rows are 32 times longer; in the best case all slots are busy to the end."""
    slots, step_ms, rows = 64, 10, []
    draw = random.Random(1)
    for number in range(4000):
        rows.append(request(number, f"row {number}", 2048 if draw.random() < 0.02 else 64))
    engine = SimulatedEngine(engine_kwargs={"max_num_seqs": slots, "time_per_token_ms": step_ms})
    counts, seconds = in_simulated_time(lambda: answered(engine, rows))
    tokens = sum(row["sampling_params"]["max_tokens"] for row in rows)
    assert counts.completion_tokens == tokens
    ideal = tokens / slots * step_ms / 1000
    assert ideal / seconds >= 0.95


def test_duplicates_are_asked_once():
    draw = random.Random(2)
    prompts = [f"row {number}" for number in range(700)]
    prompts += draw.choices(prompts, k=300)
    draw.shuffle(prompts)
    rows = [request(number, prompt, 8) for number, prompt in enumerate(prompts)]
    engine = SimulatedEngine(engine_kwargs={"time_per_token_ms": 1})
    counts, _ = in_simulated_time(lambda: answered(engine, rows))
    assert (counts.engine_calls, counts.deduplicated) == (700, 300)
    assert engine.requests_served == 700


def test_shared_prefixes_are_found_as_in_the_best_order():
    """256 prefixes of 256 tokens, 16 rows each, shuffled; the cache holds a quarter of them."""
    draw = random.Random(3)
    prefixes = ["".join(draw.choices("abcdefgh ", k=256)) for _ in range(256)]
    prompts = [
        prefix + "".join(draw.choices("xyz ", k=64)) for prefix in prefixes for _ in range(16)
    ]
    best = [request(number, prompt, 4) for number, prompt in enumerate(prompts)]
    draw.shuffle(prompts)
    shuffled = [request(number, prompt, 4) for number, prompt in enumerate(prompts)]

    def share(rows):
        engine = SimulatedEngine(engine_kwargs={"kv_cache_blocks": 64 * 10, "time_per_token_ms": 1})
        counts, _ = in_simulated_time(lambda: answered(engine, rows))
        return counts.cached_tokens / counts.prompt_tokens

    oracle = 15 / 16 * 256 / 320  # all but the first row of each prefix find it
    assert share(best) == oracle
    assert share(shuffled) >= 0.95 * oracle
