"""The runtimes that can run work beside this process.

The package's face fills in these tables, and batch looks names up here. So batch itself
knows no runtime.
"""

from __future__ import annotations

from penstock import lazy

TYPE_CHECKING = False  # Type checkers know this name; every import runs this module.
if TYPE_CHECKING:
    from typing import Any

ENGINES: dict[str, str] = {}
"""Runtime → "module:class" of the engine that spreads its replicas there; called with an engine and
the number of replicas.
"""
DATASETS: dict[str, str] = {}
"""Package of a data set's type → "module:function" that runs a processor over the data
set in place.
"""


def runtime_of(dataset: object) -> str | None:
    """The package that processes data sets of this type in place, or None."""
    package = type(dataset).__module__.partition(".")[0]
    return package if package in DATASETS else None


def load(table: dict[str, str], name: str) -> Any:
    """The object that `table` names for the runtime `name`. Raises `MissingExtraError` for
    a missing package.
    """
    module, _, attribute = table[name].partition(":")
    return getattr(lazy.require(module, needed_by=f"The {name.capitalize()} runtime"), attribute)
