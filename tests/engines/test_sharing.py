"""The controller, against a simulated engine: a step takes a line over its rows, and each new
prompt adds to it.
"""

from __future__ import annotations

import math
import random
from collections import deque

import pytest

from penstock.engines.sharing import Controller, Decision, Observed, StepLengths
from penstock.llm_config.batch import BatchConfig

BASE, ROW, PROMPT = 0.007, 0.0007, 0.012
SLOTS = 32
QUEUE = 64
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
            if len(self.waiting) < QUEUE:
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


def compared(load: float, ratio: float, steps: int) -> tuple[float, float]:
    """The p95 over the undisturbed one, and the batch's speed over that of the best fixed number
    that holds the target.
    """
    rate = load * CAPACITY
    alone = Simulation(None, rate).run(steps).p95
    shared = Simulation(BatchConfig(ttft_ratio=ratio), rate).run(steps)
    fixed = [Simulation(None, rate, fixed=rows).run(steps) for rows in (1, 2, 4, 8, 12, 16, 24)]
    best = max(one.batch_rate for one in fixed if one.p95 <= ratio * alone)
    return shared.p95 / alone, shared.batch_rate / best


@pytest.mark.parametrize(
    ("load", "ratio", "gain"),
    [(0.1, 1.5, 1.1), (0.3, 1.25, 1.3), (0.3, 1.5, 1.1), (0.6, 1.25, 1.3), (0.6, 1.5, 1.3)],
)
def test_the_target_holds_and_the_batch_gets_more_than_a_fixed_number_gives(
    load: float, ratio: float, gain: float
) -> None:
    p95, speed = compared(load, ratio, max(int(4000 / load), 10_000))
    assert p95 <= 1.1 * ratio
    assert speed >= gain


def test_without_online_traffic_the_batch_has_all_slots() -> None:
    alone = Simulation(BatchConfig(ttft_ratio=1.25), 0.0)
    alone.run(1000)
    assert not any(alone.withheld)
    assert alone.tokens == 1000 * SLOTS


def test_rows_leave_with_the_first_step_after_an_arrival() -> None:
    found = Simulation(BatchConfig(ttft_ratio=1.25), 0.3 * CAPACITY)
    for _ in range(10_000):
        before = found.controller
        assert before is not None
        decision = found.step()
        assert decision is not None
        due = list(before._due.values())
        if found.waiting or not due:
            continue
        lost = before.lengths(len(found.online) + found.rows) - before.lengths(len(found.online))
        assert decision.granted or lost <= max(before.slack * 2, 0.0) + ROW


@pytest.mark.parametrize("share", [0.0, 0.02, 0.25])
def test_the_minimum_share_is_kept_however_tight_the_target(share: float) -> None:
    found = Simulation(BatchConfig(ttft_target_ms=0.01, min_share=share), 0.6 * CAPACITY)
    found.run(5000)
    given = [not withheld for withheld in found.withheld]
    for begin in range(0, 4000, 37):
        window = given[begin : begin + 1000]
        assert sum(window) >= math.floor(share * len(window)) - 1
    if not share:
        assert found.controller is not None
        assert not found.controller.grants


@pytest.mark.nightly
def test_a_million_steps_of_changing_traffic() -> None:
    """Slots are never exceeded, and the promised share holds in any window."""
    share = 0.05
    draw = random.Random(1)
    found = Simulation(BatchConfig(ttft_ratio=1.5, min_share=share), 1.0)
    given = 0
    since = 0
    for number in range(1_000_000):
        if number % 10_000 == 0:
            found.rate = draw.choice([0.05, 0.3, 0.6, 0.95, 1.5]) * CAPACITY
            found.noise = draw.choice([0.0, 0.1, 0.5])
        if number % 1000 == 0:
            assert given >= math.floor(share * since) - 1
            given = since = 0
            found.withheld.clear()
            found.first_tokens.clear()
        found.step()
        since += 1
        given += not found.withheld[-1]
        assert found.most <= SLOTS


def test_lengths_of_steps_are_a_line() -> None:
    lengths = StepLengths()
    draw = random.Random(0)
    for _ in range(500):
        rows = draw.randint(1, 24)
        lengths.learn((BASE + ROW * rows) * draw.uniform(0.9, 1.1), rows, 0)
    assert lengths.base == pytest.approx(BASE, rel=0.1)
    assert lengths.row == pytest.approx(ROW, rel=0.1)
    for _ in range(100):
        lengths.learn(lengths(4) + 64 * 0.0002, 4, 64)
    assert lengths.prompt_token == pytest.approx(0.0002, rel=0.1)


def test_where_all_steps_are_alike_rows_are_taken_to_be_dear() -> None:
    lengths = StepLengths()
    for _ in range(100):
        lengths.learn(BASE + ROW * 32, 32, 0)
    assert lengths.row * 32 == pytest.approx(BASE + ROW * 32)


def test_what_a_request_loses_is_the_part_of_batch_rows_in_its_wait() -> None:
    controller = Controller(BatchConfig())
    controller.stepped(0.0, 0.020, online=0, batch=8)
    controller.arrived(1, 0.005)  # during that step
    controller.stepped(0.020, 0.030, online=1, batch=0)
    controller.answered(1, 0.030)
    assert controller.measured == pytest.approx(0.025)
    assert controller.undisturbed == pytest.approx(0.010)


def test_a_full_cache_lets_no_further_row_in() -> None:
    controller = Controller(BatchConfig())
    assert controller.decide(0.0, Observed(0, 0, 3, 100, 32, kv_usage=0.95)).rows == 3
    assert controller.decide(0.0, Observed(0, 0, 3, 100, 32, kv_usage=0.5)).rows == 32


def test_the_same_observations_give_the_same_decisions() -> None:
    runs = [Simulation(BatchConfig(), 0.3 * CAPACITY, seed=3) for _ in range(2)]
    first, second = ([one.step() for _ in range(2000)] for one in runs)
    assert first == second
