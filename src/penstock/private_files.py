"""Files and folders for this user alone, whatever the umask: they hold prompts and answers."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path


def opener(path: str | os.PathLike[str], flags: int) -> int:
    """Open a file, as `os.open` does; a new file gets mode 0600. For `open(opener=...)`."""
    descriptor = os.open(path, flags, 0o600)
    if flags & os.O_CREAT:
        _set_mode(descriptor, 0o600)
    return descriptor


def lock(descriptor: int, *, wait: bool = False) -> bool:
    """Lock an open file for this process, as `flock` does: the kernel frees the lock when the
    process ends, however it ends. Returns False if another process holds it and this one does not
    `wait`. Raises `OSError`, which says what to do where the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
            raise
        raise OSError(
            error.errno,
            f"this file system has no locks ({error.strerror}), so two processes could use one"
            " file at once: choose a folder on another one",
        ) from error
    return True


def replace(path: Path, data: bytes) -> None:
    """Write a whole file: at any moment the old or the new one is there. It is not forced to disk:
    a power cut may lose it. Raises `OSError`.
    """
    made = path.with_name(f"{path.name}.tmp")
    with open(made, "wb", opener=opener) as file:
        file.write(data)
    os.replace(made, path)


def make_folder(path: Path) -> bool:
    """Make a folder with mode 0700, and its missing parents. Returns False for an existing folder,
    whose mode stays.
    """
    if not path.parent.exists():
        make_folder(path.parent)
    try:
        path.mkdir(0o700)
    except FileExistsError:
        if not path.is_dir():
            raise
        return False
    _set_mode(path, 0o700)  # the umask may have removed bits
    return True


def close_file(path: Path) -> None:
    """Give a file of this user mode 0600."""
    _set_mode(path, 0o600)


def close_to_others(path: Path) -> None:
    """Give an existing folder mode 0700. Raises `PermissionError` if another user owns it."""
    found = path.stat()
    if found.st_uid != os.geteuid() and os.geteuid() != 0:
        raise PermissionError(
            f"it belongs to another user (number {found.st_uid}), who could read or change what is"
            " in it"
        )
    if found.st_mode & 0o777 != 0o700:
        _set_mode(path, 0o700)


def open_to_usual(path: Path, folder: Path) -> None:
    """Give a file, or a directory and the files in it, the mode that the umask gives new ones. No
    thread-safe call returns the umask, so this makes a file in `folder`.
    """
    probe = folder / "mode.tmp"
    probe.unlink(missing_ok=True)
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    mode = os.fstat(descriptor).st_mode & 0o777
    os.close(descriptor)
    probe.unlink(missing_ok=True)
    for file in path.iterdir() if path.is_dir() else [path]:
        _set_mode(file, mode)
    if path.is_dir():
        _set_mode(path, mode | (mode & 0o444) >> 2)


def _set_mode(path: Path | int, mode: int) -> None:
    try:
        os.chmod(path, mode)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS):
            raise  # otherwise the file system has no modes
