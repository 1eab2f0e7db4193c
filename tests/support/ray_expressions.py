"""Expressions that Ray's users write about configurations, and what a library makes of each.

`tests/compat/ray_expressions.json` lists them: `gives` has what Ray makes of each, and `differs`
those that give something else here, by the reasons of `docs/from-ray-configuration.md`. As a
program this file prints what Ray makes of them; a test with Ray keeps the record true.
"""

from __future__ import annotations

import enum
import io
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray_configurations

RECORD = Path(__file__).parents[1] / "compat/ray_expressions.json"


def gives(*places: Any) -> dict[str, Any]:
    """What each expression gives with the names of these places, as JSON has it: "refused" for an
    error that tells of wrong values, else the error's class.
    """
    with tempfile.TemporaryDirectory() as folder:
        names = _Names(places, Path(folder))
        return {
            one: json.loads(json.dumps(_given(one, names)))
            for one in json.loads(RECORD.read_text())["gives"]
        }


def _given(expression: str, names: _Names) -> Any:
    try:
        return _plain(eval(expression, {}, names))
    except (ValueError, TypeError, ImportError, AssertionError):
        return "refused"
    except Exception as error:
        return type(error).__name__


class _Names(dict[str, Any]):
    """The names of a library, and helpers."""

    def __init__(self, places: Sequence[Any], folder: Path) -> None:
        super().__init__(
            changed=_changed, derived=_derived, done=_done, file=self.file, io=io, own=self.own
        )
        self["model_of"] = _model_of
        self._places = places
        self._folder = folder
        self._own: dict[str, Any] = {}

    def __missing__(self, name: str) -> Any:
        for place in self._places:
            if hasattr(place, name):
                return getattr(place, name)
        raise KeyError(name)

    def file(self, text: str) -> str:
        path = self._folder / "file.yaml"
        path.write_text(text)
        return str(path)

    def own(self, name: str = "Own") -> Any:
        """A type of configurations of one's own."""
        if name not in self._own:
            self._own[name] = type(name, (self["ProcessorConfig"],), {"__module__": __name__})
        return self._own[name]


def _changed(config: Any, **fields: Any) -> Any:
    for name, value in fields.items():
        setattr(config, name, value)
    return config


def _derived(base: Any, **fields: Any) -> Any:
    """A user's own configuration, with further fields."""
    kinds = {name: type(value) for name, value in fields.items()}
    return type("Derived", (base,), {"__annotations__": kinds, "__module__": __name__, **fields})


def _model_of(kind: Any, given: Any) -> Any:
    """A Pydantic model of a user's, with such a configuration in its field `config`."""
    from pydantic import create_model

    return create_model("Mine", config=(kind, ...))(config=given)


def _done(*steps: Any) -> Any:
    return steps[-1]


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, Mapping) or (hasattr(value, "items") and hasattr(value, "keys")):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return type(value).__name__


def rays() -> dict[str, Any]:
    """What Ray gives. It changes this process: give it one of its own."""
    library = ray_configurations.rays()
    from ray.llm._internal.batch.processor import ProcessorBuilder
    from ray.llm._internal.common.callbacks.base import CallbackBase, CallbackConfig

    inner = {one.__name__: one for one in (ProcessorBuilder, CallbackBase, CallbackConfig)}
    return gives(library.serve, library.data, SimpleNamespace(**inner))


def ours() -> dict[str, Any]:
    """What Penstock gives, under the import of Ray's users."""
    from penstock.compat import ray as names
    from penstock.serve import callbacks

    return gives(names, callbacks)


if __name__ == "__main__":
    json.dump(rays(), sys.stdout, indent=1)
