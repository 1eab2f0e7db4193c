"""The CPU cores of this machine, divided among engines that run side by side."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

Cores = tuple[int, ...]
"""Numbers of CPUs, as the kernel counts them."""
_CPUS = Path("/sys/devices/system/cpu")


def usable_cores() -> Cores:
    """The CPUs that this process may run on; those of one package, and of one physical core, follow
    each other.
    """
    if not hasattr(os, "sched_getaffinity"):
        return tuple(range(os.cpu_count() or 1))
    return tuple(sorted(os.sched_getaffinity(0), key=_place))


def parted(cores: Cores, count: int) -> list[Cores]:
    """`count` parts that differ by one core at most. Where there are fewer cores than parts, a part
    has one core, which others have too.
    """
    most = len(cores)
    if count >= most:
        return [(cores[number % most],) for number in range(count)]
    return [cores[number * most // count : (number + 1) * most // count] for number in range(count)]


def pin(pid: int, cores: Cores) -> None:
    """Keep a process that has just started, and its later threads, to these cores, where the system
    can.
    """
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):  # it has ended, or its container forbids it
            os.sched_setaffinity(pid, cores)


def _place(cpu: int) -> tuple[int, int, int]:
    about = _CPUS / f"cpu{cpu}" / "topology"
    try:
        package, core = (
            int((about / name).read_text()) for name in ("physical_package_id", "core_id")
        )
    except (OSError, ValueError):
        return 0, cpu, cpu
    return package, core, cpu
