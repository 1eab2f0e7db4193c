"""How many replicas a model should have, by the number of its requests, as in Ray Serve."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import ceil

from penstock.llm_config.model import AutoscalingConfig

INTERVAL_S = 1.0
"""Seconds between two decisions, unless `metrics_interval_s` says otherwise."""
LOOK_BACK_S = 30.0
"""Seconds over which requests are averaged, unless `look_back_period_s` says otherwise."""
_AGGREGATED: dict[str, Callable[[list[int]], float]] = {
    "mean": lambda counts: sum(counts) / len(counts),
    "max": max,
    "min": min,
}


class Autoscaler:
    """Decides the number of replicas, from `fewest` to `most`. Each is to have `target` requests.

    The formula, the factors and the delays are those of Ray Serve: a decision must hold for
    `upscale_delay_s` or `downscale_delay_s` without a break. The last replica goes only when there
    was no request for `downscale_to_zero_delay_s`.
    """

    def __init__(self, scaling: AutoscalingConfig, target: float, fewest: int, most: int) -> None:
        self._scaling = scaling
        self._target = target
        self._fewest, self._most = fewest, most
        both = scaling.smoothing_factor or 1.0
        self._up = scaling.upscaling_factor or scaling.upscale_smoothing_factor or both
        self._down = scaling.downscaling_factor or scaling.downscale_smoothing_factor or both
        self._aggregate = _AGGREGATED[scaling.aggregation_function or "mean"]
        self._seen: deque[tuple[float, int]] = deque()
        self._grows: bool | None = None
        self._since = 0.0

    def decide(self, now: float, requests: int, replicas: int, *, asked: bool = False) -> int:
        """The number of replicas that there should be. `now` is in seconds, `requests` are running
        and waiting ones, `replicas` the present number. `asked`: a request has come since the last
        decision.
        """
        look_back = self._scaling.look_back_period_s
        first = now - (LOOK_BACK_S if look_back is None else look_back)
        self._seen.append((now, requests))
        while self._seen[0][0] < first:
            self._seen.popleft()
        wanted = self._wanted(requests, replicas, asked or requests > 0)
        if wanted == replicas:
            self._grows = None
        elif self._grows is not (wanted > replicas):
            self._grows, self._since = wanted > replicas, now
        if self._grows is None or now - self._since < self._delay(replicas, wanted):
            return replicas
        self._grows = None
        return wanted

    def _wanted(self, requests: int, replicas: int, needed: bool) -> int:
        if not replicas:
            wanted = int(requests > 0)
        elif replicas == 1 and not needed:
            wanted = 0
        else:
            seen = self._aggregate([count for _, count in self._seen])
            ratio = seen / (self._target * replicas)
            factor = self._up if ratio > 1 else self._down
            wanted = _ceil(replicas * (1 + (ratio - 1) * factor))
            if _ceil(replicas * ratio) < replicas == wanted:
                wanted -= 1  # else a small factor would keep the number as it is
            wanted = max(wanted, 1)
        return min(max(wanted, self._fewest), self._most)

    def _delay(self, replicas: int, wanted: int) -> float:
        scaling = self._scaling
        if wanted > replicas:
            return scaling.upscale_delay_s if replicas else 0.0
        to_zero = scaling.downscale_to_zero_delay_s
        return scaling.downscale_delay_s if wanted or to_zero is None else to_zero


def _ceil(value: float) -> int:
    return ceil(value - 1e-9)
