"""NIXL, which moves KV caches between engines. Only this module names it, or RIXL, its
counterpart on ROCm.

    from penstock.kv import nixl

    if nixl.NixlWrapper is not None: ...

Importing this module loads nothing. The first use of an attribute loads the platform's package; the
attribute is None if that fails. The outcome is logged once.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from contextlib import suppress
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from penstock.errors import EngineStartError, MissingExtraError

if TYPE_CHECKING:
    NixlWrapper: Any
    """The agent's class, under vLLM's name for it; None without a package."""
    nixl_agent_config: Any
    """The class of an agent's configuration, or None."""
    nixlXferTelemetry: Any
    """The class of a transfer's telemetry, or None."""

UCX_VARIABLE, UCX_LIMIT = "UCX_RCACHE_MAX_UNRELEASED", "1024"
"""Without this variable, UCX keeps unreleased registrations without bound: a leak. It must be set
before UCX is loaded.
"""

_CUDA_PACKAGES, _ROCM_PACKAGES = ("nixl",), ("rixl", "nixl_rocm")
_ATTRIBUTES = {
    "NixlWrapper": ("_api", "nixl_agent"),
    "nixl_agent_config": ("_api", "nixl_agent_config"),
    "nixlXferTelemetry": ("_bindings", "nixlXferTelemetry"),
}
_log = logging.getLogger(__name__)
_lock = threading.RLock()
_parts: dict[str, Any] = {}
"""The package's modules by name: loaded, or None if the first import failed."""
_broken = ""
"""Why the installed package cannot be imported."""


def __getattr__(name: str) -> Any:
    if name not in _ATTRIBUTES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'", name=name)
    module, attribute = _ATTRIBUTES[name]
    value = getattr(_part(module), attribute, None)
    globals()[name] = value  # Python does not ask again
    return value


def package_name() -> str | None:
    """The import name of the platform's package; None if none is installed. Imports nothing."""
    for name in _candidates():
        if sys.modules.get(name) is not None or find_spec(name) is not None:
            return name
    return None


def version() -> str | None:
    """The version of the platform's package; None if it is unknown. Imports nothing."""
    name = package_name()
    if name is None:
        return None
    owners = metadata.packages_distributions().get(name, ())
    for distribution in sorted({name, name.replace("_", "-"), *owners}, key=len):
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(distribution)
    return None


def require_nixl(needed_by: str) -> Any:
    """`NixlWrapper`, for callers that need it.

    Raises `MissingExtraError` if the package is not installed, `EngineStartError` if
    the import fails.
    """
    wrapper = globals().get("NixlWrapper") or __getattr__("NixlWrapper")
    if wrapper is not None:
        return wrapper
    if _broken:
        raise EngineStartError(
            f"{needed_by} needs NIXL, which is installed but cannot be imported: {_broken}"
        )
    raise MissingExtraError(_candidates()[0], "nixl", needed_by)


def limit_ucx() -> None:
    """Bound UCX's registrations, unless the user has set a bound. Call it before NIXL loads."""
    if UCX_VARIABLE in os.environ:
        return
    if any(name in sys.modules for name in (*_CUDA_PACKAGES, *_ROCM_PACKAGES)):
        _say(
            logging.WARNING,
            f"NIXL was loaded before {UCX_VARIABLE} could be set: set it to {UCX_LIMIT} yourself",
        )
        return
    os.environ[UCX_VARIABLE] = UCX_LIMIT
    _say(logging.INFO, f"{UCX_VARIABLE} is set to {UCX_LIMIT}, so that UCX's memory stays bounded")


def _candidates() -> tuple[str, ...]:
    return _ROCM_PACKAGES if _is_rocm() else _CUDA_PACKAGES


def _is_rocm() -> bool:
    """Whether the platform is AMD's: by torch's build, else by the devices."""
    with suppress(metadata.PackageNotFoundError):
        if build := metadata.version("torch").partition("+")[2]:
            return build.startswith("rocm")
    return os.path.exists("/dev/kfd") and not os.path.exists("/dev/nvidiactl")


def _part(name: str) -> Any:
    """A module of the package, or None if it cannot be imported."""
    with _lock:
        if name not in _parts:
            _parts[name] = _load(name)
        return _parts[name]


def _load(name: str) -> Any:
    global _broken
    package = package_name()
    if package is None:
        _say(logging.INFO, f"NIXL is not available: there is no package '{_candidates()[0]}'")
        return None
    limit_ucx()
    try:
        module = import_module(f"{package}.{name}")
    except Exception as error:  # a library that cannot be linked raises more than ImportError
        _broken = f"{type(error).__name__}: {' '.join(str(error).split())}"
        _say(logging.WARNING, f"NIXL is not available: '{package}' cannot be imported ({_broken})")
        return None
    _say(logging.INFO, f"NIXL is available: {package} {version() or 'of unknown version'}")
    return module


@cache
def _say(level: int, text: str) -> None:
    """Log a text at its first occurrence only."""
    _log.log(level, "%s", text)
