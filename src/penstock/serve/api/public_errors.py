"""Removes paths of local files from error messages, unless the caller is an operator."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from copy import copy
from functools import lru_cache

from penstock.errors import PenstockError
from penstock.serve.models.handle import ModelHandle

_QUOTED = re.compile(
    r"""(?P<quote>["'`])(?P<path>(?:file:/{1,2})?(?:/|~[\w.-]*/|\.\.?/)[^"'`\n]*)(?P=quote)"""
)
_BARE = re.compile(
    r"""(?<![\w/.~@-])(?:file:/{1,2})?(?:/(?!/)|~[\w.-]*/|\.\.?/)[^\s"'`,;()<>\[\]{}|]+"""
)


def model_sources(handles: Iterable[ModelHandle]) -> dict[str, str]:
    """Sources of models, as configured → the models' names."""
    sources = {}
    for handle in handles:
        source = getattr(getattr(handle, "config", None), "model_source", None)
        if isinstance(source, str) and os.sep in source:
            sources[source] = handle.model_id
    return sources


def without_paths(text: str, sources: Mapping[str, str]) -> str:
    """The text with each path cut to its last component. `sources` maps known paths to names."""
    if "/" not in text:
        return text
    for source, name in sources.items():
        text = text.replace(source, name)
    text = _QUOTED.sub(
        lambda found: f"{found['quote']}{_last_component(found['path'])}{found['quote']}", text
    )
    return _BARE.sub(lambda found: _last_component(found[0]), text)


def public(error: PenstockError, sources: Mapping[str, str]) -> PenstockError:
    """The error without local paths: the same object if it has none."""
    text = str(error)
    shown = without_paths(text, sources)
    if shown == text:
        return error
    stripped = copy(error)
    stripped.args = (shown,)
    return stripped


def _last_component(path: str) -> str:
    plain = re.sub(r"^file:/{1,2}(?=/)", "", path)
    if not plain.startswith("/") or _is_of_this_machine(plain.split("/")[1]):
        end = plain.rstrip("/")
        tail = end.rpartition("/")[2]
        return tail if tail not in ("", "~", ".", "..") else "…"
    return path  # such as a route of the API


@lru_cache(maxsize=256)
def _is_of_this_machine(first: str) -> bool:
    """Whether `first` is an entry of this machine's root folder."""
    return bool(first) and os.path.lexists(f"/{first}")
