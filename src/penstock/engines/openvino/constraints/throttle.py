"""Throttles a process while requests are served: it runs in short turns, for a small part of the
time.

A low priority is not enough: a process at idle priority on a neighbouring core still slows the
engine by more than half. No single request notices turns of a millisecond.
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
SERVING_SECONDS = 0.25
"""Requests count as being served for so long after the last one: others follow soon."""
AT_ONCE_SHARE, AT_ONCE_SECONDS = 0.01, 0.1
"""Constraints are compiled without pauses for this share of the time while requests are served, and
at most so many seconds at a stretch: enough for nearly all, and fewer than one request in twenty
notices.
"""
_CAN_STOP = sys.platform == "linux"
"""On Linux a stopped child ends with its parent; elsewhere it would outlive a killed parent."""


class Throttle:
    """The throttle of one process. `pid` returns its id, `serving` whether the engine serves."""

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
        """Let the process run for `first` seconds, then in turns. `hurry` shortens the pauses."""
        self.end()
        loop = asyncio.get_running_loop()
        self._pause_seconds = SHORT_PAUSE_SECONDS if hurry else PAUSE_SECONDS
        self._since, self._ran = loop.time(), 0.0
        if _CAN_STOP:
            self._timer = loop.call_later(first, self._pause)

    def end(self) -> None:
        """Let the process run freely: its work is done, or it is about to end."""
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
    """A token bucket of seconds: it refills by `share` of the time that passes, up to `most`."""

    def __init__(self, share: float = AT_ONCE_SHARE, most: float = AT_ONCE_SECONDS) -> None:
        self._share = share
        self._most = most
        self._left = most
        self._at = 0.0

    def left(self, now: float) -> float:
        """Seconds in the bucket; negative after an overdraft."""
        self._left = min(self._most, self._left + self._share * (now - self._at))
        self._at = now
        return self._left

    def use(self, seconds: float, now: float) -> None:
        """Take seconds out. The overdraft counts up to twice `most`."""
        self._left = max(self.left(now) - seconds, -2 * self._most)
