"""Parses answers that deviate from their schema: optional fields may be malformed.

Nearly all answers decode directly into their structs. This is the fallback for the others.
"""

from __future__ import annotations

import codecs
import json
import math
import types
from typing import Any, Union, get_args, get_origin

import msgspec
from msgspec import Struct


def read(body: bytes, form: Any) -> Any:
    """Parse a body into `form`: a struct, or a union or list of structs.

    A malformed field gets its default. Required fields, and present ones that the struct lists in
    `needed`, must be well-formed. Raises `ValueError` otherwise, and for invalid JSON.
    """
    return _as(parsed(body), form)


def parsed(body: bytes) -> Any:
    """The JSON value at the start of a body.

    Invalid UTF-8 and unpaired surrogates are replaced, numbers may be NaN or out of range, and
    anything may follow. Raises `ValueError`.
    """
    text = body.removeprefix(codecs.BOM_UTF8).decode(errors="replace").lstrip()
    try:
        value, _ = json.JSONDecoder().raw_decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except json.JSONDecodeError:
        raise ValueError("it is no JSON") from None
    if "\\u" in text:  # only an escape can make an unpaired surrogate
        value = _without_lone_surrogates(value)
    return value


def count(value: Any) -> int:
    """A number of tokens, sent as a number or as text; 0 for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0
    return max(int(number), 0) if math.isfinite(number) and not isinstance(value, bool) else 0


def as_text(value: Any) -> str:
    """The text of an answer, which may come as text, as a list of parts, or as parsed JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, list):
        parts = [
            part.get("text", part.get("content")) if isinstance(part, dict) else part
            for part in value
        ]
        return "".join(part for part in parts if isinstance(part, str))
    return msgspec.json.encode(value).decode()


def _as(value: Any, form: Any) -> Any:
    if isinstance(form, type) and issubclass(form, Struct):
        return _struct(value, form)
    if get_origin(form) in (Union, types.UnionType):
        arms = get_args(form)
        if value is None and type(None) in arms:
            return None
        for arm in arms:
            try:
                return _as(value, arm)
            except ValueError:
                continue
        raise ValueError("it has another form")
    if get_origin(form) is list and isinstance(value, list):
        return [_as(item, get_args(form)[0]) for item in value]
    try:
        return msgspec.convert(value, form, strict=False)
    except (msgspec.ValidationError, RecursionError):
        raise ValueError("it has another form") from None


def _struct(value: Any, form: type[Struct]) -> Struct:
    if not isinstance(value, dict):
        raise ValueError("it has another form")
    needed = getattr(form, "needed", ())
    found = {}
    for field in msgspec.structs.fields(form):
        if field.encode_name not in value:
            if field.required:
                raise ValueError(f"it has no '{field.encode_name}'")
            continue
        given = value[field.encode_name]
        try:
            found[field.name] = _as(given, field.type)
        except ValueError:
            if field.required or (given and field.name in needed):
                raise ValueError(f"its '{field.encode_name}' has another form") from None
    return form(**found)


def _without_lone_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        if value.isascii() or not any("\ud800" <= sign <= "\udfff" for sign in value):
            return value
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_without_lone_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {
            _without_lone_surrogates(key): _without_lone_surrogates(item)
            for key, item in value.items()
        }
    return value
