"""Checks whether a path can be written, before the work whose result goes there."""

from __future__ import annotations

import os

from penstock.errors import ConfigError


def check_place(path: str, field: str, *, replaced: bool = False, directory: bool = False) -> None:
    """Raise `ConfigError` for the option `field` if the local `path` cannot be written. `replaced`:
    a new file will replace an old one at the path; else the old one is written over. `directory`:
    the path may be a directory.
    """
    folder = os.path.dirname(path.rstrip("/")) or "."
    if not directory and os.path.isdir(path):
        why = "it is a directory"
    elif not os.path.isdir(folder):
        why = f"there is no directory {folder}"
    else:
        written = folder if replaced or not os.path.exists(path) else path
        if os.access(written, os.W_OK):
            return
        closed = os.statvfs(folder).f_flag & os.ST_RDONLY
        why = f"{folder} is read-only" if closed else f"no permission to write in {written}"
    raise ConfigError(f"{path} cannot be written: {why}", field=field, value=path)
