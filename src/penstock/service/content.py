"""The content of files, by their ids: in a folder, or at an fsspec URL. Names of clients never
become paths.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import shutil
import sqlite3
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import Any

from penstock import private_files
from penstock.batch.read.files import filesystem
from penstock.errors import NotStoredError, PenstockError, UnavailableError, class_and_text

LEFT_S = 86400.0
_PIECE = 1 << 18


class Content:
    """The files below `place`, a local folder or a URL. Methods raise `UnavailableError` if the
    place cannot be reached or is full, and `NotStoredError` for an id without content.
    """

    def __init__(self, place: Path | str) -> None:
        self._folder = place if isinstance(place, Path) else None
        self._fs: Any = None
        self._root = ""
        if self._folder is not None:
            private_files.make_folder(self._folder)
        else:
            self._fs, self._root = filesystem(str(place).rstrip("/"))

    async def put(self, id: str, made: Path) -> None:
        """Store a copy of a local file. Content that was stored under this id is replaced."""
        await asyncio.to_thread(self._put, id, made)

    async def fetch(self, id: str, to: Path) -> None:
        """Write the stored content to a local file. Later changes do not reach that file."""
        await asyncio.to_thread(self._fetch, id, to)

    async def join(self, ids: Sequence[str], to: Path) -> str:
        """Write the contents of these ids, in their order, to one local file. Returns its MD5."""
        return await asyncio.to_thread(self._join, ids, to)

    async def delete(self, id: str) -> None:
        await asyncio.to_thread(self._delete, id)

    async def pieces(self, id: str, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """The bytes from `start` up to and without `end`, in pieces. The file is open when this
        returns, so that a response does not begin and then fail.
        """
        file = await asyncio.to_thread(self._open, id, start)
        return self._pieces(file, end - start)

    async def _pieces(self, file: Any, left: int) -> AsyncGenerator[bytes, None]:
        try:
            while left > 0:
                piece = await asyncio.to_thread(self._read, file, min(_PIECE, left))
                if not piece:
                    break
                left -= len(piece)
                yield piece
        finally:
            await asyncio.to_thread(file.close)

    def _put(self, id: str, made: Path) -> None:
        with _failing():
            if self._folder is None:
                self._fs.makedirs(self._root, exist_ok=True)
                self._fs.put_file(str(made), f"{self._root}/{id}")
                return
            place_copy(made, self._folder / id)

    def _fetch(self, id: str, to: Path) -> None:
        with _failing(id):
            if self._folder is not None:
                place_copy(self._folder / id, to)
                return
            waiting = to.with_name(f"{to.name}.tmp")  # a download that breaks off leaves a part
            self._fs.get_file(f"{self._root}/{id}", str(waiting))
            os.replace(waiting, to)

    def _join(self, ids: Sequence[str], to: Path) -> str:
        digest = hashlib.md5(usedforsecurity=False)
        with _failing(), open(to, "wb", opener=private_files.opener) as joined:
            for id in ids:
                with self._open(id, 0) as part:
                    while piece := self._read(part, _PIECE):
                        digest.update(piece)
                        joined.write(piece)
        return digest.hexdigest()

    def _delete(self, id: str) -> None:
        with _failing():
            if self._folder is not None:
                (self._folder / id).unlink(missing_ok=True)
                return
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(f"{self._root}/{id}")

    def _open(self, id: str, start: int) -> Any:
        with _failing(id):
            if self._folder is not None:
                file: Any = (self._folder / id).open("rb")
            else:
                file = self._fs.open(f"{self._root}/{id}", "rb")
            file.seek(start)
            return file

    def _read(self, file: Any, size: int) -> bytes:
        with _failing():
            return bytes(file.read(size))


def place_copy(made: Path, to: Path) -> None:
    """Put a file's content at another path, whole or not at all. If the file system has links, the
    content is not copied.
    """
    waiting = to.with_name(f"{to.name}.tmp")
    waiting.unlink(missing_ok=True)
    try:
        os.link(made, waiting)
    except OSError:
        with open(made, "rb") as source, open(waiting, "wb", opener=private_files.opener) as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
            copy.flush()
            os.fsync(copy.fileno())
    private_files.close_file(waiting)  # a job's output has the mode that the umask gives
    os.replace(waiting, to)
    waiting.unlink(missing_ok=True)  # two names of one file: `replace` then keeps both


def left_over(folder: Path) -> list[Path]:
    """The files of a folder that have not been written to for a day."""
    before = time.time() - LEFT_S
    found = []
    for path in list(folder.iterdir()):
        with contextlib.suppress(FileNotFoundError):  # another server removes it
            if all(one.lstat().st_mtime < before for one in (path, *path.rglob("*"))):
                found.append(path)
    return found


@contextlib.contextmanager
def _failing(read: str | None = None) -> Iterator[None]:
    """`read` is the id whose content is read, if any."""
    try:
        yield
    except PenstockError:
        raise
    except Exception as error:  # each file system has errors of its own
        if read is not None and isinstance(error, FileNotFoundError):
            raise NotStoredError(f"the content of '{read}' is gone", param="file_id") from error
        raise unavailable(error) from error


def unavailable(error: Exception) -> UnavailableError:
    """The error for a disk or a store that does not work now. A full one has its own status."""
    why = str(error) if isinstance(error, PenstockError) else class_and_text(error)
    told = UnavailableError(f"files cannot be stored or read: {why}")
    if is_full(error):
        told.status = 507
    return told


def is_full(error: BaseException) -> bool:
    """Whether a disk has no room: the error says so, or one that caused it."""
    return any(
        (isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT))
        or getattr(one, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        for one in _causes(error)
    )


def is_passing(error: BaseException) -> bool:
    """Whether the error may pass in a moment: too many files are open, memory is short, or a file
    server has restarted.
    """
    return any(isinstance(one, OSError) and one.errno in _PASSING for one in _causes(error))


_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
