"""Puts a finished output in its place. What is not the job's own is never written over."""

from __future__ import annotations

import errno
import glob
import os
import shutil
from pathlib import Path

from penstock import private_files
from penstock.batch.state.durable_files import sync_folder
from penstock.batch.state.manifest import Stamp
from penstock.errors import OutputError, printable


def stamp_of(path: str | Path) -> Stamp:
    """What a local file, or the Parquet files of a directory, are like. Empty if there are none.
    Raises `OSError`.
    """
    if os.path.isdir(path):
        files = sorted(glob.glob(os.path.join(glob.escape(os.fspath(path)), "*.parquet")))
        return [[printable(os.path.basename(file)), *_stat(file)] for file in files]
    return [["", *_stat(path)]] if os.path.lexists(path) else []


def is_own(path: str | Path, known: Stamp | None) -> bool:
    """Whether nothing is at `path` but what `known` lists. An empty directory is nothing. Raises
    `OSError`.
    """
    if known is not None:
        return all(entry in known for entry in stamp_of(path))
    return not os.path.lexists(path) or (os.path.isdir(path) and not os.listdir(path))


def place(made: Path, target: str, known: Stamp | None) -> None:
    """Move what was made to its place.

    Raises `OutputError` if there is something that `known` does not list, `OSError`.
    """
    target = target.rstrip("/")
    if not is_own(target, known):
        raise in_the_way(target)
    private_files.open_to_usual(made, made.parent)
    if not made.is_dir():
        _place_file(made, target, known)
        sync_folder(Path(target).absolute().parent)
        return
    if not os.path.lexists(target):
        sync_folder(made)
        try:
            # Fails where a file or a directory with files has come meanwhile.
            os.rename(made, target)
        except (FileExistsError, NotADirectoryError):
            raise in_the_way(target) from None
        except OSError as error:
            if not is_own(target, known):
                raise in_the_way(target) from None
            if error.errno != errno.EXDEV:
                raise
            os.mkdir(target)  # on another file system: file by file
        else:
            sync_folder(Path(target).absolute().parent)
            return
    names = sorted(path.name for path in made.iterdir())
    for name in names:
        _place_file(made / name, os.path.join(target, name), known, name)
    for path in Path(target).glob("part-*.parquet"):
        if path.name not in names and [path.name, *_stat(path)] in (known or ()):
            path.unlink()
    made.rmdir()
    sync_folder(Path(target))


def in_the_way(path: str) -> OutputError:
    """The error of an output that somebody else has written in the meantime."""
    return OutputError(
        f"{path} has appeared or was changed since the job began, and is not overwritten. Move it"
        " away, and start the job again: what was done is kept. Or discard both with --fresh"
    )


def _place_file(made: Path, target: str, known: Stamp | None, name: str = "") -> None:
    try:
        os.link(made, target)  # never over what is there
    except OSError:  # there is something, or this file system has no links, or it is another one
        if os.path.lexists(target) and (known is None or [name, *_stat(target)] not in known):
            raise in_the_way(target) from None
        _replace(made, target)
    else:
        made.unlink()


def _replace(made: Path, target: str) -> None:
    try:
        os.replace(made, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy = Path(f"{target}.penstock-tmp")  # on the target's file system, with the same times
        copy.unlink(missing_ok=True)
        shutil.copy2(made, copy)
        with open(copy, "rb") as file:
            os.fsync(file.fileno())
        os.replace(copy, target)
        made.unlink()


def _stat(path: str | Path) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_size, found.st_mtime_ns
