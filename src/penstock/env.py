"""Every `PENSTOCK_*` variable of the environment, read and checked in one place.

Each is read when it is asked for, so that a program may still set it after the import.
"""

from __future__ import annotations

import os


def engine_cls() -> str | None:
    """`PENSTOCK_ENGINE_CLS`: import path of a class that stands in for every model's engine; None if unset."""
    return os.environ.get("PENSTOCK_ENGINE_CLS") or None


def cache_dir() -> str:
    """`PENSTOCK_CACHE_DIR`: where downloads and conversions are kept; default `~/.cache/penstock`."""
    return os.path.expanduser(os.environ.get("PENSTOCK_CACHE_DIR") or "~/.cache/penstock")
