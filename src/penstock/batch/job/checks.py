"""Checks of the values of a job's options."""

from __future__ import annotations

from penstock.errors import ConfigError


def require(holds: bool, name: str, value: object, meant: str) -> None:
    """Raise `ConfigError` unless the check of an option `holds`; `meant` is what it must be."""
    if not holds:
        raise ConfigError(f"must be {meant}, not a {type(value).__name__}", field=name, value=value)


def require_unicode(name: str, value: object) -> None:
    """Raise `ConfigError` for text with a lone surrogate: Python reads a byte of the command line
    that is no UTF-8 as one, and no engine takes it.
    """
    try:
        str(value).encode()
    except UnicodeEncodeError as error:
        why = f"is no UTF-8 at character {error.start + 1}"
        raise ConfigError(why, field=name, value=value) from None


def is_list_of(values: object, kind: type) -> bool:
    """Whether this is a list or tuple of such values."""
    return isinstance(values, list | tuple) and all(isinstance(value, kind) for value in values)
