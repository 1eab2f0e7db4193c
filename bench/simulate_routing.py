"""Routing policies compared in a discrete-event simulation: no engine, no network, a million
requests.

A replica computes prompts one after another (what its cache holds is free), decodes up to `SLOTS`
answers at once, each step slower the more there are, and keeps the blocks of its last prompts.
Requests arrive at random, so fast that the replicas are busy for `--load` of the time if nothing is
cached. Lengths are those of published traces.
"""

from __future__ import annotations

import gc
import heapq
import math
import random
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count, islice

import harness
from harness import Bar
from penstock.balance.policies.base import RouteRequest, RoutingPolicy
from penstock.balance.policies.load import LeastBusy, LeastLoaded, RoundRobin, SessionAffinity
from penstock.balance.policies.prefix import KVAware, PrefixAware
from penstock.balance.policies.table import POLICIES

BLOCK = 64
"""Tokens of a block, of the policies and of the replicas' caches."""
PREFILL_S = 1 / 8000
"""Seconds to compute one token of a prompt."""
STEP_S, STEP_SLOWER_S = 0.008, 0.0002
"""Seconds of a decoding step, and what each further answer adds."""
SLOTS = 64
CACHE_BLOCKS = 4096
MOST_BLOCKS = 1 << 8
"""Blocks that one request adds to a prompt at most."""


@dataclass(slots=True)
class Asked:
    """A request: its prompt's blocks, its lengths in tokens, and the session it belongs to."""

    blocks: list[int]
    prompt: int
    answer: int
    session: str
    arrived: float = 0.0


Workload = Callable[[random.Random, int], Iterator[Asked]]
"""Requests without end, drawn for so many replicas."""


# Workloads
def lognormal(draw: random.Random, mu: float, sigma: float, cap: float) -> int:
    """Tokens, at least one."""
    return max(1, int(min(draw.lognormvariate(mu, sigma), cap)))


def conversations(draw: random.Random, replicas: int) -> Iterator[Asked]:
    """Azure 2023's conversation lengths. 40 sessions a replica are open; a turn repeats what was
    said before, adds a question, and is the last of four on average.
    """
    sessions: list[tuple[str, list[int], int]] = [("", [], 0)] * (40 * replicas)
    for number in count(1):
        at = int(draw.random() * len(sessions))
        session, blocks, tokens = sessions[at]
        if not tokens:
            session, tokens = f"s{number}", lognormal(draw, 6.63, 0.99, 8000)
        else:
            tokens += lognormal(draw, 4.5, 1.0, 1000)
        answer = lognormal(draw, 5.02, 0.86, 1000)
        grown = extended(blocks, tokens, number)
        yield Asked(grown, tokens, answer, session)
        ends = tokens > 8000 or draw.random() < 0.25
        sessions[at] = ("", [], 0) if ends else (session, grown, tokens + answer)


def code(draw: random.Random, replicas: int) -> Iterator[Asked]:
    """Azure 2023's code lengths: long prompts, short answers, nothing shared."""
    for number in count(1):
        tokens = lognormal(draw, 7.00, 1.36, 7437)
        blocks = extended([], tokens, number)
        yield Asked(blocks, tokens, lognormal(draw, 2.79, 0.85, 1000), "")


def shared_prefixes(prefixes: int) -> Workload:
    """256 tokens that one of so many prefixes shares, 256 of its own, 128 out."""

    def requests(draw: random.Random, replicas: int) -> Iterator[Asked]:
        roots = [extended([], 256, number) for number in range(prefixes)]
        for number in count(prefixes):
            root = roots[int(draw.random() * prefixes)]
            yield Asked(extended(root, 512, number), 512, 128, "")

    return requests


def stragglers(draw: random.Random, replicas: int) -> Iterator[Asked]:
    """2 % of the answers are 32 times as long as the others."""
    for number in count(1):
        answer = 2048 if draw.random() < 0.02 else 64
        yield Asked(extended([], 128, number), 128, answer, "")


def extended(blocks: list[int], tokens: int, number: int) -> list[int]:
    """The blocks of a prompt of so many tokens that begins with `blocks`, and goes on with what is
    its own.
    """
    own = number * MOST_BLOCKS
    return [*blocks, *range(own + len(blocks), own + tokens // BLOCK)]


WORKLOADS: dict[str, Workload] = {
    "conversation": conversations,
    "code": code,
    **{f"shared-{number}": shared_prefixes(number) for number in (8, 64, 512)},
    "stragglers": stragglers,
}


# Replicas
@dataclass(slots=True)
class SimulatedReplica:
    """One engine: a queue, prompts computed in turn, answers decoded together, and a cache of
    blocks.

    `ends` are the ends of all replicas' answers, `seen` what came of the requests.
    """

    id: str
    number: int
    ends: list[tuple[float, int]]
    seen: Seen
    on_stored: Callable[[str, list[int]], None] | None = None
    on_removed: Callable[[str, list[int]], None] | None = None
    load: int = 0
    weight: float = 1.0
    adapters: tuple[str, ...] = ()
    decoding: int = 0
    free_at: float = 0.0
    queue: deque[Asked] = field(default_factory=deque)
    cache: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def admit(self, now: float, asked: Asked) -> None:
        """Take a request in."""
        self.load += 1
        if self.decoding < SLOTS:
            self._start(now, asked)
        else:
            self.queue.append(asked)

    def leave(self, now: float) -> None:
        """An answer is complete."""
        self.load -= 1
        self.decoding -= 1
        if self.queue:
            self._start(now, self.queue.popleft())

    def _start(self, now: float, asked: Asked) -> None:
        self.decoding += 1
        cached = min(self._use_cache(asked.blocks) * BLOCK, asked.prompt - 1)
        self.free_at = max(now, self.free_at) + (asked.prompt - cached) * PREFILL_S
        first = self.free_at + STEP_S
        self.seen.waits.append(first - asked.arrived)
        self.seen.prompts += asked.prompt
        self.seen.cached += cached
        step = STEP_S + STEP_SLOWER_S * self.decoding
        heapq.heappush(self.ends, (first + step * asked.answer, self.number))

    def _use_cache(self, blocks: list[int]) -> int:
        """How many of the blocks were there; all of them are now, and the first is the last to
        leave.
        """
        cache = self.cache
        hits = 0
        for block in blocks:
            if block not in cache:
                break
            hits += 1
        new = blocks[hits:]
        for block in reversed(new):
            cache[block] = None
        for block in blocks[hits - 1 :: -1] if hits else ():
            cache.move_to_end(block)
        if self.on_stored is not None and new:
            self.on_stored(self.id, new)
        if len(cache) > CACHE_BLOCKS:
            dropped = [cache.popitem(last=False)[0] for _ in range(len(cache) - CACHE_BLOCKS)]
            if self.on_removed is not None:
                self.on_removed(self.id, dropped)
        return hits


@dataclass
class Seen:
    """Seconds to the first token of each request; tokens of prompts, and of those the cached
    ones.
    """

    waits: list[float] = field(default_factory=list)
    prompts: int = 0
    cached: int = 0


@dataclass
class Outcome:
    """What one run gave: share of prompt tokens found cached, seconds to the first token, router's
    seconds.
    """

    hit_rate: float
    p50: float
    p99: float
    router_s: float


class Simulation:
    """One run of one policy. Every run of a workload has the same requests at the same times."""

    def __init__(
        self, policy: RoutingPolicy, workload: Workload, replicas: int, load: float
    ) -> None:
        self.policy = policy
        self.ends: list[tuple[float, int]] = []
        self.seen = Seen()
        told = (policy.stored, policy.removed) if isinstance(policy, KVAware) else (None, None)
        self.pool = tuple(
            SimulatedReplica(f"r{number}", number, self.ends, self.seen, *told)
            for number in range(replicas)
        )
        self.requests = workload(random.Random(1), replicas)
        settled = 200 * replicas  # requests after which conversations are as long as they stay
        sample = islice(workload(random.Random(2), replicas), settled, settled + 2000)
        self.rate = load * replicas / _seconds_each(sample)

    def run(self, requests: int) -> Outcome:
        """Let so many requests arrive, and wait for them all."""
        draw, clock, policy, pool = random.Random(3), time.thread_time, self.policy, self.pool
        now = spent = 0.0
        for asked in islice(self.requests, requests):
            now += draw.expovariate(self.rate)
            self._pass_time(now)
            asked.arrived = now
            start = clock()
            request = RouteRequest(session=asked.session, blocks=asked.blocks)
            chosen = policy.choose(request, pool)
            policy.sent(request, chosen.id)
            spent += clock() - start
            chosen.admit(now, asked)
        self._pass_time(math.inf)
        seen, waits = self.seen, sorted(self.seen.waits)
        p50, p99 = waits[len(waits) // 2], waits[int(len(waits) * 0.99)]
        return Outcome(seen.cached / seen.prompts, p50, p99, spent / requests)

    def _pass_time(self, now: float) -> None:
        ends = self.ends
        while ends and ends[0][0] <= now:
            at, number = heapq.heappop(ends)
            self.pool[number].leave(at)


def _seconds_each(sample: Iterable[Asked]) -> float:
    """Seconds of a busy replica that a request takes, if nothing is cached."""
    asked = list(sample)
    prefill = sum(one.prompt for one in asked) / len(asked) * PREFILL_S
    decode = (
        sum(one.answer for one in asked) / len(asked) * (STEP_S + STEP_SLOWER_S * SLOTS) / SLOTS
    )
    return max(prefill, decode)


def new_policy(name: str) -> RoutingPolicy:
    """A policy whose draws are the same in every run."""
    if name in ("round_robin", "least_loaded"):
        return RoundRobin() if name == "round_robin" else LeastLoaded()
    made: dict[str, Callable[[], RoutingPolicy]] = {
        "least_busy": lambda: LeastBusy(seed=1),
        "session_affinity": lambda: SessionAffinity(seed=1),
        "prefix_aware": lambda: PrefixAware(seed=1),
        "kv_aware": lambda: KVAware(capacity=10_000_000, seed=1),
    }
    return made[name]()


def main() -> int:
    """Simulate, print, and return the exit code."""
    options = harness.parser(__doc__)
    options.add_argument(
        "--requests", type=int, default=1_000_000, help="of each run (default: %(default)s)"
    )
    options.add_argument(
        "--replicas",
        type=int,
        nargs="+",
        default=[1, 16, 256, 1000],
        help="(default: 1 16 256 1000)",
    )
    options.add_argument(
        "--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), help="(default: all)"
    )
    options.add_argument(
        "--policies", nargs="+", choices=POLICIES, default=list(POLICIES), help="(default: all)"
    )
    options.add_argument(
        "--load",
        type=float,
        default=0.8,
        help="share of what uncached replicas can do (%(default)s)",
    )
    args = options.parse_args()
    # Nothing here makes cycles, and looking for them among millions of blocks takes half of the
    # time.
    gc.disable()
    print("| workload | replicas | policy | hit rate | TTFT p50 ms | TTFT p99 ms | router µs |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    costs = []
    for workload in args.workloads:
        for replicas in args.replicas:
            for name in args.policies:
                got = Simulation(new_policy(name), WORKLOADS[workload], replicas, args.load).run(
                    args.requests
                )
                costs.append(got.router_s * 1e6)
                figures = f"{got.p50 * 1e3:.1f} | {got.p99 * 1e3:.0f} | {got.router_s * 1e6:.1f}"
                print(
                    f"| {workload} | {replicas} | {name} | {got.hit_rate:.1%} | {figures} |",
                    flush=True,
                )
    return harness.finish(args, [], [Bar("the dearest policy, µs a request", max(costs), 500)])


if __name__ == "__main__":
    sys.exit(main())
