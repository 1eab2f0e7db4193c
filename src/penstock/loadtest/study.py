"""Measurements of servers: one, two in turn, or one under growing load."""

from __future__ import annotations

import asyncio
import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from penstock.errors import ConfigError, UpstreamError
from penstock.loadtest.client import Sample, Server
from penstock.loadtest.workload import (
    Prompt,
    Trace,
    Workload,
    body_of,
    calibration,
    tokens_of_a_word,
)
from penstock.observability import counted


@dataclass(frozen=True)
class Run:
    """The samples of a run, its length, and the CPU time of the load generator, in seconds."""

    samples: list[Sample]
    seconds: float
    cpu_seconds: float


async def closed_loop(server: Server, requests: Sequence[bytes], clients: int) -> Run:
    """A number of clients, each of which asks again as soon as it has its answer."""
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


# When requests of an open loop arrive, in seconds from the start of a run
def poisson(rate: float, count: int, seed: int) -> list[float]:
    """The times of arrivals of a Poisson process of `rate` requests a second."""
    chance = random.Random(f"{seed} arrivals")
    now = 0.0
    times = []
    for _ in range(count):
        now += chance.expovariate(rate)
        times.append(now)
    return times


def ramp(first: float, last: float, seconds: float, seed: int) -> list[float]:
    """All arrivals of a Poisson process whose rate goes evenly from `first` to `last` requests a
    second within `seconds`.

    A unit process is stretched by the inverse of the integrated rate (Çinlar, 1975).
    """
    chance = random.Random(f"{seed} arrivals")
    growth = (last - first) / seconds
    whole = (first + last) / 2 * seconds
    times = []
    passed = chance.expovariate(1)
    while passed < whole:
        # The root of first * t + growth * t² / 2 = passed that does not cancel digits.
        root = math.sqrt(max(first * first + 2 * growth * passed, 0.0))
        times.append(2 * passed / (first + root))
        passed += chance.expovariate(1)
    return times


Say = Callable[[str], None]


@dataclass(frozen=True)
class Load:
    """How requests arrive: `clients` of a closed loop, or an open loop with a Poisson `rate` a
    second, a `ramp` of rates (first, last, seconds), or a `trace`. Exactly one of the four is set.
    """

    clients: int | None = None
    rate: float | None = None
    ramp: tuple[float, float, float] | None = None
    trace: Trace | None = None

    def __post_init__(self) -> None:
        given = [name for name, value in vars(self).items() if value is not None]
        if len(given) != 1:
            raise ConfigError(
                "give one of --clients, --rate, --ramp and --trace", field="load", value=given
            )

    def __str__(self) -> str:
        if self.clients is not None:
            return counted(self.clients, "client")
        if self.rate is not None:
            return f"{self.rate:g} requests/s"
        if self.ramp is not None:
            return "{:g} to {:g} requests/s in {:g} s".format(*self.ramp)
        return "a trace"


@dataclass(frozen=True)
class Plan:
    """What is asked, how often, and how. `warmup` requests come first and are not counted;
    `more` are further fields of each request's body.
    """

    workload: Workload
    load: Load
    requests: int = 100
    warmup: int = 8
    model: str | None = None
    chat: bool = True
    stream: bool = True
    more: dict[str, Any] = field(default_factory=dict)


@dataclass
class Side:
    """A server with the model that is asked."""

    name: str
    server: Server
    model: str


def side(name: str, server: Server, plan: Plan, api_key: str | None) -> Side:
    """The server of a target, asked for its models unless the plan names one."""
    from penstock.serve.client import Client

    model = plan.model
    if model is None:
        cards = Client(server.url, api_key).models()
        if not cards:
            raise UpstreamError(f"{server.url} has no models")
        model = str(cards[0]["id"])
    return Side(name, server, model)


async def calibrated(side: Side, plan: Plan) -> Workload:
    """The plan's workload with the tokens that a word is to this server, from the usage of two
    prompts; 1 where the server counts none.
    """
    if plan.workload.tokens_per_word is not None:
        return plan.workload
    counts = []
    for request in _requests(side, plan, calibration()):
        sample = await side.server.ask(request)
        if sample.error is not None:
            raise UpstreamError(
                f"{side.name} does not answer a first request: {sample.error}: {sample.why}"
            )
        counts.append(sample.input_tokens)
    return replace(plan.workload, tokens_per_word=tokens_of_a_word(*counts))


async def run_once(
    side: Side, plan: Plan, workload: Workload, *, load: Load | None = None, part: str = "run"
) -> Run:
    """A warm-up, and a run. Each `part` asks other prompts: a prefix cache must not know them."""
    load = load or plan.load
    if plan.warmup:
        warm = workload.prompts(plan.warmup, part=f"warm-up of {part}")
        clients = min(plan.warmup, load.clients or 8)
        await closed_loop(side.server, _requests(side, plan, warm), clients)
    if load.clients is not None:
        prompts = workload.prompts(plan.requests, part=part)
        return await closed_loop(side.server, _requests(side, plan, prompts), load.clients)
    if load.trace is not None:
        prompts = workload.prompts_of(load.trace.lengths, part=part)
        return await open_loop(side.server, _requests(side, plan, prompts), load.trace.times)
    if load.ramp is not None:
        times = ramp(*load.ramp, workload.seed)
    else:
        assert load.rate is not None
        times = poisson(load.rate, plan.requests, workload.seed)
    prompts = workload.prompts(len(times), part=part)
    return await open_loop(side.server, _requests(side, plan, prompts), times)


async def measured(side: Side, plan: Plan) -> Run:
    """One run against one server, after the workload was fitted to it."""
    return await run_once(side, plan, await calibrated(side, plan))


async def compared(sides: Sequence[Side], plan: Plan, rounds: int, say: Say) -> list[list[Run]]:
    """The sides in turn, A B A B …, so that the machine's drift hits both; the runs of each.

    Prompts of a round have the same lengths in other words: both sides may share an engine, and one
    would find the other's in its prefix cache.
    """
    fitted = await calibrated(sides[0], plan)
    workloads = [replace(fitted, side=str(number)) for number in range(len(sides))]
    runs: list[list[Run]] = [[] for _ in sides]
    for number in range(1, rounds + 1):
        for one, workload, found in zip(sides, workloads, runs, strict=True):
            say(f"round {number} of {rounds}: {one.name}")
            found.append(await run_once(one, plan, workload, part=f"round {number}"))
    return runs


async def swept(side: Side, plan: Plan, loads: Sequence[Load], say: Say) -> list[Run]:
    """One server under one load after another."""
    workload = await calibrated(side, plan)
    runs = []
    for load in loads:
        say(f"{load}")
        runs.append(await run_once(side, plan, workload, load=load, part=str(load)))
    return runs


def _requests(side: Side, plan: Plan, prompts: Sequence[Prompt]) -> list[bytes]:
    path = "/v1/chat/completions" if plan.chat else "/v1/completions"
    return [
        side.server.request(
            path, body_of(prompt, side.model, chat=plan.chat, stream=plan.stream, **plan.more)
        )
        for prompt in prompts
    ]
