"""What all readers of JSON Schemas share: where a `$ref` leads, which keywords hold schemas, the
characters of a pattern's classes, as ECMA 262 has them, and common patterns without look-ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

_NAMED = frozenset(
    {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"}
)
"""Keywords that hold schemas by name; the names can be any."""
_VALUES = frozenset({"const", "enum", "default", "examples", "required", "dependentRequired"})
"""Keywords that hold values, not schemas."""

_DIGIT = ((0x30, 0x39),)
_WORD = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACE = (
    *((0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A)),
    *((0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)),
)
CLASSES = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
"""The ranges of code points of `\\d`, `\\w` and `\\s`, sorted."""
CONTROLS = {"t": 0x09, "n": 0x0A, "v": 0x0B, "f": 0x0C, "r": 0x0D}
"""The code points of `\\t`, `\\n`, …"""

EMAIL = (
    r"^(?:[A-Za-z0-9_'+\-]+\.)*[A-Za-z0-9_'+\-]*[A-Za-z0-9_+-]"
    r"@(?:[A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
)
"""An address, as zod 4.6 writes it. Its first releases used look-ahead."""
_WITHOUT_LOOK_AHEAD = {
    **{
        rf"^(?!\.)(?!.*\.\.)([{letters}0-9_'+\-\.]*)[{letters}0-9_+-]"
        rf"@([{letters}0-9][{letters}0-9\-]*\.)+[{letters}]{{2,}}$": EMAIL
        for letters in ("A-Za-z", "a-zA-Z")
    },
    r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$": r"^[+-]?(\d+\.?\d*|\.\d+)$",  # pydantic 2.12's Decimal
}


def without_look_ahead(pattern: str) -> str:
    """For some patterns that common libraries write, a simpler one of the same texts; others
    unchanged.
    """
    return _WITHOUT_LOOK_AHEAD.get(pattern, pattern)


def resolve(root: Any, reference: str) -> Any:
    """What a `$ref` within the schema `root` leads to. Raises `LookupError` if it leads nowhere, or
    out of the schema.
    """
    start, *steps = unquote(reference).split("/")  # as a part of a URI, it may be quoted
    if start != "#":
        raise LookupError(reference)
    target = root
    for step in steps:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(target, Mapping):
            target = target[key]
        elif isinstance(target, list) and key.isdecimal() and len(key) <= len(str(len(target))):
            target = target[int(key)]
        else:
            raise LookupError(reference)
    return target


def rewritten(part: Any, change: Callable[[str, Any], Any]) -> Any:
    """A copy of a schema in which `change(keyword, value)` has replaced the value of each keyword,
    the innermost first.
    """
    if isinstance(part, list):
        return [rewritten(one, change) for one in part]
    if not isinstance(part, Mapping):
        return part
    made = {}
    for keyword, value in part.items():
        if keyword in _NAMED and isinstance(value, Mapping):
            value = {name: rewritten(one, change) for name, one in value.items()}
        elif keyword not in _VALUES:
            value = rewritten(value, change)
        made[keyword] = change(keyword, value)
    return made
