"""Puts requests to a server, in a closed or an open loop, and measures its own cost."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from penstock.loadtest.client import Sample, Server


@dataclass(frozen=True)
class Run:
    """The samples of a run, its length, and the CPU time of the load generator, in seconds."""

    samples: list[Sample]
    seconds: float
    cpu_seconds: float


async def closed_loop(server: Server, requests: Sequence[bytes], clients: int) -> Run:
    """So many clients, each of which asks again as soon as it has its answer."""
    left = iter(requests)
    samples: list[Sample] = []

    async def client(left: Iterator[bytes]) -> None:
        for request in left:
            samples.append(await server.ask(request))

    start, cpu = _clocks()
    async with asyncio.TaskGroup() as group:
        for _ in range(min(clients, len(requests))):
            group.create_task(client(left))
    return _run(samples, start, cpu)


async def open_loop(server: Server, requests: Sequence[bytes], times: Sequence[float]) -> Run:
    """Each request at its time, whether or not earlier ones are answered. Latencies count from
    that time, so that a late send hides nothing.
    """
    loop = asyncio.get_running_loop()
    start, cpu = _clocks()
    tasks = []
    for request, time_of in zip(requests, times, strict=True):
        due = start + time_of
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        tasks.append(loop.create_task(server.ask(request, due)))
    return _run(list(await asyncio.gather(*tasks)), start, cpu)


def _clocks() -> tuple[float, float]:
    gc.collect()  # not in the middle of the run
    return time.perf_counter(), time.process_time()


def _run(samples: list[Sample], start: float, cpu: float) -> Run:
    return Run(samples, time.perf_counter() - start, time.process_time() - cpu)
