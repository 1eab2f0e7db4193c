"""What each API calls the parameters that an error names in the neutral types' words."""

from __future__ import annotations

import re
from copy import copy

from msgspec import Struct

from penstock.errors import ContextLengthError, PenstockError

_PROMPT = "prompt"


def in_words_of(body: Struct, error: PenstockError) -> PenstockError:
    """The error with the names that the request's body has: the same object if it has them."""
    names: dict[str, str] = getattr(body, "names", {})
    given = error.param
    if given is None and isinstance(error, ContextLengthError):
        given = _PROMPT
    if given is None:
        return error
    name, end = re.match(r"([^.\[]*)(.*)", given, re.DOTALL).groups()  # type: ignore[union-attr]
    named = names.get(name, name) + end
    if named == error.param:
        return error
    shown = copy(error)
    shown.param = named
    if name in names and "_" in name:  # others are words of plain text, too
        shown.args = (re.sub(rf"\b{name}\b", names[name], str(error)),)
    return shown
