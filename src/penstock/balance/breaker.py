"""Leaves a server alone that is ill, and finds out when it is well again."""

from __future__ import annotations

from collections.abc import Callable, Hashable

LONGEST_COOLDOWN_S = 30.0


class CircuitBreaker:
    """Closed while the server counts as well.

    A request that fails while others are answered speaks against itself, so what makes a server a
    suspect are `trip_after` failures without an answer between: of as many different requests, or
    of connections. Only a probe convicts it, never a request of somebody's: until that has failed,
    requests go on. Then the breaker is open for `cooldown_s`, until the next probe; after each that
    fails for twice as long.
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
        """Whether there is reason to probe a server that counts as well."""
        return self.closed and len(self._failed) + self._unreachable >= self._trip_after

    @property
    def wait_s(self) -> float:
        """Seconds until the next probe, or the next request where it is closed; infinite while a
        probe will tell.
        """
        if self._open_until is None:
            return 0.0
        return float("inf") if self._probing else max(self._open_until - self._clock(), 0.0)

    @property
    def probe_due(self) -> bool:
        """Whether a probe is to go now."""
        return not self._probing and (self.suspected if self.closed else self.wait_s == 0)

    def begin_probe(self) -> None:
        """A probe goes, as `probe_due` says."""
        self._probing = True

    def probed(self, well: bool | None) -> None:
        """What the probe found; None for nothing."""
        self._probing = False
        if well:
            self._proven_until = self._clock() + self._first_cooldown
            self._clear()
        elif well is not None:
            self.trip()

    def answered(self) -> None:
        """The server answered a request, whatever it said."""
        if self._failed or self._unreachable or self._open_until is not None:
            self._clear()

    def failed(self, request: Hashable) -> None:
        """A request failed that the server had got. Asked again, it is the same `request`."""
        # So that many bad ones at once are not as many probes.
        if self._clock() >= self._proven_until:
            self._failed.add(request)

    def unreachable(self) -> None:
        """No connection could be made."""
        self._unreachable += 1

    def trip(self) -> None:
        self._open_until = self._clock() + self._cooldown
        self._cooldown = min(2 * self._cooldown, LONGEST_COOLDOWN_S)

    def _clear(self) -> None:
        self._failed.clear()
        self._unreachable = 0
        self._open_until = None
        self._cooldown = self._first_cooldown
