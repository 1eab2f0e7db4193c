"""Batch work behind online requests on one engine: what it costs them, and what it gets.

Online requests arrive by a Poisson process at a share of what the engine can do. Behind them
runs endless batch work: none, a fixed number of streams of ordinary requests, all of it as ordinary
requests, or in the batch class with a target. Shown are the p95 of the time to first token, over
that without batch work, and the batch's tokens a second, over those of the batch alone. All runs of
one load follow each other in one process, those without batch work at the beginning, in the
middle and at the end; the engine is loaded anew for each. The simulated engine
runs in time of its own, which no other load of the machine disturbs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import selectors
import statistics
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import harness
from harness import Bar

PROMPT_WORDS = 40
FIXED = (1, 2, 4, 8, 16, 24)
ENGINES: dict[str, tuple[str, dict[str, Any]]] = {
    "simulated": (
        "simulated",
        {
            "time_per_token_ms": 4.0,
            "batch_slowdown": 0.08,
            "time_to_first_token_ms": 4.0,
            "output_tokens": 32,
        },
    ),
    "openvino": ("demo", {}),
    "vllm": ("demo", {}),
}


_REAL_S = 2.0


class _NoWait(selectors.DefaultSelector):
    virtual = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            return super().select(None)
        # Only what waits for a thread sets a long timer.
        events = super().select(_REAL_S if timeout > 100 else 0)
        if not events:
            self.virtual += timeout
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only where everybody sleeps."""

    def __init__(self) -> None:
        self.selector = _NoWait()
        super().__init__(self.selector)

    def time(self) -> float:
        return self.selector.virtual


def now() -> float:
    """The event loop's time in seconds."""
    return asyncio.get_running_loop().time()


class Run(NamedTuple):
    """What one run gave: the p95 of the time to first token in seconds, how many online requests
    it is of, and the batch's tokens a second.
    """

    p95: float
    requests: int
    batch: float


class Work:
    """Requests to one model."""

    def __init__(self, handle: Any, tokens: int) -> None:
        self.handle = handle
        self.tokens = tokens
        self.batch_tokens = 0
        self._number = 0

    async def one(self, *, batch: bool, counted: bool = False) -> float:
        """Ask once; gives the seconds to the first token."""
        from penstock.types import CompletionRequest, Sampling

        self._number += 1
        draw = random.Random(self._number)
        words = " ".join(f"w{draw.randrange(1000)}" for _ in range(PROMPT_WORDS))
        sampling = Sampling(temperature=0.0, max_tokens=self.tokens, ignore_eos=True)
        model = self.handle.for_batch() if batch else self.handle
        began, first = now(), 0.0
        async for delta in model.completions(CompletionRequest(words, sampling)):
            if not first:
                first = now() - began
            if counted:
                self.batch_tokens += len(delta.token_ids)
        return first

    async def stream(self, *, batch: bool) -> None:
        """Batch work without end."""
        while True:
            await self.one(batch=batch, counted=True)

    async def arrivals(self, rate: float, seconds: float, seed: int) -> list[float]:
        """Online requests for so long; gives each one's time to first token."""
        draw = random.Random(seed)
        asked = []
        at = now()
        end = at + seconds
        while (at := at + draw.expovariate(rate)) < end:
            await asyncio.sleep(max(at - now(), 0))
            asked.append(asyncio.ensure_future(self.one(batch=False)))
        return list(await asyncio.gather(*asked))


@asynccontextmanager
async def loaded(args: argparse.Namespace, ratio: float = 2.0) -> AsyncIterator[Work]:
    """The engine, loaded."""
    from penstock.llm_config import LLMConfig, ModelLoadingConfig
    from penstock.llm_config.batch import BatchConfig
    from penstock.serve.models.local import LocalModel

    model, kwargs = ENGINES[args.engine]
    config = LLMConfig(
        model_loading_config=ModelLoadingConfig(model_id="m", model_source=args.model or model),
        llm_engine=args.engine,
        engine_kwargs={**kwargs, **args.engine_kwargs, "max_num_seqs": args.slots},
        batch=BatchConfig(ttft_ratio=ratio),
    )
    handle = LocalModel(config)
    await handle.start()
    try:
        work = Work(handle, args.tokens)
        await asyncio.gather(*(work.one(batch=False) for _ in range(4)))
        yield work
    finally:
        await handle.stop(0)


async def measured(
    args: argparse.Namespace, rate: float, streams: int, *, batch: bool, ratio: float = 2.0
) -> Run:
    """One run: `streams` of batch work behind arrivals."""
    async with loaded(args, ratio) as work:
        background = [asyncio.ensure_future(work.stream(batch=batch)) for _ in range(streams)]
        warm_up = args.seconds / 3
        if rate:
            await work.arrivals(rate, warm_up, 1)
        else:
            await asyncio.sleep(warm_up)
        before, began = work.batch_tokens, now()
        firsts: list[float] = []
        if rate:
            firsts = sorted(await work.arrivals(rate, args.seconds, 2))
        else:
            await asyncio.sleep(args.seconds)
        speed = (work.batch_tokens - before) / (now() - began)
        for one in background:
            one.cancel()
        await asyncio.gather(*background, return_exceptions=True)
    p95 = firsts[min(int(0.95 * len(firsts)), len(firsts) - 1)] if firsts else 0.0
    return Run(p95, len(firsts), speed)


async def compare(args: argparse.Namespace) -> list[Bar]:
    """All runs; prints them, and gives the bars."""
    # In turn and back again, as a machine may become slower or faster by and by.
    order = [False, True, True, False]
    idle = [(batch, await measured(args, 0.0, args.slots, batch=batch)) for batch in order]
    alone, shared = (
        sum(run.batch for batch, run in idle if batch == wanted) / 2 for wanted in (False, True)
    )
    print(f"the batch alone: {alone:.0f} tokens/s; in the batch class {shared:.0f}")
    bars = [Bar("no online traffic, over the job alone", shared / alone, 0.97, True)]
    for load in args.loads:
        rate = load * alone / args.tokens
        fixed = [n for n in args.fixed if n <= args.slots]
        plan = {
            **{f"{streams} streams": (streams, False, 2.0) for streams in fixed},
            "as ordinary requests": (args.slots, False, 2.0),
            **{f"batch class, {ratio:g} x": (args.slots, True, ratio) for ratio in args.targets},
        }
        quiet = [await measured(args, rate, 0, batch=False)]
        runs: dict[str, Run] = {}
        for name, (streams, batch, ratio) in plan.items():
            runs[name] = await measured(args, rate, streams, batch=batch, ratio=ratio)
            if 2 * len(runs) in (len(plan), len(plan) + 1) or len(runs) == len(plan):
                quiet.append(await measured(args, rate, 0, batch=False))
        alone_p95 = statistics.median(run.p95 for run in quiet)
        told = ", ".join(f"{run.p95 * 1000:.1f}" for run in quiet)
        print(f"\n{load:.0%} online ({rate:.1f} requests/s), p95 {told} ms alone")
        for name, run in runs.items():
            print(
                f"  {name:22} p95 {run.p95 / alone_p95:5.2f} x   batch {run.batch / alone:5.2f}"
                f"   ({run.requests} requests)",
                flush=True,
            )
        held = [runs[f"{streams} streams"] for streams in fixed]
        for ratio in args.targets:
            run = runs[f"batch class, {ratio:g} x"]
            holds = [one.batch for one in held if one.p95 <= ratio * alone_p95]
            where = f"{load:.0%} online, target {ratio:g} x"
            bars.append(Bar(f"{where}: p95", run.p95 / alone_p95, 1.1 * ratio))
            if holds:
                bars.append(
                    Bar(f"{where}: batch over the best fixed", run.batch / max(holds), 1.3, True)
                )
    return bars


def main() -> int:
    """Measure, print, and return the exit code."""
    options = harness.parser(__doc__)
    options.add_argument("--engine", choices=sorted(ENGINES), default="simulated")
    options.add_argument("--model", help="in the place of the demo model")
    options.add_argument("--engine-kwargs", type=json.loads, default={}, metavar="JSON")
    options.add_argument("--slots", type=int, default=24, help="(default: %(default)s)")
    options.add_argument("--tokens", type=int, default=32, help="of each answer")
    options.add_argument("--seconds", type=float, default=10.0, help="of each run")
    options.add_argument("--loads", type=float, nargs="*", default=[0.1, 0.3, 0.6])
    options.add_argument("--targets", type=float, nargs="*", default=[1.25, 1.5, 2.0])
    options.add_argument("--fixed", type=int, nargs="*", default=list(FIXED))
    args = options.parse_args()
    factory = VirtualLoop if args.engine == "simulated" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        bars = runner.run(compare(args))
    return harness.finish(args, [], bars, packages=["openvino-genai"])


if __name__ == "__main__":
    sys.exit(main())
