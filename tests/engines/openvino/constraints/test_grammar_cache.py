from typing import Any

import pytest

from penstock.engines.openvino.constraints import grammar_cache as compiled_grammars
from penstock.engines.openvino.constraints.grammar_cache import Compiling

LARGE = "x" * 3_000


class Grammars:
    """Compiles nothing, at a price."""

    def __init__(self, clock, seconds):
        self.compiled = []
        self._clock = clock
        self._seconds = seconds

    def compile(self, grammar):
        self.compiled.append(grammar)
        self._clock.thread += self._seconds


class Clock:
    """The time, and that of a thread's work."""

    def __init__(self):
        self.now = 1_000.0
        self.thread = 0.0

    def monotonic(self):
        return self.now

    def thread_time(self):
        return self.thread


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(compiled_grammars, "time", clock)
    return clock


def test_large_grammars_wait_their_turn_while_others_are_served_and_small_ones_do_not(clock):
    grammars: Any = Grammars(clock, seconds=0.15)
    compiling = Compiling(background=True)
    first, second, small = (
        compiling.start(grammars, grammar) for grammar in (LARGE + "1", LARGE + "2", "small")
    )
    for future in (first, small):
        compiling.go_on(serving=True)
        future.result(timeout=10)
    compiling.go_on(serving=True)
    assert grammars.compiled == [LARGE + "1", "small"]
    clock.now += 10
    compiling.go_on(serving=True)
    second.result(timeout=10)
    assert grammars.compiled[2:] == [LARGE + "2"]


def test_where_nobody_is_served_they_are_compiled_one_after_the_other(clock):
    grammars: Any = Grammars(clock, seconds=5.0)
    compiling = Compiling(background=True)
    for future in [compiling.start(grammars, f"{LARGE}{n}") for n in range(3)]:
        compiling.go_on(serving=False)
        future.result(timeout=10)
    assert grammars.compiled == [f"{LARGE}{n}" for n in range(3)]


def test_one_that_nobody_waits_for_any_more_is_left_out(clock):
    grammars: Any = Grammars(clock, seconds=0.0)
    compiling = Compiling(background=True)
    left, wanted = compiling.start(grammars, "a"), compiling.start(grammars, "b")
    left.cancel()
    compiling.go_on(serving=False)
    compiling.go_on(serving=False)
    wanted.result(timeout=10)
    assert grammars.compiled == ["b"]
