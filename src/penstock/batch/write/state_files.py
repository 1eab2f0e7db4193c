"""The files of a state directory: whole at any moment, on disk when a call returns, checked when
they are read, and locked while a job runs.

A record is a line `["checksum",NUMBER,RECORD]`. Its checksum covers the record, its number, the
file's name and the job's key. So each line shows by itself whether it was changed, and where it
belongs: a repeated or moved line does no harm, a missing line leaves a gap, and a line of another
file or job is ignored. A last line without its line end was cut short by a crash, which is no
damage.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import xxhash

from penstock import private_files
from penstock.errors import JobHeldError, OutputError

T = TypeVar("T")

LOCK_FILE = "lock"
_HEAD = len(b'["0123456789abcdef",')
_BLOCK = 1 << 20

checksum = xxhash.xxh3_64_intdigest
"""The checksum of bytes, with a seed."""


def replace_file(path: Path, data: bytes, write: Callable[[int, bytes], int] = os.write) -> None:
    """Replace a file atomically: either the old or the new one is there. Raises `OutputError`."""
    temporary = path.with_name(path.name + ".tmp")
    descriptor = guarded(private_files.opener, temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        write_all(descriptor, data, write)
        guarded(os.fsync, descriptor)
    finally:
        os.close(descriptor)
    guarded(os.replace, temporary, path)
    sync_folder(path.parent)


def write_all(descriptor: int, data: bytes, write: Callable[[int, bytes], int] = os.write) -> None:
    """Write all of `data`, with as many calls of `write` as it takes. Raises `OutputError`."""
    view = memoryview(data)
    while view:
        view = view[guarded(write, descriptor, view) :]


def to_disk(file: IO[Any]) -> None:
    """Force what was written to an open file to disk. Raises `OSError`."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Force a directory's entries to disk. Raises `OutputError`."""
    descriptor = guarded(os.open, folder, os.O_RDONLY)
    try:
        guarded(os.fsync, descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, or a directory with all it holds."""
    if path.is_dir() and not path.is_symlink():
        import shutil

        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Inside, an `OSError` becomes an `OutputError` that names the file: its own, else `path`."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{error.filename or os.fspath(path)}: {error.strerror or error}"
        ) from error


def guarded(call: Callable[..., T], *arguments: Any) -> T:
    """What a call of the file system returns. Raises `OutputError` in the place of `OSError`."""
    try:
        return call(*arguments)
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        raise OutputError(
            f"the journal cannot be read or written: {error.strerror or error}{place}"
        ) from error


class Records:
    """The records of one file. `seal` continues after the last record that `read` found."""

    def __init__(self, path: Path, key: int) -> None:
        self.path = path
        self.lost = 0
        self._next = 0
        self._seed = checksum(os.fsencode(path.name), key)
        self._whole = 0

    def seal(self, record: bytes) -> bytes:
        """The line of the next record."""
        number = self._next
        self._next += 1
        return self._line(number, record)

    def read(self) -> list[bytes]:
        """The sound records in the order in which they were written. `lost` counts the records that
        are damaged or missing.

        Raises `OutputError` if the file cannot be read.
        """
        found: dict[int, bytes] = {}
        damaged = 0
        self._whole = 0
        for line in guarded(self._lines):
            self._whole += len(line)
            number, record = self._parts(line)
            if record is None:
                damaged += 1
            else:
                found[number] = record
        self._next = max(found, default=-1) + 1
        self.lost = max(damaged, self._next - len(found))
        return [found[number] for number in sorted(found)]

    def sound(self, line: bytes) -> bytes | None:
        """The record of one line, unless it is damaged or of another file."""
        return self._parts(line)[1]

    @staticmethod
    def body(line: bytes) -> bytes | None:
        """The record of one line, unchecked; None if the line has no record."""
        _, comma, rest = line[_HEAD:].partition(b",")
        return rest[:-2] if comma and rest.endswith(b"]\n") else None

    def cut(self) -> None:
        """Cut off a torn last line, so that what is appended starts a new one."""
        if self._whole < guarded(os.path.getsize, self.path):
            guarded(os.truncate, self.path, self._whole)

    def _line(self, number: int, record: bytes) -> bytes:
        return b'["%016x",%d,%b]\n' % (checksum(record, self._seed ^ number), number, record)

    def _parts(self, line: bytes) -> tuple[int, bytes | None]:
        """The number of a line, and its record: None if it is damaged or of another file."""
        digits, _, rest = line[_HEAD:].partition(b",")
        number = int(digits) if digits.isdigit() and len(digits) < 19 else -1
        record = rest[:-2]
        return number, record if number >= 0 and line == self._line(number, record) else None

    def _lines(self) -> list[bytes]:
        with open(self.path, "rb") as file:
            lines = file.readlines()
        if lines and not lines[-1].endswith(b"\n"):
            del lines[-1]
        return lines


def checksum_of(path: Path) -> int:
    """The checksum of a file's content, or of the names and content of a directory's Parquet files.
    Raises `OSError`.
    """
    if path.is_dir():
        total = 0
        for file in sorted(path.glob("*.parquet")):
            total = checksum(os.fsencode(file.name), total ^ checksum_of(file))
        return total
    digest = xxhash.xxh3_64()
    with open(path, "rb", buffering=0) as content:
        block = memoryview(bytearray(_BLOCK))
        while size := content.readinto(block):
            digest.update(block[:size])
    return digest.intdigest()


class Lock:
    """The lock of a state directory, held from its construction until `release`. Raises
    `JobHeldError` if another process holds it, and `OSError`.

    The folder itself is locked too, if its file system can do that: then another process cannot
    take the lock by removing the lock file.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_FILE
        self._held: list[int] = []
        try:
            self._take(private_files.opener(self._path, os.O_RDWR | os.O_CREAT))
            found = os.fstat(self._held[0])
            self._identity = (found.st_dev, found.st_ino)
            with contextlib.suppress(OSError):  # some network file systems cannot lock folders
                self._take(os.open(folder, os.O_RDONLY))
            self.check()
        except BaseException:
            self.release()
            raise

    def check(self) -> None:
        """Raises `OutputError` if the lock file is no longer the one that this process has
        locked.
        """
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
        """Release the lock. A second call does nothing."""
        for descriptor in self._held:
            os.close(descriptor)
        self._held.clear()

    def _take(self, descriptor: int) -> None:
        self._held.append(descriptor)
        if not private_files.lock(descriptor):
            raise JobHeldError(f"another process is running this job ({self._path.parent})")
