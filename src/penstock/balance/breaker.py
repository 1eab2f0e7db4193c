"""A circuit breaker for a server that fails; probes decide when it opens and closes."""

from __future__ import annotations

from collections.abc import Callable, Hashable

LONGEST_COOLDOWN_S = 30.0


class CircuitBreaker:
    """Closed while the server counts as healthy.

    A request that fails while others succeed is itself the likely cause. So a server becomes a
    suspect only after `trip_after` failures without an answer in between, of different requests or
    of connections. Only a failed probe opens the breaker; until then requests go on. It stays open
    for `cooldown_s`, until the next probe, and twice as long after each
    further probe that fails.
    """

    def __init__(self, trip_after: int, cooldown_s: float, clock: Callable[[], float]) -> None:
        self._trip_after = trip_after
        self._first_cooldown = self._cooldown = cooldown_s
        self._clock = clock
        self._failed: set[Hashable] = set()
        self._unreachable = 0
        self._open_until: float | None = None
        self._probing = False
        self._proven_until = float("-inf")

    @property
    def closed(self) -> bool:
        return self._open_until is None

    @property
    def suspected(self) -> bool:
        """Whether a server that still counts as healthy should be probed."""
        return self.closed and len(self._failed) + self._unreachable >= self._trip_after

    @property
    def wait_s(self) -> float:
        """Seconds until the next probe: 0 if the breaker is closed, infinite while a probe runs."""
        if self._open_until is None:
            return 0.0
        return float("inf") if self._probing else max(self._open_until - self._clock(), 0.0)

    @property
    def probe_due(self) -> bool:
        """Whether a probe should start now."""
        return not self._probing and (self.suspected if self.closed else self.wait_s == 0)

    def begin_probe(self) -> None:
        """Record that a probe has started."""
        self._probing = True

    def probed(self, well: bool | None) -> None:
        """Record a probe's outcome; `well` is None if the probe was inconclusive."""
        self._probing = False
        if well:
            self._proven_until = self._clock() + self._first_cooldown
            self._clear()
        elif well is not None:
            self.trip()

    def answered(self) -> None:
        """Record that the server answered a request, with whatever status."""
        if self._failed or self._unreachable or self._open_until is not None:
            self._clear()

    def failed(self, request: Hashable) -> None:
        """Record a failure of a request that reached the server; a retry is the same `request`."""
        # A recent probe succeeded: a burst of bad requests does not cause one probe each.
        if self._clock() >= self._proven_until:
            self._failed.add(request)

    def unreachable(self) -> None:
        """Record that a connection failed."""
        self._unreachable += 1

    def trip(self) -> None:
        self._open_until = self._clock() + self._cooldown
        self._cooldown = min(2 * self._cooldown, LONGEST_COOLDOWN_S)

    def _clear(self) -> None:
        self._failed.clear()
        self._unreachable = 0
        self._open_until = None
        self._cooldown = self._first_cooldown
