"""Prompt templates: text with `{column}` in it, and nothing else that acts.

Unlike `str.format` there are no attributes, indexes, conversions or format codes, so that a
template from anywhere can only place a row's values. `{{` and `}}` stand for single braces.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from penstock.batch.values.plain import UnstorableError, text
from penstock.errors import ConfigError, RequestError, nearest

_TOKENS = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")

_JSON_MARKS = frozenset('":,\n')  # in braces, rather a JSON object than the name of a column
_DOUBLE = "Write '{{' or '}}' for a brace in the text"


class Template:
    """A parsed template. `columns` are the columns it uses, in order of their first use.

    Raises `ConfigError` for a lone brace or an empty field.
    """

    def __init__(self, source: str) -> None:
        self._parts: list[tuple[str, str | None]] = []  # literal text, then the column after it
        literal, end = "", 0
        for token in _TOKENS.finditer(source):
            literal += source[end : token.start()]
            end = token.end()
            if token[0] in ("{{", "}}"):
                literal += token[0][0]
            elif token[1]:
                self._parts.append((literal, token[1]))
                literal = ""
            else:
                raise ConfigError(
                    f"'{token[0]}' at character {token.start() + 1} names no column",
                    field="prompt",
                    value=source,
                    hint=_DOUBLE,
                )
        self._parts.append((literal + source[end:], None))
        self.columns = tuple(dict.fromkeys(column for _, column in self._parts if column))

    def check(self, columns: Iterable[str], *, complete: bool = True) -> None:
        """Raise `ConfigError` if the data lacks a column of the template.

        Where `columns` are not `complete`, only what can be no name of a column is missed.
        """
        known = list(columns)
        for column in self.columns:
            if column not in known and (complete or '"' in column):
                hint = _DOUBLE if _JSON_MARKS.intersection(column) else nearest(column, known)
                raise ConfigError(
                    f"the data has no column '{column}'", field="prompt", value=column, hint=hint
                )

    def render(self, values: Mapping[str, Any]) -> str:
        """The text for one row. Raises `RequestError` if the row lacks a column."""
        pieces = []
        for literal, column in self._parts:
            pieces.append(literal)
            if column is not None:
                try:
                    value = values[column]
                except KeyError:
                    raise RequestError(f"the row has no column '{column}'", param=column) from None
                pieces.append(value if isinstance(value, str) else as_text(value))
        return "".join(pieces)


def as_text(value: Any) -> str:
    """A value as it stands in a prompt: text as it is, null as nothing, numbers and dates plainly,
    the rest as JSON.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise RequestError("a prompt can hold no binary value") from None
    try:
        return text(value) or ""
    except UnstorableError as error:
        raise RequestError(f"a prompt cannot hold it: {error}") from None
