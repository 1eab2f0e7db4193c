"""Every `PENSTOCK_*` variable of the environment, read and checked in one place.

Each call reads the environment, so a program may still set a variable after the import.
"""

from __future__ import annotations

import os

from penstock.errors import ConfigError


def engine_cls() -> str | None:
    """`PENSTOCK_ENGINE_CLS`: import path of a class that replaces every engine, or None."""
    return os.environ.get("PENSTOCK_ENGINE_CLS") or None


def cache_dir() -> str:
    """`PENSTOCK_CACHE_DIR`: folder of downloads and conversions; default `~/.cache/penstock`."""
    return os.path.expanduser(os.environ.get("PENSTOCK_CACHE_DIR") or "~/.cache/penstock")


def adapter_cache_bytes() -> int:
    """`PENSTOCK_ADAPTER_CACHE_MB`: size limit of the adapter cache in MiB; default 10240."""
    value = os.environ.get("PENSTOCK_ADAPTER_CACHE_MB") or "10240"
    if not value.isascii() or not value.isdecimal():
        raise ConfigError(
            f"must be a whole number, not '{value}'", field="PENSTOCK_ADAPTER_CACHE_MB", value=value
        )
    return int(value) << 20


def state_dir() -> str:
    """`PENSTOCK_STATE_DIR`: folder of the state of jobs whose output is a URL; default
    `jobs` in `cache_dir()`.
    """
    return os.path.expanduser(
        os.environ.get("PENSTOCK_STATE_DIR") or os.path.join(cache_dir(), "jobs")
    )


def api_keys() -> str:
    """`PENSTOCK_API_KEYS`: keys of clients, separated by commas; empty by default."""
    return os.environ.get("PENSTOCK_API_KEYS", "")


def admin_keys() -> str:
    """`PENSTOCK_ADMIN_KEYS`: keys of the control routes, separated by commas; empty by default."""
    return os.environ.get("PENSTOCK_ADMIN_KEYS", "")


def debug() -> bool:
    """`PENSTOCK_DEBUG`: 1 shows the traceback of errors on the command line; default 0."""
    value = os.environ.get("PENSTOCK_DEBUG") or "0"
    if value not in ("0", "1"):
        raise ConfigError(f"must be 0 or 1, not '{value}'", field="PENSTOCK_DEBUG", value=value)
    return value == "1"
