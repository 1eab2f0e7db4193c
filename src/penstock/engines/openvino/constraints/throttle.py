"""Holds a process back while requests are being served: it runs for a small part of the time, in
short turns.

A low priority is not enough: a process on a neighbouring core slows the engine by more than half,
even where it runs only when nothing else wants to. Turns of a millisecond are too short to be felt
by a single request.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable

TURN_SECONDS = 0.001
PAUSE_SECONDS, SHORT_PAUSE_SECONDS = 0.010, 0.003
_CAN_STOP = sys.platform == "linux"
"""There a stopped child ends with its parent; elsewhere it would outlive a killed one."""


class Throttle:
    """One process's. `serving`: whether requests are being served."""

    def __init__(self, pid: Callable[[], int | None], serving: Callable[[], bool]) -> None:
        self._pid = pid
        self._serving = serving
        self._pause_seconds = PAUSE_SECONDS
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self._since = 0.0
        self._ran = 0.0

    @property
    def ran(self) -> float:
        """Seconds for which the process was allowed to run since `begin`."""
        return self._ran + (
            0.0 if self._stopped else asyncio.get_running_loop().time() - self._since
        )

    def begin(self, first: float, hurry: bool = False) -> None:
        """The process has work. It runs for `first` seconds, then in turns; `hurry`: with short
        pauses between.
        """
        self.end()
        loop = asyncio.get_running_loop()
        self._pause_seconds = SHORT_PAUSE_SECONDS if hurry else PAUSE_SECONDS
        self._since, self._ran = loop.time(), 0.0
        if _CAN_STOP:
            self._timer = loop.call_later(first, self._pause)

    def end(self) -> None:
        """The process has done its work, or is to end."""
        if self._timer is not None:
            self._timer.cancel()
        self._go_on()

    def _pause(self) -> None:
        loop = asyncio.get_running_loop()
        if self._serving() and not self._stopped:
            self._ran += loop.time() - self._since
            self._stopped = True
            self._signal(signal.SIGSTOP)
        self._timer = loop.call_later(self._pause_seconds, self._resume)

    def _resume(self) -> None:
        self._go_on()
        self._timer = asyncio.get_running_loop().call_later(TURN_SECONDS, self._pause)

    def _go_on(self) -> None:
        if self._stopped:
            self._stopped = False
            self._since = asyncio.get_running_loop().time()
            self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        pid = self._pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


class Allowance:
    """Seconds that may be used at once: they come back as a part of the time, `share`, up to
    `most`.
    """

    def __init__(self, share: float, most: float) -> None:
        self._share = share
        self._most = most
        self._left = most
        self._at = 0.0

    def left(self, now: float) -> float:
        """What there is; below zero what has been used in advance."""
        self._left = min(self._most, self._left + self._share * (now - self._at))
        self._at = now
        return self._left

    def use(self, seconds: float, now: float) -> None:
        """Take so much. What is used in advance counts up to twice `most`."""
        self._left = max(self.left(now) - seconds, -2 * self._most)
