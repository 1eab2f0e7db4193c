"""The controller, against a simulated engine: a step takes a line over its rows, and each new
prompt adds to it.
"""

from __future__ import annotations

import math
import random
from collections import deque

import pytest

from penstock.engines.sharing import Controller, Decision, Observed
from penstock.llm_config.batch import BatchConfig

BASE, ROW, PROMPT = 0.007, 0.0007, 0.012
SLOTS = 32
ANSWER = 32
"""Tokens of each answer."""


class Simulation:
    """Online requests arrive by a Poisson process, in front of endless batch work. `fixed` takes
    the place of the controller: so many rows at all times.
    """

    def __init__(
        self,
        config: BatchConfig | None,
        rate: float,
        *,
        fixed: int = 0,
        seed: int = 0,
        noise: float = 0.1,
    ) -> None:
        self.controller = Controller(config) if config is not None else None
        self.fixed = fixed
        self.draw = random.Random(seed)
        self.rate, self.noise = rate, noise
        self.now = 0.0
        self.next_arrival = self.gap()
        self.waiting: deque[tuple[int, float]] = deque()
        self.online: dict[int, int] = {}
        """Tokens left of each."""
        self.rows = 0
        self.tokens = 0
        self.first_tokens: list[float] = []
        self.count = 0
        self.most = 0
        self.withheld: list[bool] = []
        """Of each step: whether no batch row took part."""

    def gap(self) -> float:
        return self.draw.expovariate(self.rate) if self.rate else math.inf

    def step(self) -> Decision | None:
        controller = self.controller
        while self.next_arrival <= self.now:
            self.count += 1
            self.waiting.append((self.count, self.next_arrival))
            if controller is not None:
                controller.arrived(self.count, self.next_arrival)
            self.next_arrival += self.gap()
        decision = None
        if controller is not None:
            decision = controller.decide(
                self.now, Observed(len(self.online), len(self.waiting), self.rows, 1000, SLOTS)
            )
            rows = decision.rows
        else:
            rows = min(self.fixed, SLOTS - len(self.online))
        granted = decision is not None and decision.granted
        new = []
        while self.waiting and len(self.online) < SLOTS - granted:
            number, at = self.waiting.popleft()
            self.online[number] = ANSWER
            new.append((number, at))
        self.rows = min(rows, SLOTS - len(self.online))
        self.most = max(self.most, self.rows + len(self.online))
        self.withheld.append(not self.rows)
        n = len(self.online) + self.rows
        if not n:
            self.now = self.next_arrival
            return decision
        seconds = (BASE + ROW * n + PROMPT * len(new)) * self.draw.uniform(
            1 - self.noise, 1 + self.noise
        )
        began, self.now = self.now, self.now + seconds
        if controller is not None:
            controller.stepped(
                began,
                self.now,
                online=len(self.online),
                batch=self.rows,
                online_tokens=64 * len(new),
            )
        for number, at in new:
            self.first_tokens.append(self.now - at)
            if controller is not None:
                controller.answered(number, self.now)
        self.tokens += self.rows
        for number in list(self.online):
            self.online[number] -= 1
            if not self.online[number]:
                del self.online[number]
        return decision

    def run(self, steps: int) -> Simulation:
        for _ in range(steps):
            self.step()
        return self

    @property
    def p95(self) -> float:
        ordered = sorted(self.first_tokens[len(self.first_tokens) // 5 :])
        return ordered[int(0.95 * len(ordered))]

    @property
    def batch_rate(self) -> float:
        return self.tokens / self.now


CAPACITY = SLOTS / (ANSWER * (BASE + ROW * SLOTS) + SLOTS * PROMPT)
"""Requests a second that the simulated engine can do."""


@pytest.mark.parametrize("load", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("ratio", [1.25, 1.5, 2.0])
def test_the_target_holds_and_the_batch_gets_more_than_any_fixed_number_gives(
    load: float, ratio: float
) -> None:
    rate, steps = load * CAPACITY, 20_000
    alone = Simulation(None, rate).run(steps).p95
    shared = Simulation(BatchConfig(ttft_ratio=ratio), rate).run(steps)
    assert shared.p95 <= 1.1 * ratio * alone
    fixed = [Simulation(None, rate, fixed=rows).run(steps) for rows in (1, 2, 4, 8, 12, 16, 24, 31)]
    best = max((one.batch_rate for one in fixed if one.p95 <= ratio * alone * 1.1), default=0.0)
    print(load, ratio, shared.p95 / alone, shared.batch_rate, best)
    assert shared.batch_rate >= best
