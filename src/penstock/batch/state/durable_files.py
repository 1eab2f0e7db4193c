"""Files that are whole at any moment, and on disk when a call returns."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from penstock import private_files
from penstock.errors import OutputError


def replace_file(path: Path, data: bytes, write: Callable[[int, bytes], int] = os.write) -> None:
    """Write a whole file so that at any moment either the old or the new one is there. Raises
    `OutputError`.
    """
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
    """Write all of `data`, however often `write` must be called. Raises `OutputError`."""
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


def guarded(call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call of the file system returns. Raises `OutputError` in the place of `OSError`."""
    try:
        return call(*arguments)
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        raise OutputError(
            f"the journal cannot be read or written: {error.strerror or error}{place}"
        ) from error
