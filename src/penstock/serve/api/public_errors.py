"""What of an error a caller may read: no path of a file of this machine, unless the caller runs the
server.
"""

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
    """Where models are, as their configurations say it, to what they are called."""
    sources = {}
    for handle in handles:
        source = getattr(getattr(handle, "config", None), "model_source", None)
        if isinstance(source, str) and os.sep in source:
            sources[source] = handle.model_id
    return sources


def without_paths(text: str, sources: Mapping[str, str]) -> str:
    """The text with the last component in the place of each path. `sources` are names for known
    paths.
    """
    if "/" not in text:
        return text
    for source, name in sources.items():
        text = text.replace(source, name)
    text = _QUOTED.sub(
        lambda found: f"{found['quote']}{_shown(found['path'])}{found['quote']}", text
    )
    return _BARE.sub(lambda found: _shown(found[0]), text)


def public(error: PenstockError, sources: Mapping[str, str]) -> PenstockError:
    """The error as a stranger may read it."""
    text = str(error)
    shown = without_paths(text, sources)
    if shown == text:
        return error
    told = copy(error)
    told.args = (shown,)
    return told


def _shown(path: str) -> str:
    plain = re.sub(r"^file:/{1,2}(?=/)", "", path)
    if not plain.startswith("/") or _is_of_this_machine(plain.split("/")[1]):
        end = plain.rstrip("/")
        tail = end.rpartition("/")[2]
        return tail if tail not in ("", "~", ".", "..") else "…"
    return path  # such as a route of the API


@lru_cache(maxsize=256)
def _is_of_this_machine(first: str) -> bool:
    """Whether the root of this machine's files has an entry of that name."""
    return bool(first) and os.path.lexists(f"/{first}")
