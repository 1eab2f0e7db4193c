"""Leaves a prefill side alone that keeps failing, and finds out when it is well again."""

from __future__ import annotations

from collections.abc import Callable

LONGEST_COOLDOWN_S = 30.0


class PrefillBreaker:
    """Unlike that of a remote server it may probe with a request of somebody's: one that fails here is computed without
    the prefill side, and nobody is harmed.

    Closed while the server is well. After `trip_after` failures in a row it is open for `cooldown_s`; then one
    request is let through to probe, and its outcome closes the breaker or opens it for twice as long.
    """

    def __init__(self, trip_after: int, cooldown_s: float, clock: Callable[[], float]) -> None:
        self._trip_after = trip_after
        self._first_cooldown = self._cooldown = cooldown_s
        self._clock = clock
        self._failures = 0
        self._open_until: float | None = None
        self._probing = False

    @property
    def wait_s(self) -> float:
        """Seconds until a request may go; infinite while a probe is under way, which will tell."""
        if self._open_until is None:
            return 0.0
        return float("inf") if self._probing else max(self._open_until - self._clock(), 0.0)

    def begin(self) -> None:
        """A request goes, as `wait_s` is 0."""
        self._probing = self._open_until is not None

    def succeeded(self) -> None:
        """The server answered, whatever it said."""
        self._failures = 0
        self._open_until = None
        self._probing = False
        self._cooldown = self._first_cooldown

    def failed(self) -> None:
        """It broke, or could not be reached."""
        self._failures += 1
        if self._open_until is not None:  # this was the probe, or began before the breaker opened
            if self._probing:
                self._open()
        elif self._failures >= self._trip_after:
            self._open()

    def abandoned(self) -> None:
        """The request ended without telling anything of the server."""
        self._probing = False

    def _open(self) -> None:
        self._open_until = self._clock() + self._cooldown
        self._cooldown = min(2 * self._cooldown, LONGEST_COOLDOWN_S)
        self._probing = False
