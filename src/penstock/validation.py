"""Explains why a value does not match a type, in words of our own: those of msgspec change
with its versions.

It supports the types of our own forms: structures, mappings, lists, plain values,
literals, bounds, unions.
"""

from __future__ import annotations

import contextlib
import json
import math
import operator
import re
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect

_MOST_OF_FLOATS = sys.float_info.max
_LISTS = inspect.ListType | inspect.VarTupleType | inspect.SetType | inspect.FrozenSetType
_KINDS: tuple[tuple[Any, str, Any], ...] = (
    (inspect.NoneType, "null", type(None)),
    (inspect.BoolType, "a boolean", bool),
    (inspect.IntType, "an integer", int),
    (inspect.FloatType, "a number", int | float),
    (inspect.StrType, "text", str),
    (inspect.StructType | inspect.DictType, "an object", Mapping),
    (_LISTS, "a list", list | tuple | set | frozenset),
)
"""msgspec's type of a field, its name for people, the values that it takes."""
_PLACE = re.compile(r"at `\$\.?(.*)`$")
_SEARCHED = 10_000
"""Entries of an object or a list that are looked at one by one, which takes 0.2 s."""
_READ: dict[Any, Any] = {inspect.BoolType: bool, inspect.IntType: int, inspect.FloatType: float}
"""What a text is read as in the place of these."""


class Mismatch(NamedTuple):
    """A value that does not match its type.

    `place` is its path ("messages[0].role"), empty for the whole value; `why` is the fault ("must
    be an integer"); `choices` are the allowed words, if only some are.
    """

    place: str
    why: str
    value: Any
    choices: tuple[str, ...] = ()

    @property
    def is_unknown(self) -> bool:
        """Whether the form has no field of this name."""
        return self.why.startswith("is unknown")

    def __str__(self) -> str:
        given = f", not {_excerpt(self.value)}" if self.why.startswith("must") else ""
        return f"{self.place or 'it'} {self.why}{given}"


def mismatch(form: Any, value: Any) -> Mismatch:
    """The first part of `value` that keeps msgspec from converting it to `form`. For errors only:
    it is slow. In a large object without a wrong entry near its beginning, the part is the object.
    """
    near = _near(form, value)
    return _search(_inspected(form), value, "", near) or Mismatch(
        near.partition("[...]")[0], "does not have the right form", value
    )


@lru_cache(maxsize=64)
def _inspected(form: Any) -> inspect.Type:
    """What msgspec says of a form, which takes it a millisecond."""
    return inspect.type_info(form)


def _near(form: Any, value: Any) -> str:
    """Where msgspec finds it, as far as it says so: keys of objects are "[...]"."""
    try:
        msgspec.convert(value, form, strict=True)
    except (ValueError, TypeError) as error:
        if found := _PLACE.search(str(error)):
            return found[1]
    return ""


def loosened(form: Any, value: Any) -> Any:
    """`value` with numbers and booleans where `form` has them and `value` has their texts ("64",
    "true"), 64.0 for an integer, or 0 and 1 for a boolean. What cannot be read so stays.
    """
    return _loosened(_inspected(form), value)


def _loosened(kind: Any, value: Any) -> Any:
    parts = _either(kind)
    for part in parts:
        if isinstance(part, inspect.StructType) and isinstance(value, Mapping):
            types = {field.encode_name: field.type for field in part.fields}
            return {n: _loosened(types[n], v) if n in types else v for n, v in value.items()}
        if isinstance(part, inspect.DictType) and isinstance(value, Mapping):
            return {name: _loosened(part.value_type, inner) for name, inner in value.items()}
        if isinstance(part, _LISTS) and isinstance(value, list | tuple):
            return [_loosened(part.item_type, inner) for inner in value]
    if not any(_is(part, value) for part in parts):
        for part in parts:
            with contextlib.suppress(KeyError, msgspec.ValidationError):
                read = msgspec.convert(value, _READ[type(part)], strict=False)
                if math.isfinite(read):
                    return read
    return value


def _excerpt(value: Any) -> str:
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = ascii(value)  # a lone surrogate has an ASCII form too
    return text if len(text) <= 40 else f"{text[:40]}…"


def _search(kind: Any, value: Any, place: str, near: str) -> Mismatch | None:
    fitting = [part for part in _either(kind) if _is(part, value)]
    if not fitting:
        return Mismatch(place, f"must be {_name(kind)}", value, tuple(_choices(kind)))
    found = [
        _broken_bound(part, value, place) or _search_inside(part, value, place, near)
        for part in fitting
    ]
    return None if None in found else found[0]


def _search_inside(kind: Any, value: Any, place: str, near: str) -> Mismatch | None:
    parts: Iterable[tuple[Any, Any, str]]
    if isinstance(kind, inspect.StructType) and isinstance(value, Mapping):
        for field in kind.fields:
            where = f"{place}.{field.encode_name}".lstrip(".")
            if field.required and field.encode_name not in value:
                return Mismatch(where, "is missing", None)
        known = tuple(field.encode_name for field in kind.fields)
        if kind.cls.__struct_config__.forbid_unknown_fields:
            for name in value:
                if name not in known:
                    names = ", ".join(sorted(known))
                    why = f"is unknown, and was {_excerpt(value[name])}. Known: {names}"
                    return Mismatch(f"{place}.{name}".lstrip("."), why, value[name], known)
        parts = [
            (field.type, value[field.encode_name], f".{field.encode_name}")
            for field in kind.fields
            if field.encode_name in value
        ]
    elif isinstance(kind, inspect.DictType):
        parts = (
            (kind.value_type, item, f".{key}") for key, item in islice(value.items(), _SEARCHED)
        )
    elif isinstance(kind, inspect.TupleType):
        parts = [
            (part, item, f"[{n}]")
            for n, (part, item) in enumerate(zip(kind.item_types, value, strict=False))
        ]
    elif isinstance(kind, _LISTS):
        number = near.removeprefix(f"{place}[").partition("]")[0]
        parts = (
            [(kind.item_type, value[int(number)], f"[{number}]")]
            if isinstance(value, list | tuple)  # a set has no places
            and near.startswith(f"{place}[")
            and number.isdecimal()
            else (
                (kind.item_type, item, f"[{n}]") for n, item in enumerate(islice(value, _SEARCHED))
            )
        )
    else:
        return None
    found = (_search(part, item, f"{place}{step}".lstrip("."), near) for part, item, step in parts)
    return next(filter(None, found), None)


def _is(kind: Any, value: Any) -> bool:
    """Whether the value is of this kind, whatever its bounds and parts."""
    if isinstance(kind, inspect.LiteralType):
        return any(value == known and type(value) is type(known) for known in kind.values)
    if isinstance(kind, inspect.StructType) and isinstance(value, kind.cls):
        return True
    if isinstance(kind, inspect.TupleType):
        return isinstance(value, list | tuple) and len(value) == len(kind.item_types)
    if isinstance(value, bool) and isinstance(kind, inspect.IntType | inspect.FloatType):
        return False
    known = [types for of, _, types in _KINDS if isinstance(kind, of)]
    return not known or isinstance(value, known[0])


def _broken_bound(kind: Any, value: Any, place: str) -> Mismatch | None:
    if isinstance(kind, inspect.FloatType) and type(value) is int and abs(value) > _MOST_OF_FLOATS:
        return Mismatch(place, "is too large a number", value)
    for name, breaks, words in (
        ("ge", operator.lt, "must be at least {}"),
        ("gt", operator.le, "must be more than {}"),
        ("le", operator.gt, "must be at most {}"),
        ("lt", operator.ge, "must be less than {}"),
        ("min_length", operator.lt, "has a length below {}"),
        ("max_length", operator.gt, "has a length above {}"),
    ):
        bound = getattr(kind, name, None)
        if bound is not None and breaks(len(value) if "length" in name else value, bound):
            return Mismatch(place, words.format(bound), value)
    return None


def _either(kind: Any) -> tuple[Any, ...]:
    if isinstance(kind, inspect.Metadata):
        return _either(kind.type)
    if isinstance(kind, inspect.UnionType):
        return tuple(single for part in kind.types for single in _either(part))
    return (kind,)


def _name(kind: Any) -> str:
    """What a value must be, such as "text, a list or null"."""
    words: list[str] = []
    for part in _either(kind):
        if isinstance(part, inspect.LiteralType):
            words += map(repr, part.values)
        elif isinstance(part, inspect.TupleType):
            words.append(f"a list of {len(part.item_types)}")
        else:
            names = (name for of, name, _ in _KINDS if isinstance(part, of))
            words.append(next(names, "of another kind"))
    words.sort(key="null".__eq__)
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _choices(kind: Any) -> Iterable[str]:
    for part in _either(kind):
        if isinstance(part, inspect.LiteralType):
            yield from (word for word in part.values if isinstance(word, str))
