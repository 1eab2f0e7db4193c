"""Which files lie in local folders. Links to folders are followed, and each folder is read once."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase

from penstock.errors import InputError

STATE_END = ".penstock"
"""The end of the names of state directories, which jobs keep beside their outputs."""
DELTA_LOG = "_delta_log"


def is_shown(name: str) -> bool:
    """Whether a file or folder is not hidden, by its name."""
    return not name.startswith((".", "_"))


def is_apart(path: str, pattern: str) -> bool:
    """Whether a file is in a folder that holds no data: one that is hidden or a state directory,
    and that `pattern` does not name.
    """
    names = pattern.split("/")
    hidden = [name for name in names if not is_shown(name)]
    return any(
        folder.endswith(STATE_END)
        or not (is_shown(folder) or any(fnmatchcase(folder, name) for name in hidden))
        for folder in set(path.split("/")[:-1]) - set(names)
    )


def walk(directory: str) -> Iterator[str]:
    """The files in a directory and below, without those in folders that hold no data."""
    for folder, names in _folders(directory, "", _raise):
        for name in sorted(names):
            yield os.path.join(folder, name)


def globbed(pattern: str) -> list[str]:
    """The paths that match a glob. Folders that cannot be listed are skipped. `glob.glob` would not
    end if links lead back.
    """
    parts = pattern.split("/")
    if "**" not in parts:
        return glob.glob(pattern)
    place = parts.index("**")
    top, rest = "/".join(parts[:place]), "/".join(parts[place + 1 :] or ["*"])
    tops = filter(os.path.isdir, glob.glob(top) if top else ["/" if place else "."])
    found = dict.fromkeys(
        path.removeprefix("" if top else "./")
        for start in tops
        for folder, _ in _folders(start, pattern, None)
        for path in globbed(f"{glob.escape(folder)}/{rest}")
    )
    return list(found)


def _folders(
    directory: str, pattern: str, onerror: Callable[[OSError], None] | None
) -> Iterator[tuple[str, list[str]]]:
    """The directory and the folders below, each with its files; without folders that hold no data
    and that `pattern` does not name. A folder comes before a link to it.
    """
    known = {os.path.realpath(directory)}
    for folder, folders, names in os.walk(directory, onerror=onerror, followlinks=True):
        yield folder, names
        kept = [n for n in folders if n == DELTA_LOG or not is_apart(f"{n}/", pattern)]
        kept.sort(key=lambda name: (os.path.islink(os.path.join(folder, name)), name))
        folders.clear()
        for name in kept:
            real = os.path.realpath(os.path.join(folder, name))
            if real not in known:
                known.add(real)
                folders.append(name)


def _raise(error: OSError) -> None:
    raise InputError(f"{error.filename}: {error.strerror}") from error
