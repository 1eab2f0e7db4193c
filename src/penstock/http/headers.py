"""Request headers whose values may be keys: read from the environment, never shown."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from penstock.config import MASK, masked
from penstock.errors import ConfigError

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
SHORTEST_SECRET = 6


class Headers:
    """Headers of every request to one server. `${NAME}` in a value stands for the variable of that
    name in the environment.

    Only requests carry the values; the repr, errors and logs show `***` (`scrub`). Raises
    `ConfigError` for an unset variable, or an invalid header.
    """

    def __init__(self, given: Mapping[str, str] | None = None, *, field: str = "headers") -> None:
        self.values: dict[str, str] = {}
        self._secrets: list[str] = []
        for name, value in (given or {}).items():
            where = f"{field}.{name}"
            if not isinstance(value, str):
                raise ConfigError(f"must be a text, not {type(value).__name__}", field=where)
            filled = _VARIABLE.sub(partial(_value_of, where), value)
            if any(mark in name + filled for mark in "\r\n\0"):
                raise ConfigError("must not contain line breaks", field=where)
            self.values[name] = filled
            if filled != value or masked(value, name) == MASK:
                # "Bearer KEY", and the key alone.
                self._secrets += [filled, filled.rpartition(" ")[2]]
        self._secrets = sorted(
            {text for text in self._secrets if len(text) >= SHORTEST_SECRET}, key=len, reverse=True
        )

    def scrub(self, text: str, also: Sequence[str] = ()) -> str:
        """The text without the keys and `also`, which servers like to repeat in error messages."""
        for secret in (*self._secrets, *also):
            text = text.replace(secret, MASK)
        return text

    def __repr__(self) -> str:
        shown: dict[str, Any] = {
            name: MASK if any(secret in value for secret in self._secrets) else masked(value, name)
            for name, value in self.values.items()
        }
        return f"Headers({shown!r})"


def bearer(variable: str | None, *, field: str = "api_key_env") -> dict[str, str]:
    """The header with the key from the environment's `variable`; empty for None."""
    return {"Authorization": f"Bearer {_variable(variable, field)}"} if variable else {}


def _value_of(field: str, match: re.Match[str]) -> str:
    return _variable(match[1], field)


def _variable(name: str, field: str) -> str:
    value = os.environ.get(name, "").strip()
    if not value:
        raise ConfigError(f"the environment variable {name} is not set", field=field, value=name)
    return value
