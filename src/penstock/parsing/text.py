"""Reads text and JSON from users: files, the command line, columns. Error messages are our own."""

from __future__ import annotations

import codecs
import os
from typing import Any

from penstock.parsing.json_errors import json_fault

MAX_NESTING = 256
"""How deeply lists and objects may nest: every walk through a value must end."""
TOO_DEEP = f"it is nested more than {MAX_NESTING} deep"

_LARGEST = 64 << 20
_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark begins alike
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_SCALARS = frozenset({str, int, float, bool, bytes, type(None)})


def other_encoding(head: bytes) -> str | None:
    """The encoding of text with this `head`, if a byte order mark or zeros rule out UTF-8."""
    for mark, name in _ENCODINGS.items():
        if head.startswith(mark):
            return name
    zeros = [byte == 0 for byte in head[:4]]
    if zeros == [False, True, False, True]:
        return "UTF-16LE"
    if zeros == [True, False, True, False]:
        return "UTF-16BE"
    return None


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a settings file. Raises `OSError`, or `ValueError` if the file is too large."""
    with open(path, "rb") as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise ValueError(f"it is larger than {_LARGEST >> 20} MiB")
    return data


def decode_text(data: bytes) -> str:
    """The text of a file, with or without a byte order mark. Raises `ValueError`."""
    encoding = other_encoding(data)
    if encoding is not None:
        raise ValueError(f"it is {encoding}, not UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"invalid UTF-8 in line {data.count(10, 0, error.start) + 1}") from None


def is_too_deep(value: Any, most: int = MAX_NESTING) -> bool:
    """Whether lists or dicts nest more than `most` deep; true for a cycle."""
    level: dict[int, Any] = {id(value): value}
    for _ in range(most):
        # By identity, so that a shared part is visited once.
        level = {id(inner): inner for outer in level.values() for inner in _containers_in(outer)}
        if not level:
            return False
    return True


def _containers_in(value: Any) -> list[Any]:
    if not isinstance(value, dict | list | tuple):
        return []
    parts = value.values() if isinstance(value, dict) else value
    if _SCALARS.issuperset(map(type, parts)):  # long lists of numbers are common
        return []
    return [part for part in parts if isinstance(part, dict | list | tuple)]


def decode_json(data: bytes | str) -> Any:
    """The JSON value in a text, which may begin with a byte order mark.

    Raises `ValueError` with the reason.
    """
    import msgspec

    if isinstance(data, str):
        data = data.encode(errors="surrogatepass")
    encoding = other_encoding(data)
    if encoding is not None:
        raise ValueError(f"it is {encoding}, not UTF-8")
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        value = msgspec.json.decode(data)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    except (msgspec.DecodeError, ValueError):
        raise ValueError(json_fault(data)) from None
    if len(data) > MAX_NESTING and is_too_deep(value):
        raise ValueError(TOO_DEEP)
    return value
