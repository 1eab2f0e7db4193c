"""Reads text, JSON and YAML strictly: settings, rows, request bodies, model files. Errors are short
clauses in our own words, not the parser's.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from pathlib import Path
from typing import Any, NoReturn

from penstock import lazy
from penstock.errors import ConfigError

MAX_NESTING = 256
"""How deeply lists and objects may nest: every walk through a value must end."""
TOO_DEEP = f"it is nested more than {MAX_NESTING} deep"

_MAX_FILE_BYTES = 64 << 20
_MAX_SEARCHED = 1 << 20  # characters, in the search for a fault
_BLANK = " \t\r\n"
_OPEN_STRING = re.compile(r'"(?:[^"\\]|\\.)*\\?', re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark begins alike
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
# Which of the first four bytes are zeros, for text that begins with two ASCII characters.
_UNMARKED: dict[tuple[bool, ...], str] = {
    (False, True, False, True): "UTF-16LE",
    (True, False, True, False): "UTF-16BE",
}
_SCALARS = frozenset({str, int, float, bool, bytes, type(None)})


def other_encoding(head: bytes) -> str | None:
    """The encoding of text that begins with `head`, if a byte order mark or zeros rule out UTF-8;
    else None.
    """
    for mark, name in _MARKS.items():
        if head.startswith(mark):
            return name
    return _UNMARKED.get(tuple(byte == 0 for byte in head[:4]))


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a settings file. Raises `OSError`, or `ValueError` if the file is too large."""
    with open(path, "rb") as file:
        data = file.read(_MAX_FILE_BYTES + 1)
    if len(data) > _MAX_FILE_BYTES:
        raise ValueError(f"it is larger than {_MAX_FILE_BYTES >> 20} MiB")
    return data


def decode_text(data: bytes) -> str:
    """The text of a file, with or without a byte order mark. Raises `ValueError`."""
    _check_encoding(data)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"invalid UTF-8 in line {data.count(10, 0, error.start) + 1}") from None


def _check_encoding(data: bytes) -> None:
    if (encoding := other_encoding(data)) is not None:
        raise ValueError(f"it is {encoding}, not UTF-8")


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
    _check_encoding(data)
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


def repeated_key(text: bytes) -> str | None:
    """A key that stands twice in one object of a JSON text, or None. The JSON parser has accepted
    the text: it keeps the last of the values.
    """
    try:
        _check_keys(text.decode())
    except _RepeatedError as error:
        return str(error)
    except RecursionError:  # the two parsers differ a little in the depth that they allow
        return None
    return None


def json_fault(text: bytes | str) -> str:
    """What is wrong with `text`, which a JSON parser has refused, and where. For errors only: it
    parses the text again.

    Returns a clause such as "unexpected text at line 2, column 7" or "it ends too early". Lines and
    columns count from 1, columns in characters. For text of more than a megabyte the clause says
    no more than that it is not valid.
    """
    if len(text) > _MAX_SEARCHED:
        return "it is not valid JSON"
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
    if _SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        return "it holds a lone surrogate"
    return "it holds a number that is out of range"


class _RepeatedError(Exception):
    """A key that stands twice."""


def _check_unique(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) == len(pairs):
        return
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise _RepeatedError(name)
        seen.add(name)


# `parse_int=len` is cheap, and has no limit on the number of digits.
_check_keys = json.JSONDecoder(
    object_pairs_hook=_check_unique, parse_int=len, parse_float=len
).decode


class _NoNumberError(ValueError):
    """NaN or an infinity, which Python's reader would accept."""


def _refuse(_: str) -> NoReturn:
    raise _NoNumberError


def _ends_early(body: str, position: int) -> bool:
    """Whether what is left at `position` is nothing, or the beginning of a word or a string."""
    rest = body[position:].rstrip(_BLANK)
    words = ("true", "false", "null", "-")
    return any(word.startswith(rest) for word in words) or bool(_OPEN_STRING.fullmatch(rest))


def _place(text: str, position: int) -> str:
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    return f"line {line}, column {column}" if "\n" in text.rstrip(_BLANK) else f"column {column}"


def read_yaml(file: Path) -> Any:
    """The content of a YAML file, or of JSON in one ending in .json. Raises `ConfigError`."""
    yaml = lazy.require("yaml", needed_by="A YAML configuration")
    try:
        text = decode_text(read_file(file))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{file} cannot be read: {why}") from None
    if file.suffix == ".json":  # whose escapes YAML reads otherwise
        try:
            content = decode_json(text)
        except ValueError as error:
            raise ConfigError(f"{file} is not valid JSON: {error}") from None
        if (name := repeated_key(text.encode())) is not None:
            raise ConfigError(f"{file}: the key '{name}' stands twice in one object")
        return content
    try:
        return load_yaml(yaml, text, str(file))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f": line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise ConfigError(f"{file} is not valid YAML{place}") from None


def load_yaml(yaml: Any, given: Any, name: str) -> Any:
    """The content of a YAML text or open file. Raises `ConfigError`, also for a key that stands
    twice, of which YAML would keep the last; passes on `YAMLError`, and errors of reading the file.
    """

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        # Checked before merges ("<<"), which may repeat a key.
        def compose_mapping_node(self, anchor: Any) -> Any:
            node, seen = super().compose_mapping_node(anchor), set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
                    continue
                if (key.tag, key.value) in seen:
                    raise ConfigError(
                        f"{name}: the key '{key.value}' stands twice in one mapping:"
                        f" line {key.start_mark.line + 1}"
                    )
                seen.add((key.tag, key.value))
            return node

    try:
        content = yaml.load(given, Loader=Loader)
    except RecursionError:
        raise ConfigError(f"{name} cannot be read: {TOO_DEEP}") from None
    except (yaml.YAMLError, ConfigError, OSError, UnicodeError):
        raise
    except Exception:  # of several kinds, for values that do not match their form or tag
        raise ConfigError(
            f"{name} is not valid YAML: it holds a date or number that there is not"
        ) from None
    if is_too_deep(content):
        raise ConfigError(f"{name} cannot be read: {TOO_DEEP}")
    return content
