"""Whether a batch can be answered within its window, by the speed that its model has shown and by
the lines that are ahead of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from penstock.balance.backoff import span
from penstock.batch.job.result import Counts
from penstock.service.batches import Fault

FEWEST_LINES = 32
"""Nothing is concluded from fewer answers."""
MOST_LINES = 20_000
"""Beyond so many answers the old ones count half."""


class Counted(Protocol):
    """A run of a batch, which counts its lines."""

    counts: Counts | None


class Speed:
    """How many lines a second a model answers, while it has any batch."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._running: list[Counted] = []
        self._since = 0.0
        self._seconds = 0.0
        self._lines = 0

    def begin(self, run: Counted) -> None:
        """Lines begin to be answered."""
        if not self._running:
            self._since = self._clock()
        self._running.append(run)

    def end(self, run: Counted) -> None:
        """No more lines are answered."""
        self._running.remove(run)
        self._lines += answered(run.counts)
        if not self._running:
            self._seconds += self._clock() - self._since
        if self._lines > MOST_LINES:
            self._lines //= 2
            self._seconds /= 2

    def seconds_for(self, lines: int) -> float | None:
        """How long so many lines take; None where too little is known."""
        seconds = self._seconds + (self._clock() - self._since if self._running else 0.0)
        done = self._lines + sum(answered(run.counts) for run in self._running)
        return lines * seconds / done if done >= FEWEST_LINES else None


def answered(counts: Counts | None) -> int:
    """How many lines a run has answered itself."""
    return 0 if counts is None else counts.rows - counts.resumed


def too_late(lines: int, ahead: int, seconds: float | None, left: float) -> list[Fault]:
    """The fault of a batch of so many lines, with so many `ahead` of it, that all take so many
    seconds, where no more are `left`; else none.
    """
    if seconds is None or seconds <= left:
        return []
    message = (
        f"{lines:,} lines, and {ahead:,} of batches before, would take about"
        f" {span(seconds)} at the speed of this server, and the window leaves"
        f" {span(max(left, 0.0))}. Give a longer completion_window, or fewer lines"
    )
    return [Fault(code="completion_window_too_short", message=message, param="completion_window")]
