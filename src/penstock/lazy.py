"""Lazy exports for package faces, optional packages, runtimes. The one place that distinguishes a
missing extra from a broken install.

A face (an `__init__.py`) lists its names twice, side by side: as imports that only type checkers
read, and as the table for `attach`. `tests/test_lazy.py` compares the two. The first use of a
name imports it.

Every import runs this module, so it imports only modules that a bare interpreter has loaded.
"""

from __future__ import annotations

import sys

# Type checkers know this name; importing typing takes longer than everything here.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import ModuleType
    from typing import Any

EXTRAS: Mapping[str, str] = {
    "PIL": "images",
    "adlfs": "abfs",
    "aiohttp": "http",
    "av": "audio",
    "fastapi": "ray",
    "gcsfs": "gcs",
    "httpx": "vllm",
    "huggingface_hub": "hf",
    "nixl": "nixl",
    "nncf": "convert",
    # Several distributions share the opentelemetry package, so its presence alone proves little.
    "opentelemetry": "otel",
    "opentelemetry.exporter": "otel",
    "opentelemetry.sdk": "otel",
    "optimum": "convert",
    "psycopg": "postgres",
    "pydantic": "ray",
    "pypdfium2": "pdf",
    "ray": "ray",
    "s3fs": "s3",
    "sglang": "sglang",
    "torch": "convert",
    "transformers": "convert",
    "vllm": "vllm",
    "yarl": "http",
}
"""Import name of a package → the extra that installs it."""

RUNTIME_ENGINES: dict[str, str] = {}
"""Runtime → "module:class" of the engine that spreads its replicas there; called with an engine and
the number of replicas. The package's face fills these tables; batch and serve look names up here,
and so know no runtime.
"""
RUNTIME_SERVERS: dict[str, str] = {}
"""Runtime → "module:class" with what servers and ingresses in Ray's form need of it, where its
package is loaded: `penstock.serve.compat.hosts.Hosts`.
"""
RUNTIME_DATASETS: dict[str, str] = {}
"""Package of a data set's type → "module:function" that runs a processor over it in place."""


def attach(
    face: str, table: Mapping[str, Sequence[str]], *, eager: Sequence[str] = ()
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` for the package `face`.

    `table` maps each home module to the names that it exports; `eager` lists the names that the
    face defines itself.
    """
    homes = {name: home for home, names in table.items() for name in names}
    namespace = vars(sys.modules[face])
    public = sorted({*homes, *eager})

    def __getattr__(name: str) -> object:
        home = homes.get(name)
        if home is None:
            raise AttributeError(
                f"module '{face}' has no attribute '{name}'{_hint(name, public)}", name=name
            )
        try:
            value = getattr(require(home, needed_by=f"{face}.{name}"), name)
        except AttributeError as error:
            # An AttributeError would make `hasattr` false, and `from … import` hide the cause.
            raise ImportError(f"{face}.{name} cannot be imported: {error}", name=home) from error
        namespace[name] = value  # Python does not ask again
        return value

    def __dir__() -> list[str]:
        return sorted({*namespace, *public})

    return __getattr__, __dir__, public


def require(module: str, extra: str | None = None, *, needed_by: str = "") -> ModuleType:
    """Import and return `module`, from a package that may not be installed.

    Raises `MissingExtraError` if it is not. `extra` is needed only for packages that `EXTRAS` does
    not know. `needed_by` opens the message: "The Ray runtime needs the package 'ray' …".
    """
    try:
        __import__(module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if extra is None or missing != module.partition(".")[0]:
            extra = EXTRAS.get(missing)
        if extra is None or not _is_our_import(error):
            _explain(error, module, needed_by)
            raise
        from penstock.errors import MissingExtraError

        raise MissingExtraError(missing, extra, needed_by) from error
    except Exception as error:
        _explain(error, module, needed_by)
        raise
    return sys.modules[module]


def load_runtime(table: Mapping[str, str], name: str) -> Any:
    """The object that `table` names for the runtime `name`. Raises `MissingExtraError`."""
    module, _, attribute = table[name].partition(":")
    return getattr(require(module, needed_by=f"The {name.capitalize()} runtime"), attribute)


def _is_our_import(error: ModuleNotFoundError) -> bool:
    """Whether our own code asked for the module, not an incomplete installed package."""
    asking = ""
    trace = error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        if module.partition(".")[0] != "importlib":
            asking = module
        trace = trace.tb_next
    return asking.partition(".")[0] == __name__.partition(".")[0]


def _explain(error: Exception, module: str, needed_by: str) -> None:
    error.add_note(f"while importing {module}" + (f" for {needed_by}" if needed_by else ""))


def _hint(name: str, known: Sequence[str]) -> str:
    if name.startswith("__"):  # tools probe for such names: not worth a search
        return ""
    from penstock.errors import nearest

    return f". {nearest(name, known)}"
