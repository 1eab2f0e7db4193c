"""Shares an engine between online requests and batch rows: how many rows may take part in each
step.

An online request waits for the step under way, then for its own first step. The time that batch
rows add to both is its *loss*. It is known for each request: of a step with batch rows alone, all
the time that the request waited; of a step with online requests too, the part by which the batch
rows made it longer. So the time to first token without batch work is known too, while batch work
runs: the measured time, less the loss.

The *slack* is how much a request may lose: the difference between the target and the 95th
percentile of that time. The rule between two steps:

- No request is online, and by the usual gaps none is expected: the batch gets all slots.
- No request waits for a first token: as many rows as keep the next step's loss within the slack.
- A request waits: as many rows as the rest of each request's slack allows. Other rows leave the
  engine at once, and go on later.

How the length of a step depends on its rows is learned from the steps (a line through their
lengths, in which old steps lose weight). A gain corrects what the line does not show, such as a
noisy machine: it shrinks with each first token that missed the target and grows with each that did
not, so that few more than one in `_MISSES` miss it (stochastic approximation of a quantile: Robbins
and Monro, 1951).

A `Controller` reads no clock: the same observations give the same decisions.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

from penstock.llm_config.batch import BatchConfig

_WINDOW = 128
"""How many of the latest first tokens the percentiles are taken of."""
_FEW = 5
"""With fewer first tokens, the time of a lone request is computed from the lengths of steps."""
_MISSES = 0.05
_MARGIN = 0.85
"""The part of the difference to the target that is used. While batch work runs, steps are longer
and have more online requests, so the time without batch work is estimated a little too long.
"""
_GAIN_STEP = 0.25
_LOG_GAINS = (math.log(1 / 8), math.log(1.25))
_PROBE_STEPS = 256
"""After this many steps one step gets half the rows: it shows what a row costs."""
_FORGET = 0.99
"""The weight of old steps is multiplied by this each time that the line is fitted again."""
_KEPT = 0.5
"""The least weight: if all new steps are alike, the old ones still show what a row costs."""
_LATE = 20.0
_SOON = 50
_OUTLIER = 4.0
"""A step longer than this many times the expected length counts as one of that length."""
_QUIET_GAPS = 5.0
"""Mean gaps between arrivals after which no arrival is expected: of a Poisson process 0.7 % of the
gaps are longer.
"""
_QUIET_S = 1.0
KV_FULL = 0.9
"""The use of the KV cache from which on no further batch row is let in."""
_PROMPT_TOKENS = 64
"""The tokens that an unknown prompt is assumed to have."""


class Observed(NamedTuple):
    """The engine between two steps. `online` and `batch` requests are in the engine,
    `online_waiting` and `batch_waiting` requests wait for it. `slots` is how many may be in it,
    `kv_usage` the use of its KV cache, from 0 to 1.
    """

    online: int
    online_waiting: int
    batch: int
    batch_waiting: int
    slots: int
    kv_usage: float = 0.0


class Decision(NamedTuple):
    """At most `rows` batch rows take part in the next step. The prompts of new rows have at most
    `prompt_tokens` together; the first may be longer. `granted`: the rows are those of the minimum
    share, so they go before online requests that wait for a slot.
    """

    rows: int
    prompt_tokens: int
    granted: bool = False


ALL = Decision(1 << 30, 1 << 30)
"""No limit but the slots."""


class StepLengths:
    """How long a step takes, in seconds: `base`, and `row` for each row, and `prompt_token` for
    each token of prompts. Learned from steps.
    """

    def __init__(self) -> None:
        self.base = 0.0
        self.row = 0.0
        self.prompt_token = 0.0
        self._means: dict[int, tuple[float, float]] = {}
        """By number of rows: the mean length of late steps, and its weight."""
        self._steps = 0

    def learn(self, seconds: float, rows: int, prompt_tokens: int) -> None:
        """Learn from a step of `rows` rows, or one that took in `prompt_tokens` of prompts too."""
        if self._steps > _SOON:
            seconds = min(seconds, _OUTLIER * (self(rows) + self.prompt_token * prompt_tokens))
        if prompt_tokens > rows:
            each = max(seconds - self(rows), 0.0) / prompt_tokens
            known = self.prompt_token
            self.prompt_token = each if not known else known + 0.1 * (each - known)
            return
        mean, weight = self._means.get(rows, (seconds, 0.0))
        self._means[rows] = mean + (seconds - mean) / min(weight + 1, _LATE), min(weight + 1, _LATE)
        self._steps += 1
        if self._steps % 8 == 0 or self._steps < _SOON:
            self._fit()

    def _fit(self) -> None:
        """Fit a line through the means. While all steps have the same number of rows, their whole
        length is taken for the cost of rows: then fewer rows are let in, and show the real cost.
        """
        pairs = [(n, mean, weight) for n, (mean, weight) in self._means.items()]
        self._means = {n: (mean, max(weight * _FORGET, _KEPT)) for n, mean, weight in pairs}
        total = sum(weight for _, _, weight in pairs)
        rows = sum(n * weight for n, _, weight in pairs) / total
        seconds = sum(mean * weight for _, mean, weight in pairs) / total
        spread = sum(weight * (n - rows) ** 2 for n, _, weight in pairs)
        together = sum(weight * (n - rows) * (mean - seconds) for n, mean, weight in pairs)
        share = seconds / rows
        self.row = min(max((together + share) / (spread + 1), share / 50), share)
        self.base = seconds - self.row * rows

    def __call__(self, rows: float) -> float:
        return self.base + self.row * rows if rows else 0.0

    @property
    def lone(self) -> float:
        """The time to first token of a lone request with a usual prompt."""
        return self(1) + self.prompt_token * _PROMPT_TOKENS


class Controller:
    """Decides how many batch rows the next step has. Times are in seconds, all of one clock."""

    def __init__(self, config: BatchConfig) -> None:
        self.config = config
        self.lengths = StepLengths()
        self.evictions = 0
        """Rows that were taken out of the engine; the owner counts them."""
        self.grants = 0
        """Steps that the minimum share has given."""
        self.rows = 0
        """The rows of the last decision."""
        self.undisturbed = 0.0
        self.measured = 0.0
        """95th percentiles of the time to first token: without batch work, and as measured with
        it.
        """
        self._due: dict[int, tuple[float, float]] = {}
        """Online requests without a first token: when each came, and its loss so far."""
        self._alone: deque[float] = deque(maxlen=_WINDOW)
        self._times: deque[float] = deque(maxlen=_WINDOW)
        self._log_gain = 0.0
        self._debt = 0.0
        self._last = (0.0, 0.0, 0.0)
        """The last step: its begin, its end, and the share of it that batch rows took."""
        self._seen = -math.inf
        """When an online request was last there."""
        self._arrival = -math.inf
        self._gap = 0.0
        self._decided = 0
        self._beside = 0.0
        """The mean number of batch rows in late steps with online requests."""

    # What happens
    def arrived(self, request: int, at: float) -> None:
        """An online request came, perhaps during the last step."""
        if self._arrival > -math.inf:
            gap = max(at - self._arrival, 0.0)
            self._gap = gap if not self._gap else self._gap + 0.1 * (gap - self._gap)
        self._arrival = max(at, self._arrival)
        self._seen = max(at, self._seen)
        began, ended, part = self._last
        self._due[request] = (at, part * max(ended - max(at, began), 0.0))

    def stepped(
        self,
        began: float,
        ended: float,
        *,
        online: int,
        batch: int,
        online_tokens: int = 0,
        batch_tokens: int = 0,
    ) -> None:
        """A step took place. The numbers are the rows of each class, and the new prompt tokens."""
        lengths, seconds = self.lengths, ended - began
        lengths.learn(seconds, online + batch, online_tokens + batch_tokens)
        part = 0.0
        if online:
            self._seen = ended
            self._beside += 0.02 * (batch - self._beside)
            # A request that is slowed down stays longer. Without batch rows, fewer online requests
            # would share a step.
            base = lengths.base
            alone = online * base / (base + lengths.row * self._beside) if base else online
            loss = lengths(online + batch) - lengths(alone) + lengths.prompt_token * batch_tokens
            part = min(max(loss / seconds, 0.0), 1.0) if seconds > 0 else 0.0
        elif batch:
            part = 1.0
        self._last = (began, ended, part)
        if part:
            for request, (at, loss) in self._due.items():
                self._due[request] = (at, loss + part * (ended - max(began, at)))

    def answered(self, request: int, at: float) -> None:
        """An online request got its first token, or ended without one. Batch requests are
        ignored.
        """
        found = self._due.pop(request, None)
        if found is None:
            return
        came, loss = found
        taken = at - came
        self._alone.append(taken - loss)
        self._times.append(taken)
        self.undisturbed = _percentile(self._alone)
        self.measured = _percentile(self._times)
        if len(self._alone) < _FEW:
            return
        change = _MISSES if taken <= self._target(self.undisturbed) else _MISSES - 1
        low, high = _LOG_GAINS
        self._log_gain = min(max(self._log_gain + _GAIN_STEP * change, low), high)

    def gone(self, request: int) -> None:
        """An online request left before its first token."""
        self._due.pop(request, None)

    # What follows
    @property
    def slack(self) -> float:
        """The seconds that a request may lose."""
        known = len(self._alone) >= _FEW
        alone = self.undisturbed if known else self.lengths.lone
        return math.exp(self._log_gain) * max(self._target(alone) - alone, 0.0)

    def decide(self, now: float, seen: Observed) -> Decision:
        """How many batch rows the next step may have."""
        wanted = seen.batch + seen.batch_waiting
        if not wanted:
            self.rows = 0
            self._debt = 0.0
            return Decision(0, 0)
        free = max(seen.slots - seen.online - seen.online_waiting, 0)
        rows = min(wanted, free)
        tokens = ALL.prompt_tokens
        if not self._quiet(now, seen):
            slack, lengths = self.slack, self.lengths
            others = seen.online + seen.online_waiting
            if self._due:
                slack -= max(loss for _, loss in self._due.values())
            if not lengths.row:
                cap = 1  # the lengths of steps are unknown yet
            elif others:
                cap = int(max(slack, 0.0) / lengths.row)
            else:
                cap = int(max(slack - lengths.base, 0.0) / lengths.row)
            self._decided += 1
            if self._decided % _PROBE_STEPS == 0:
                cap = min(cap, rows // 2)
            rows = min(rows, cap)
            loss = lengths(others + rows) - lengths(others)
            if lengths.prompt_token:
                tokens = int(max(slack - loss, 0.0) / lengths.prompt_token)
            else:
                tokens = 0  # one prompt at a time, until its cost is known
        if seen.kv_usage >= KV_FULL:
            rows = min(rows, seen.batch)
        granted = False
        self._debt += self.config.min_share
        if not rows and self._debt >= 1 and seen.online < seen.slots:
            rows, granted = 1, True
            self.grants += 1
        if rows:
            self._debt = max(self._debt - 1, 0.0)
        self.rows = rows
        return Decision(rows, tokens, granted)

    def metrics(self) -> dict[str, float]:
        """The decisions and what they are based on, for the engine's metrics."""
        return {
            "batch_rows_allowed": self.rows,
            "batch_evictions": self.evictions,
            "batch_minimum_share_steps": self.grants,
            "batch_slack_seconds": self.slack,
            "online_first_token_p95_seconds": self.measured,
            "online_first_token_undisturbed_p95_seconds": self.undisturbed,
        }

    def _target(self, alone: float) -> float:
        given = self.config.ttft_target_ms
        target = alone * self.config.ttft_ratio if given is None else given / 1000
        return alone + _MARGIN * (target - alone)

    def _quiet(self, now: float, seen: Observed) -> bool:
        """Whether no request is online, and none is expected soon."""
        if seen.online or seen.online_waiting or self._due:
            return False
        return now - self._seen > max(_QUIET_GAPS * self._gap, _QUIET_S)


class Shared:
    """What all step loops do that share their steps between classes. Before the first batch request
    they do not use the controller.
    """

    def __init__(self, config: BatchConfig) -> None:
        self.controller = Controller(config)
        self.pause = 0.0
        """Seconds until the next step, if only batch requests are there and must wait."""
        self._on = False

    def came(self, request: int, at: float, *, batch: bool) -> None:
        """A request was submitted; `at` is when its caller made it."""
        if batch:
            self._on = True
        elif self._on:
            self.controller.arrived(request, at)

    def gone(self, request: int) -> None:
        """A request has ended, or was given up."""
        self.controller.gone(request)

    def metrics(self) -> dict[str, float]:
        """The controller's metrics; empty before the first batch request."""
        return self.controller.metrics() if self._on else {}


def _percentile(times: deque[float]) -> float:
    ordered = sorted(times)
    return ordered[min(int(0.95 * len(ordered)), len(ordered) - 1)]
