"""Local copies of adapters, each under the digest of its content, within a size limit.

Several processes may share the folder. An entry appears atomically, and stays while in recent use.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from penstock import private_files

KEEP_S = 3600.0
"""An adapter in use within this time is never evicted: an engine may read it again."""
_ARRIVING, _LEAVING = ".arriving-", ".leaving-"


class AdapterCache:
    """A folder of adapters. Beyond `max_bytes` in total it evicts the least recently used."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self._max_bytes = max_bytes

    def take_in(self, fs: Any, files: Iterable[str]) -> tuple[str, str]:
        """Copy an adapter's files from an fsspec file system. Returns the digest and
        the local directory.
        """
        private_files.make_folder(self.folder)
        arriving = tempfile.mkdtemp(prefix=_ARRIVING, dir=self.folder)
        try:
            content = hashlib.sha256()
            for path in files:
                name = path.rpartition("/")[2]
                copy = Path(arriving, name)
                fs.get_file(path, str(copy))
                copy.chmod(0o600)
                with copy.open("rb") as file:
                    content.update(f"{name}\0{copy.stat().st_size}\0".encode())
                    content.update(hashlib.file_digest(file, "sha256").digest())
            digest = content.hexdigest()[:16]
            home = self.folder / digest
            if not self.touch(str(home)):
                try:
                    os.rename(arriving, home)
                except OSError:
                    if not home.is_dir():  # else another process was faster
                        raise
        finally:
            shutil.rmtree(arriving, ignore_errors=True)
        self.clean()
        return digest, str(home)

    def touch(self, path: str) -> bool:
        """Mark an adapter as used. Returns whether it exists."""
        try:
            os.utime(path)
        except OSError:
            return False
        return True

    def clean(self) -> None:
        """Evict old adapters beyond the limit, and remove unfinished copies of killed processes."""
        now = time.time()
        adapters: list[tuple[float, int, Path]] = []
        for entry in list(self.folder.iterdir()):
            with contextlib.suppress(OSError):  # another process may clean at the same time
                used = entry.stat().st_mtime
                if not entry.name.startswith((_ARRIVING, _LEAVING)):
                    adapters.append(
                        (used, sum(file.stat().st_size for file in entry.iterdir()), entry)
                    )
                elif now - used > KEEP_S:
                    shutil.rmtree(entry, ignore_errors=True)
        excess = sum(size for _, size, _ in adapters) - self._max_bytes
        for used, size, entry in sorted(adapters):
            if excess <= 0 or now - used <= KEEP_S:
                return
            with contextlib.suppress(OSError):
                leaving = tempfile.mkdtemp(prefix=_LEAVING, dir=self.folder)
                os.rename(entry, Path(leaving, entry.name))  # so that nobody ever sees half of it
                shutil.rmtree(leaving, ignore_errors=True)
                excess -= size
