"""Turns mappings from users (YAML, JSON, keyword arguments) into typed options, with errors that name the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from penstock.errors import ConfigError, nearest

T = TypeVar("T", bound=msgspec.Struct)


def parse_options(options: type[T], given: Mapping[str, Any], where: str) -> T:
    """Build the structure `options` from `given`. `where` is the dotted path of the mapping, for messages.

    Raises `ConfigError` for an unknown key (with the nearest known one), a wrong type, or a value out of its bounds.
    """
    known = {field.encode_name for field in msgspec.structs.fields(options)}
    for key in given:
        if key not in known:
            raise ConfigError(
                f"unknown key '{key}'", field=f"{where}.{key}", value=given[key], hint=nearest(str(key), known)
            )
    try:
        return msgspec.convert(dict(given), options, strict=True)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        name = path.rstrip("`")
        value = given.get(name.split(".")[0].split("[")[0])
        raise ConfigError(
            f"{message[:1].lower()}{message[1:]}, got {value!r}", field=f"{where}.{name}", value=value
        ) from None
