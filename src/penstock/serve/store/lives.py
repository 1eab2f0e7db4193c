"""Which of the servers that share a file still live."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from uuid import uuid4

from penstock import private_files


class Lives:
    """Each server holds a lock on a small file of its own beside `path`; the kernel frees it when
    the server ends, however it ends.
    """

    def __init__(self, path: Path) -> None:
        self.own = uuid4().hex
        self._path = path
        self._descriptor: int | None = None

    def hold(self) -> str:
        """Take the own lock, if not yet held. Returns the name of this server."""
        if self._descriptor is None:
            self._descriptor = private_files.opener(
                str(self._file(self.own)), os.O_RDWR | os.O_CREAT
            )
            _lock(self._descriptor)
        return self.own

    def lives(self, server: str) -> bool:
        """Whether a server lives. Removes the file of a dead one."""
        if server == self.own:
            return True
        file = self._file(server)
        try:
            descriptor = os.open(file, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            if not _lock(descriptor):
                return True
            file.unlink(missing_ok=True)
            return False
        finally:
            os.close(descriptor)

    def close(self) -> None:
        if self._descriptor is not None:
            self._file(self.own).unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None

    def _file(self, server: str) -> Path:
        return self._path.with_name(f"{self._path.name}-server-{server}")


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
