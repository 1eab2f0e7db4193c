"""Every `PENSTOCK_*` variable of the environment, read and checked in one place.

Each is read when it is asked for, so that a program may still set it after the import.
"""

from __future__ import annotations

import os

from penstock.errors import ConfigError


def engine_cls() -> str | None:
    """`PENSTOCK_ENGINE_CLS`: import path of a class that stands in for every model's engine; None
    if unset.
    """
    return os.environ.get("PENSTOCK_ENGINE_CLS") or None


def cache_dir() -> str:
    """`PENSTOCK_CACHE_DIR`: where downloads and conversions are kept; default
    `~/.cache/penstock`.
    """
    return os.path.expanduser(os.environ.get("PENSTOCK_CACHE_DIR") or "~/.cache/penstock")


def adapter_cache_bytes() -> int:
    """`PENSTOCK_ADAPTER_CACHE_MB`: how much local copies of adapters may take together, in MiB;
    default 10240.
    """
    value = os.environ.get("PENSTOCK_ADAPTER_CACHE_MB") or "10240"
    if not value.isascii() or not value.isdecimal():
        raise ConfigError(
            f"must be a whole number, not '{value}'", field="PENSTOCK_ADAPTER_CACHE_MB", value=value
        )
    return int(value) << 20


def state_dir() -> str:
    """`PENSTOCK_STATE_DIR`: where jobs with an output at a URL keep their state; default `jobs` in
    `cache_dir()`.
    """
    return os.path.expanduser(
        os.environ.get("PENSTOCK_STATE_DIR") or os.path.join(cache_dir(), "jobs")
    )


def api_keys() -> str:
    """`PENSTOCK_API_KEYS`: keys that requests must carry, separated by commas; default none."""
    return os.environ.get("PENSTOCK_API_KEYS", "")


def admin_keys() -> str:
    """`PENSTOCK_ADMIN_KEYS`: keys of the control routes, separated by commas; default none."""
    return os.environ.get("PENSTOCK_ADMIN_KEYS", "")


def debug() -> bool:
    """`PENSTOCK_DEBUG`: 1 lets errors of the command line show where they arose; default 0."""
    return _flag("PENSTOCK_DEBUG")


def _flag(name: str) -> bool:
    value = os.environ.get(name) or "0"
    if value not in ("0", "1"):
        raise ConfigError(f"must be 0 or 1, not '{value}'", field=name, value=value)
    return value == "1"
