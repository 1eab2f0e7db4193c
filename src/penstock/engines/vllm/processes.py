"""How vLLM's processes start, and the guard that ends them with this process.

vLLM's engine core does not notice that its parent was killed. So a small process, the guard, starts
before the engine's processes, in a session of its own. It waits for the parent's end and then kills
all processes that carry the engine's mark in their environment. This file is also the guard's
program: `python -I -S processes.py MARK PARENT FOLDER`. It imports little, and only from the
standard library, because the guard lives as long as the engine.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker

MARK = "PENSTOCK_ENGINE_MARK"
"""The environment variable that marks the processes of an engine."""

SHARED_MEMORY = b"/dev/shm/"
_LOOK_AGAIN_SECONDS = 0.02
_starting = threading.Lock()


@contextmanager
def processes_start(
    mark: str, folder: str, environment: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Processes started inside carry `mark`, keep their sockets in `folder`, have the variables of
    `environment`, ignore Ctrl-C and SIGHUP, and do not import the user's script, which needs no
    main guard.

    Both go to the whole process group: vLLM would abort requests that this process still wants to
    finish. SIGTERM stays, by which vLLM ends its processes. The context changes the state of this
    process, so one engine starts at a time.
    """
    with _starting:
        # The tracker outlives the engine, so it must not carry the mark.
        resource_tracker.ensure_running()
        given = {**(environment or {}), MARK: mark, "VLLM_RPC_BASE_PATH": folder}
        before = {name: os.environ.get(name) for name in given}
        os.environ.update(given)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        main = sys.modules["__main__"]
        spec, file = getattr(main, "__spec__", None), vars(main).pop("__file__", None)
        main.__spec__ = None
        try:
            yield
        finally:
            main.__spec__ = spec
            if file is not None:
                main.__file__ = file
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


class Guard:
    """The guard of one engine's processes. It removes `folder` with them."""

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
        """Record the shared memory of the engine's processes, in case they die on their own."""
        self._shared_memory = shared_memory_of(marked(self._mark))

    def end(self) -> None:
        """Kill the engine's processes, then the guard. Harmless when repeated."""
        left = self._shared_memory | end_marked(self._mark)
        # This process still uses its own.
        for file in left - shared_memory_of([os.getpid()]):
            with suppress(FileNotFoundError):
                os.unlink(file)
                _forget(os.path.basename(file))
        shutil.rmtree(self._folder, ignore_errors=True)
        self._process.kill()
        self._process.wait()


def end_marked(mark: str) -> set[str]:
    """Kill all processes that carry the mark. Returns the paths of their shared memory."""
    files: set[str] = set()
    while victims := marked(mark):
        files |= shared_memory_of(victims)
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_LOOK_AGAIN_SECONDS)
    return files


def marked(mark: str) -> list[int]:
    """Ids of the living processes that carry the mark."""
    wanted = f"{MARK}={mark}".encode()
    return [
        int(name)
        for name in os.listdir("/proc")
        if name.isdigit() and wanted in _read(f"/proc/{name}/environ").split(b"\0")
    ]


def shared_memory_of(pids: Iterable[int]) -> set[str]:
    """Paths of the shared memory that processes have mapped."""
    # By inode: a semaphore is mapped before it gets its final name.
    held = {
        int(line.split()[4])
        for pid in pids
        for line in _read(f"/proc/{pid}/maps").splitlines()
        if SHARED_MEMORY in line
    }
    with os.scandir(SHARED_MEMORY) as entries:
        return {os.fsdecode(entry.path) for entry in entries if entry.inode() in held}


def _forget(name: str) -> None:
    """Remove a file from Python's tracker, which would report a leak when this process ends."""
    kind = "semaphore" if name.startswith("sem.") else "shared_memory"
    resource_tracker.unregister(f"/{name.removeprefix('sem.')}", kind)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:  # it has ended, or is not ours
        return b""


def main(mark: str, parent: int, folder: str) -> None:
    """Wait for the parent's end, then clean up."""
    with suppress(ProcessLookupError):
        handle = os.pidfd_open(parent)
        # Else it ended before we looked, and the number may be another's.
        if os.getppid() == parent:
            select.select([handle], [], [])
    for file in end_marked(mark):
        with suppress(FileNotFoundError):
            os.unlink(file)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
