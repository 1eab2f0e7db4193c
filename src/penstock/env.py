"""Settings from the environment, read and checked in one place: Penstock's own variables, and those
of Ray Serve LLM that mean something here. Only `PENSTOCK_API_KEY` is read elsewhere: it is an
option of some commands.

Each call reads the environment, so a program may still set a variable after the import.
"""

from __future__ import annotations

import math
import os

from penstock.errors import ConfigError

CLIENT_KEY = "PENSTOCK_API_KEY"
_OWN = (
    *("PENSTOCK_ENGINE_CLS", "PENSTOCK_CACHE_DIR", "PENSTOCK_ADAPTER_CACHE_MB"),
    *("PENSTOCK_STATE_DIR", "PENSTOCK_API_KEYS", "PENSTOCK_ADMIN_KEYS", "PENSTOCK_DEBUG"),
    CLIENT_KEY,
)
_ALIKE = 0.86
_MOST = 1e10


def misspelt() -> list[tuple[str, str]]:
    """Variables that are almost one of Penstock's, each with that one. Others may be anybody's:
    Kubernetes makes some for a service called penstock.
    """
    unknown = [name for name in os.environ if name.startswith("PENSTOCK_") and name not in _OWN]
    if not unknown:
        return []
    from difflib import get_close_matches  # imported only for a mistake

    found = ((name, get_close_matches(name, _OWN, n=1, cutoff=_ALIKE)) for name in unknown)
    return [(name, near[0]) for name, near in found if near]


def engine_cls() -> tuple[str, str] | None:
    """`PENSTOCK_ENGINE_CLS`, else Ray's `RAYLLM_VLLM_ENGINE_CLS`: the variable, and the import path
    of a class that replaces every engine; or None.
    """
    for name in ("PENSTOCK_ENGINE_CLS", "RAYLLM_VLLM_ENGINE_CLS"):
        if path := os.environ.get(name):
            return name, path
    return None


def cache_dir() -> str:
    """`PENSTOCK_CACHE_DIR`: folder of downloads and conversions; default `~/.cache/penstock`."""
    return os.path.expanduser(os.environ.get("PENSTOCK_CACHE_DIR") or "~/.cache/penstock")


def adapter_cache_bytes() -> int:
    """`PENSTOCK_ADAPTER_CACHE_MB`: size limit of the adapter cache in MiB; default 10240."""
    value = os.environ.get("PENSTOCK_ADAPTER_CACHE_MB") or "10240"
    if not value.isascii() or not value.isdecimal() or len(value) > 12:
        raise ConfigError(
            f"must be a whole number of at most 12 digits, not '{value[:50]}'",
            field="PENSTOCK_ADAPTER_CACHE_MB",
            value=value,
        )
    return int(value) << 20


def state_dir() -> str:
    """`PENSTOCK_STATE_DIR`: folder of the state of jobs whose output is a URL, and of the registry
    of all jobs; default `jobs` in `cache_dir()`.
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


# Ray Serve LLM's
def adapter_timeout_s() -> float | None:
    """`DEFAULT_MULTIPLEX_DOWNLOAD_TIMEOUT_S`: seconds for the download of an adapter; default 30, 0
    for no limit.
    """
    seconds = _number("DEFAULT_MULTIPLEX_DOWNLOAD_TIMEOUT_S", 30.0, least=-_MOST)
    return seconds if seconds and seconds > 0 else None


def adapter_tries() -> int:
    """`DEFAULT_MULTIPLEX_DOWNLOAD_RETRIES`: tries of a download of an adapter; default 3, also
    for 0.
    """
    return int(_number("DEFAULT_MULTIPLEX_DOWNLOAD_RETRIES", 3) or 3)


def start_timeout_s(default: float) -> float:
    """`RAYLLM_ENGINE_START_TIMEOUT_S`: seconds within which an engine must start; `default`
    also for 0.
    """
    return _number("RAYLLM_ENGINE_START_TIMEOUT_S", default) or default


def stream_interval_ms() -> float:
    """`RAYLLM_MODEL_RESPONSE_BATCH_TIMEOUT_MS`: for how long the deltas of a stream are
    collected and sent as one, from the second on; default 0, which holds none.
    """
    return _number("RAYLLM_MODEL_RESPONSE_BATCH_TIMEOUT_MS", 0.0) or 0.0


def health_check_period_s() -> float | None:
    """`RAY_SERVE_LLM_DEFAULT_HEALTH_CHECK_PERIOD_S`; None leaves it to Ray Serve."""
    return _number("RAY_SERVE_LLM_DEFAULT_HEALTH_CHECK_PERIOD_S", None)


def health_check_timeout_s() -> float | None:
    """`RAY_SERVE_LLM_DEFAULT_HEALTH_CHECK_TIMEOUT_S`; None leaves it to Ray Serve."""
    return _number("RAY_SERVE_LLM_DEFAULT_HEALTH_CHECK_TIMEOUT_S", None)


def max_ongoing_requests() -> int | None:
    """`RAY_SERVE_LLM_DEFAULT_MAX_ONGOING_REQUESTS`: of a replica's engine; None for a tenth more
    than its slots.
    """
    return _whole("RAY_SERVE_LLM_DEFAULT_MAX_ONGOING_REQUESTS")


def target_ongoing_requests() -> int | None:
    """`RAY_SERVE_LLM_DEFAULT_MAX_TARGET_ONGOING_REQUESTS`: autoscaling's target for a replica; None
    follows from the engine's slots.
    """
    return _whole("RAY_SERVE_LLM_DEFAULT_MAX_TARGET_ONGOING_REQUESTS")


def _whole(name: str) -> int | None:
    number = _number(name, None)
    return None if number is None else max(1, int(number))


def _number(name: str, default: float | None, least: float = 0.0) -> float | None:
    value = os.environ.get(name)
    if not value:
        return default
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not least <= number <= _MOST:
        raise ConfigError(
            f"must be a number from {least:.0f} to {_MOST:.0f}, not '{value}'",
            field=name,
            value=value,
        )
    return number
