"""Tells a process that will never go on from one that is slow, starved or stopped."""

from __future__ import annotations

import os

_STATE, _USER_TICKS, _SYSTEM_TICKS = 0, 11, 12
"""Places in /proc/PID/stat behind the name."""


class StuckWatch:
    """Watches one process. Ask it at intervals, while the process should be at work.

    One that waits for the CPU is ready to run, one that computes uses CPU time, one that waits for
    a disk says so. When so many `looks` in a row find all its threads asleep, and none has used any
    time, it waits for what nobody will bring.
    """

    def __init__(self, pid: int, looks: int) -> None:
        self._pid = pid
        self._looks = looks
        self._ticks: int | None = None
        self._alike = 0

    def is_stuck(self) -> bool:
        """Whether it has been asleep all the while, as far as that can be seen here."""
        ticks = _ticks_if_asleep(self._pid)
        self._alike = self._alike + 1 if ticks is not None and ticks == self._ticks else 0
        self._ticks = ticks
        return self._alike >= self._looks

    def forget(self) -> None:
        """It has nothing to do: begin anew."""
        self._ticks = None


def _ticks_if_asleep(pid: int) -> int | None:
    """The CPU time of a process, in the system's ticks, if all its threads sleep; None if not, or
    if nobody knows.
    """
    try:
        total = 0
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/stat", "rb") as file:
                said = file.read().rpartition(b")")[2].split()
            if said[_STATE] != b"S":
                return None
            total += int(said[_USER_TICKS]) + int(said[_SYSTEM_TICKS])
        return total
    except (OSError, IndexError, ValueError):
        return None
