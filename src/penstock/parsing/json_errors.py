"""Explains invalid JSON in words of our own: those of libraries change with their versions."""

from __future__ import annotations

import json
from typing import Any, NoReturn

_SEARCHED = 1 << 20
_BLANK = " \t\r\n"


class _NoNumberError(ValueError):
    """NaN or an infinity, which Python's reader would accept."""


def json_fault(text: bytes | str) -> str:
    """Where and how `text`, which a JSON reader has refused, breaks the form. For errors only: it
    parses the text again.

    Returns a clause such as "unexpected text at line 2, column 7" or "it ends too early". Lines and
    columns count from 1, columns in characters. Beyond a megabyte of text the clause has no place.
    """
    if len(text) > _SEARCHED:
        return "it breaks the form of JSON"
    try:
        given = text.decode() if isinstance(text, bytes) else text
        given.encode()
    except UnicodeDecodeError:
        return "invalid UTF-8"
    except UnicodeEncodeError:
        return "it holds a lone surrogate"
    body = given.lstrip(_BLANK)
    if not body:
        return "it is empty"
    skipped = len(given) - len(body)
    try:
        value, end = json.JSONDecoder(parse_constant=_refuse).raw_decode(body)
    except json.JSONDecodeError as error:
        if _ends_early(body, error.pos):
            return "it ends too early"
        return f"unexpected text at {_place(given, skipped + error.pos)}"
    except _NoNumberError:
        return "NaN and Infinity are not JSON"
    except RecursionError:
        return "it is nested too deeply"
    except ValueError:  # Python bounds the digits of an integer
        return "a number has too many digits"
    rest = body[end:].lstrip(_BLANK)
    if rest:
        return f"more text after its end, at {_place(given, len(given) - len(rest))}"
    return (
        "it holds a lone surrogate"
        if _has_surrogates(value)
        else "it holds a number that is out of range"
    )


def _refuse(_: str) -> NoReturn:
    raise _NoNumberError


def _ends_early(body: str, position: int) -> bool:
    """Whether only the beginning of a word or of a string, or nothing, is left at `position`."""
    rest = body[position:].rstrip(_BLANK)
    if not rest or any(word.startswith(rest) for word in ("true", "false", "null", "-")):
        return True
    return rest[0] == '"' and _unclosed(rest)


def _unclosed(rest: str) -> bool:
    escaped = False
    for char in rest[1:]:
        if char == '"' and not escaped:
            return False
        escaped = char == "\\" and not escaped
    return True


def _place(text: str, position: int) -> str:
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    return f"line {line}, column {column}" if "\n" in text.rstrip(_BLANK) else f"column {column}"


def _has_surrogates(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False
