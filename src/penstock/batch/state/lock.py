"""The lock of a job: one process at a time, and the holder notices when it is taken away."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from penstock import private_files
from penstock.errors import JobError, OutputError

FILE = "lock"


class Lock:
    """Held from when it is made until `release`. Raises `JobError` if another process holds it,
    `OSError`.

    The folder itself is locked too, where its file system can: then a removed lock file lets nobody
    in.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._held: list[int] = []
        try:
            self._take(private_files.opener(self._path, os.O_RDWR | os.O_CREAT))
            found = os.fstat(self._held[0])
            self._identity = (found.st_dev, found.st_ino)
            with contextlib.suppress(OSError):  # some network file systems lock no folders
                self._take(os.open(folder, os.O_RDONLY))
            self.check()
        except BaseException:
            self.release()
            raise

    def check(self) -> None:
        """Raises `OutputError` if the lock file is not the one that this process holds any more."""
        try:
            found = os.stat(self._path)
            gone = (found.st_dev, found.st_ino) != self._identity
        except OSError:
            gone = True
        if gone:
            raise OutputError(
                f"{self._path} was removed or replaced while the job ran, so another run may have"
                " taken its place; this one ends here. Start the job again when no other run of it"
                " is under way"
            )

    def release(self) -> None:
        """Let go. Harmless when repeated."""
        for descriptor in self._held:
            os.close(descriptor)
        self._held.clear()

    def _take(self, descriptor: int) -> None:
        self._held.append(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JobError(f"another process is running this job ({self._path.parent})") from None
