"""Where work can run beside this process.

The face of the package names what runs it there; batch looks it up here, and so knows no runtime by
itself.
"""

from __future__ import annotations

from penstock import lazy

TYPE_CHECKING = False  # known to type checkers; this module is on the path of every import
if TYPE_CHECKING:
    from typing import Any

ENGINES: dict[str, str] = {}
"""Runtime -> "module:class" of the engine whose replicas run there; called with an engine and their
number.
"""
DATASETS: dict[str, str] = {}
"""Package of a data set's type -> "module:function" that runs a processor over it there."""


def runtime_of(dataset: object) -> str | None:
    """The package whose data sets are processed where they are, or None."""
    package = type(dataset).__module__.partition(".")[0]
    return package if package in DATASETS else None


def load(table: dict[str, str], name: str) -> Any:
    """What `table` holds for the runtime `name`. Raises `MissingExtraError` for a package that is
    not installed.
    """
    module, _, attribute = table[name].partition(":")
    return getattr(lazy.require(module, needed_by=f"The {name.capitalize()} runtime"), attribute)
