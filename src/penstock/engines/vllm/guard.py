"""Sees to it that an engine's processes do not outlive this one, whatever happens to it, and leave
nothing behind.

vLLM's engine core does not notice that its parent was killed. So a small process of its own,
started before them and in a session of its own, waits for the parent's end and then ends what
carries the engine's mark in its environment. This file is also that process's program: `python -I
-S guard.py MARK PARENT FOLDER`. It uses nothing but the standard library, and of that little, since
it is there as long as the engine.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from multiprocessing import resource_tracker

MARK = "PENSTOCK_ENGINE_MARK"
"""The environment variable that the processes of an engine are known by."""

SHARED_MEMORY = b"/dev/shm/"
_LOOK_AGAIN_SECONDS = 0.02


class Guard:
    """Stands by for one engine's processes. `folder` is removed with them."""

    def __init__(self, mark: str, folder: str) -> None:
        self._mark = mark
        self._folder = folder
        self._shared_memory: set[str] = set()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, mark, str(os.getpid()), folder],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C is not meant for it
        )

    def note_shared_memory(self) -> None:
        """Remember what the engine's processes hold, for when they end before they can be asked."""
        self._shared_memory = shared_memory_of(marked(self._mark))

    def end(self) -> None:
        """End what is left of the engine, and the guard too. Harmless when repeated."""
        left = self._shared_memory | end_marked(self._mark)
        # What is this process's own it still uses.
        for file in left - shared_memory_of([os.getpid()]):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file)
                _forget(os.path.basename(file))
        shutil.rmtree(self._folder, ignore_errors=True)
        self._process.kill()
        self._process.wait()


def end_marked(mark: str) -> set[str]:
    """Kill all processes that carry the mark. Gives the shared memory that they had."""
    files: set[str] = set()
    while victims := marked(mark):
        files |= shared_memory_of(victims)
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_LOOK_AGAIN_SECONDS)
    return files


def marked(mark: str) -> list[int]:
    """Ids of the living processes that carry the mark."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and wanted in _read(f"/proc/{name}/environ").split(b"\0"):
            found.append(int(name))
    return found


def shared_memory_of(pids: Iterable[int]) -> set[str]:
    """Paths of the shared memory that processes have mapped."""
    # By inode: a semaphore is mapped under a name that is gone by the time it has its own.
    held = set()
    for pid in pids:
        for line in _read(f"/proc/{pid}/maps").splitlines():
            if SHARED_MEMORY in line:
                held.add(int(line.split()[4]))
    with os.scandir(SHARED_MEMORY) as entries:
        return {os.fsdecode(entry.path) for entry in entries if entry.inode() in held}


def _forget(name: str) -> None:
    """Tell Python's tracker that the file is gone, or it reports a leak when this process ends."""
    if name.startswith("sem."):
        resource_tracker.unregister(f"/{name.removeprefix('sem.')}", "semaphore")
    else:
        resource_tracker.unregister(f"/{name}", "shared_memory")


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:  # it has ended, or is not ours
        return b""


def main(mark: str, parent: int, folder: str) -> None:
    """Wait for the parent's end, then clean up."""
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(parent)
        # Else it ended before we looked, and the number may be another's.
        if os.getppid() == parent:
            select.select([handle], [], [])
    for file in end_marked(mark):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
