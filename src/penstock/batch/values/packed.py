"""A processor's results as bytes for the journal: plain values, each of its own kind."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec.msgpack import Ext

from penstock.batch.values.nanoseconds import NanoDatetime, NanoTime, NanoTimedelta
from penstock.batch.values.plain import plain_row
from penstock.errors import printable

_AS_THEY_ARE = frozenset({type(None), bool, int, float, str, bytes})

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(
    dict[str, Any], ext_hook=lambda code, data: _READ[code](msgspec.msgpack.decode(data))
).decode


def pack(values: Mapping[Any, Any]) -> tuple[bytes, str | None]:
    """A row's values, and what is wrong with those that no output can hold, None in their place."""
    row, wrong = plain_row(values)
    try:
        return _encode(_marked(row)), wrong
    except (OverflowError, UnicodeEncodeError):
        # An integer of more than 64 bits, or a lone surrogate.
        return _encode(_checked(_marked(row))), wrong


def unpack(data: bytes) -> dict[str, Any]:
    """The row that was packed."""
    return _decode(data)


def _marked(value: Any) -> Any:
    kind = type(value)
    if kind in _AS_THEY_ARE:
        return value
    if kind is dict:
        return {
            name: part if type(part) in _AS_THEY_ARE else _marked(part)
            for name, part in value.items()
        }
    if kind is list:
        return (
            value
            if _AS_THEY_ARE.issuperset(map(type, value))
            else [_marked(part) for part in value]
        )
    code, form = _WRITE[kind]
    return Ext(code, _encode(form(value)))


def _checked(value: Any) -> Any:
    match value:
        case str():
            return printable(value)
        case int() if not isinstance(value, bool) and not -(1 << 63) <= value < 1 << 64:
            return Ext(8, _encode(hex(value)))
        case dict():
            return {printable(name): _checked(part) for name, part in value.items()}
        case list():
            return [_checked(part) for part in value]
        case _:
            return value


_Form = Callable[[Any], Any]
_WRITE: dict[type, tuple[int, _Form]] = {
    decimal.Decimal: (0, str),
    datetime.date: (1, datetime.date.isoformat),
    datetime.datetime: (2, datetime.datetime.isoformat),
    datetime.time: (3, datetime.time.isoformat),
    datetime.timedelta: (4, lambda value: (value.days, value.seconds, value.microseconds)),
    NanoDatetime: (5, lambda value: (value.isoformat(timespec="microseconds"), value.nanosecond)),
    NanoTime: (6, lambda value: (value.isoformat("microseconds"), value.nanosecond)),
    NanoTimedelta: (
        7,
        lambda value: (value.days, value.seconds, value.microseconds, value.nanoseconds),
    ),
}
_READ: dict[int, _Form] = {
    0: decimal.Decimal,
    1: datetime.date.fromisoformat,
    2: datetime.datetime.fromisoformat,
    3: datetime.time.fromisoformat,
    4: lambda form: datetime.timedelta(*form),
    5: lambda form: NanoDatetime.of(datetime.datetime.fromisoformat(form[0]), form[1]),
    6: lambda form: NanoTime.of(datetime.time.fromisoformat(form[0]), form[1]),
    7: lambda form: NanoTimedelta.of(datetime.timedelta(*form[:3]), form[3]),
    8: lambda form: int(form, 16),
}
