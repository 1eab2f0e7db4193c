"""Do constraints that are hard to compile slow down other clients? Times to the first token, with
and without them.

Clients ask the demo model for free text over and over. In every other window another client sends
constraints as well, a new one each time: such that are refused, and such that take as long as any
that is taken. What is compared is the 95th percentile of the time to the first token in one window
and the next.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Coroutine
from statistics import quantiles
from typing import Any

import harness
from harness import Bar, Contestant
from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.errors import PenstockError
from penstock.types import ChatRequest, Sampling, StructuredOutput

CLIENTS = 4
QUIET, BOMBED = "quiet", "with bombs"
SLOWER_AT_MOST = 1.3


def _json(schema: object) -> StructuredOutput:
    return StructuredOutput("json_schema", json.dumps(schema))


BOMBS: list[Callable[[int], StructuredOutput]] = [
    lambda n: StructuredOutput("regex", f"((a{{1,1000}}){{1,1000}}){{1,{1000 + n}}}"),
    lambda n: StructuredOutput("regex", f"(a?){{{400 + n}}}a{{{400 + n}}}"),
    lambda n: StructuredOutput("regex", f".{{1,{20_000 + n}}}"),
    lambda n: StructuredOutput("regex", "|".join(f"word{n}{k * 7919}" for k in range(3_000))),
    lambda n: _json({"type": "string", "pattern": f"^([a-z]{{1,300}} ){{1,{300 + n}}}$"}),
    lambda n: _json(
        {"type": "object", "properties": {f"p{n}_{k}": {"type": "string"} for k in range(5_000)}}
    ),
    lambda n: _json(
        {"type": "object", "properties": {f"p{n}_{k}": {"type": "string"} for k in range(900)}}
    ),
    lambda n: _json({"enum": [f"value {k} of {n}" for k in range(4_500)]}),
    lambda n: _json(
        {"type": "array", "items": {"type": "string", "maxLength": 5_000 + n}, "maxItems": 10_000}
    ),
]


async def _ask(engine: OpenVINOEngine, structured: StructuredOutput | None) -> float:
    """Seconds to the first token of an answer, which is read to its end."""
    sampling = Sampling(max_tokens=24, temperature=0.0, structured=structured)
    begin, first = time.perf_counter(), 0.0
    async for _ in engine.chat(
        ChatRequest([{"role": "user", "content": "My order has not come."}], sampling)
    ):
        first = first or time.perf_counter() - begin
    return first


async def _window(
    engine: OpenVINOEngine, seconds: float, bombs: Coroutine[Any, Any, None] | None
) -> float:
    """The 95th percentile of the times to the first token in one window."""
    end = time.perf_counter() + seconds
    times: list[float] = []

    async def client() -> None:
        while time.perf_counter() < end:
            times.append(await _ask(engine, None))
            await asyncio.sleep(0.01)

    sending = asyncio.create_task(bombs) if bombs is not None else None
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    if sending is not None:
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sending
        await asyncio.sleep(1)  # what it left half tried is no part of the next window
    return quantiles(times, n=20)[-1] * 1000


async def _send(engine: OpenVINOEngine, bombs: list[StructuredOutput]) -> None:
    for bomb in bombs:
        with contextlib.suppress(PenstockError):
            await _ask(engine, bomb)
        await asyncio.sleep(0.1)


def main() -> int:
    """Compare, and say whether the bar is met."""
    parser = harness.parser(__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a window")
    args: argparse.Namespace = parser.parse_args()
    with asyncio.Runner() as runner:
        engine = OpenVINOEngine("demo")
        runner.run(engine.start())
        runner.run(_ask(engine, BOMBS[2](0)))  # the processes are there
        numbers = itertools.count(1)

        def bombs() -> list[StructuredOutput]:
            return [
                BOMBS[n % len(BOMBS)](n) for n in itertools.islice(numbers, int(args.seconds * 10))
            ]

        pace = harness.compare(
            "time to the first token of other requests, 95th percentile",
            "ms",
            [
                Contestant(QUIET, lambda: runner.run(_window(engine, args.seconds, None))),
                Contestant(
                    BOMBED,
                    lambda: runner.run(_window(engine, args.seconds, _send(engine, bombs()))),
                ),
            ],
            args.rounds,
        )
        runner.run(engine.stop())
    slower = pace.ratio(BOMBED, QUIET).median
    return harness.finish(
        args, [pace], [Bar("other requests keep their pace", slower, SLOWER_AT_MOST)]
    )


if __name__ == "__main__":
    sys.exit(main())
