"""What a Python value becomes in an output, whatever its form.

First it becomes a *plain* value (`plain`): None, bool, int, float, text, bytes, Decimal, date,
datetime, time or timedelta (or one with nanoseconds), a list of such, or a dict of such by names.
That is what Arrow holds. JSON and CSV hold fewer kinds (`for_json`): there a number that is not
finite and a time are text. `text` is the one text form of any value. `docs/batch.md` has the table.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import math
import os
import re
import sys
import types
from collections import deque
from collections.abc import Iterable, Mapping, Sequence, Set as AbstractSet, ValuesView
from io import BytesIO
from typing import Any

import msgspec

from penstock.batch.values.nanoseconds import (
    NanoDatetime,
    NanoTime,
    NanoTimedelta,
    duration_text,
    length_of,
    point_of,
    total_nanoseconds,
)
from penstock.errors import printable

Plain = Any

_JSON = frozenset({type(None), bool, int, str})
_NANO = (NanoDatetime, NanoTime, NanoTimedelta)
LEAVES = _JSON | {float, bytes, decimal.Decimal, *_NANO}
LEAVES |= {datetime.date, datetime.datetime, datetime.time, datetime.timedelta}
_TIMES = frozenset({*_NANO, datetime.datetime, datetime.time})
_ONLY_TEXT = frozenset({str})
_ONLY_FLOAT = frozenset({float})
_LONG = 14_000
"""Bits of the longest integer that is written in decimal: the time grows with their square."""
_UNLIMITED = {math.inf: "Infinity", -math.inf: "-Infinity"}
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}")

_encode = msgspec.json.Encoder().encode


class UnstorableError(ValueError):
    """A value that no output can hold: one that holds itself, or has no content to write down."""


def plain(value: Any) -> Plain:
    """The plain value. Raises `UnstorableError`."""
    return _whole(value, json=False)


def for_json(value: Any) -> Any:
    """What msgspec's JSON encoder writes without loss. Raises `UnstorableError`."""
    return _whole(value, json=True)


def text(value: Any) -> str | None:
    """Text as it is, anything else as the JSON that stands for it; a text in JSON without its
    quotes. None stays None.

    Raises `UnstorableError`.
    """
    ready = value if value is None or type(value) is str else for_json(value)
    if ready is None or type(ready) is str:
        return ready if ready is None else printable(ready)
    try:
        made = _encode(ready).decode()
    except ValueError:
        made = _encode(encodable(ready)).decode()
    return made[1:-1] if made.startswith('"') else made


def json_line(values: Mapping[str, Any], *, ready: bool = False) -> bytes:
    """One output row as a line of JSON. `ready`: its values are as `for_json` makes them.

    Raises `UnstorableError`.
    """
    if ready:
        try:
            return _encode(values) + b"\n"
        except (ValueError, TypeError):
            pass
    made = {
        name: value if type(value) in _JSON else for_json(value) for name, value in values.items()
    }
    try:
        return _encode(made) + b"\n"
    except (ValueError, TypeError):
        # A lone surrogate, a very long number, or a name that is no text.
        return _encode(encodable(for_json(made))) + b"\n"


def plain_row(
    values: Mapping[Any, Any], *, json: bool = False
) -> tuple[dict[str, Plain], str | None]:
    """A row's plain values, and what is wrong with values that no output can hold: None stands in
    their place.

    `json`: as `for_json` makes them.
    """
    done = _JSON if json else LEAVES
    row: dict[str, Plain] = {}
    wrong = None
    for name, value in values.items():
        try:
            key = name if type(name) is str else key_text(name)
            if key in row:
                raise UnstorableError("another column has the same name as text")
            row[key] = value if type(value) in done else _whole(value, json=json)
        except UnstorableError as error:
            wrong = wrong or f"column '{name}' cannot be stored: {error}"
            row.setdefault(str(name), None)
    return row, wrong


def _is_missing(value: Any) -> bool:
    """Whether it is a missing value of pandas or NumPy: NA, NaT, or a masked one."""
    kind = type(value)
    return kind.__name__ in ("NAType", "NaTType", "MaskedConstant") and kind.__module__.startswith(
        ("pandas", "numpy")
    )


def _whole(value: Any, *, json: bool) -> Any:
    try:
        return _walk(value, json)
    except UnstorableError:
        raise
    except RecursionError:
        raise UnstorableError("it holds itself, or is nested too deeply") from None
    except Exception as error:  # values of the caller's own types can fail in any way
        raise UnstorableError(f"looking into it failed with {type(error).__name__}") from None


def _walk(value: Any, json: bool) -> Any:
    kind = type(value)
    if kind in _JSON:
        return value
    if kind is float:
        return value if not json or math.isfinite(value) else _UNLIMITED.get(value, "NaN")
    if kind is dict:
        if _ONLY_TEXT.issuperset(map(type, value)):
            return {
                name: part if type(part) in _JSON else _walk(part, json)
                for name, part in value.items()
            }
        made: dict[str, Any] = {}
        for name, part in value.items():
            key = key_text(name)
            if key in made:
                raise UnstorableError(f"two of its keys read '{key}' as text")
            made[key] = _walk(part, json)
        return made
    if kind is list:
        kinds = set(map(type, value))
        if _JSON.issuperset(kinds) or (
            kinds <= _ONLY_FLOAT and (not json or all(map(math.isfinite, value)))
        ):
            return value
        return [_walk(part, json) for part in value]
    if kind in LEAVES:
        return _time_text(value) if json and kind in _TIMES else value
    return _walk(_known(value), json)


def _known(value: Any) -> Any:
    """A value of some other class as one that is plain, or nearer to it."""
    if _is_missing(value):
        return None
    match value:
        case enum.Enum():
            return value.value
        case str():
            return str.__str__(value)
        case int():
            return int(value)
        case float():
            return float(value)
        case bytes() | bytearray() | memoryview():
            return bytes(value)
        case datetime.date() | datetime.time() | datetime.timedelta():
            return _time(value)
        case Mapping():
            return dict(value)
        case set() | frozenset():
            return _in_order(value)
        case Sequence() | AbstractSet() | deque() | ValuesView():
            return list(value)
        case decimal.Decimal():
            return decimal.Decimal(value)
        case os.PathLike():
            return os.fsdecode(value)
        case complex():
            return str(complex(value)).strip("()")
        case type():
            return _foreign(value)
        case msgspec.Struct():
            return {name: getattr(value, name) for name in value.__struct_fields__}
        case types.SimpleNamespace():
            return dict(vars(value))
        case _ if dataclasses.is_dataclass(value):
            return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        case _ if hasattr(type(value), "__attrs_attrs__"):
            return {field.name: getattr(value, field.name) for field in value.__attrs_attrs__}
        case _ if hasattr(type(value), "model_dump"):
            return dict(value.model_dump())
        case _:
            return _foreign(value)


def _time_text(value: Any) -> Any:
    """The ISO text of a time that the JSON encoder would not write in full; else the time
    itself.
    """
    if isinstance(value, NanoTimedelta):
        return duration_text(total_nanoseconds(value))
    if value.tzinfo is not None:
        offset = value.utcoffset()
        if offset is None:  # a time of day, in a zone whose offset depends on the day
            return f"{value.isoformat()}[{value.tzinfo}]"
        if offset.seconds % 60 or offset.microseconds:
            return value.isoformat()
    return value.isoformat() if type(value) in _NANO else value


def _time(value: datetime.date | datetime.time | datetime.timedelta) -> Any:
    """A time of a subclass, such as pandas', as Python's own, with its nanoseconds."""
    if isinstance(value, datetime.datetime):
        point = datetime.datetime.combine(value.date(), value.timetz())
        return NanoDatetime.of(point, getattr(value, "nanosecond", 0))
    if isinstance(value, datetime.date):
        return datetime.date(value.year, value.month, value.day)
    if isinstance(value, datetime.time):
        return datetime.time(
            value.hour, value.minute, value.second, value.microsecond, value.tzinfo, fold=value.fold
        )
    whole = datetime.timedelta(value.days, value.seconds, value.microseconds)
    return NanoTimedelta.of(whole, getattr(value, "nanoseconds", 0))


def _foreign(value: Any) -> Any:
    """A value of NumPy, pandas, Polars, Arrow or another array library; of others, the text."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic):
        return _numpy(numpy, value)
    library = type(value).__module__.partition(".")[0]
    if library == "pyarrow":
        from penstock.batch.values.arrow import of_arrow

        return of_arrow(value)
    if library == "PIL" and hasattr(value, "getbands"):
        return _png(value)
    if library in ("pandas", "polars") and hasattr(value, "columns"):
        return value.to_dict("records") if library == "pandas" else value.to_dicts()
    for name in ("tolist", "to_list"):
        if callable(getattr(value, name, None)):
            made = getattr(value, name)()
            if made is not value:
                return made
    try:
        shown = str(value)
    except Exception as error:
        raise UnstorableError(
            f"the text of a value of type {_class(value)} fails with {type(error).__name__}"
        ) from None
    if _ADDRESS.search(shown):
        raise UnstorableError(f"a value of type {_class(value)} has no text that tells its content")
    return shown


def _png(image: Any) -> bytes:
    """An image of Pillow's as the bytes of a PNG file. Raises `UnstorableError`."""
    file = BytesIO()
    if image.mode == "F":
        raise UnstorableError("PNG holds no pixels that are floats; give bytes of a TIFF file")
    if image.mode.startswith("I"):
        image = image.convert("I")
        if not 0 <= min(image.getextrema()) <= max(image.getextrema()) < 1 << 16:
            raise UnstorableError("PNG holds pixels of 16 bits; give bytes of a TIFF file")
        image = image.convert("I;16")
    elif image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):  # PNG knows no others
        image = image.convert("RGBA" if "A" in image.getbands() else "RGB")
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _numpy(numpy: Any, value: Any) -> Any:
    """A scalar or array of NumPy. Masked elements are None, records dicts."""
    kind = value.dtype.kind
    if isinstance(value, numpy.ma.MaskedArray):
        return _unmasked(numpy.asarray(value.data), numpy.asarray(numpy.ma.getmaskarray(value)))
    if isinstance(value, numpy.ndarray):
        if value.ndim == 0:
            return value[()]
        quick = kind in "USOT" or (kind in "biuf" and value.dtype.itemsize <= 8)
        return value.tolist() if quick else list(value)
    if value.dtype.names is not None:
        return {name: value[name] for name in value.dtype.names}
    if kind in "mM":
        return _numpy_time(numpy, value)
    if kind == "V":
        return bytes(value)
    made = value.item()
    if not isinstance(made, numpy.generic):
        return made
    near = complex(made) if kind == "c" else float(made)  # a number longer than Python's
    return near if near == made or near != near else str(made).strip("()")


def _unmasked(part: Any, hidden: Any) -> Any:
    if part.ndim:
        return [_unmasked(*pair) for pair in zip(part, hidden, strict=True)]
    if part.dtype.names is not None:
        return {name: _unmasked(part[name], hidden[name]) for name in part.dtype.names}
    return None if hidden else part


def _numpy_time(numpy: Any, value: Any) -> Any:
    if numpy.isnat(value):
        return None
    unit, step = numpy.datetime_data(value.dtype)
    if value.dtype.kind == "m":
        if unit == "generic":
            return int(value.astype("int64"))
        if unit in ("Y", "M"):  # which have no one length
            return f"P{int(value.astype('int64')) * step}{unit}"
        exact = _ticks(value, unit, step)
        return str(value) if exact is None else length_of(exact)
    made = value.item()
    if isinstance(made, datetime.date):
        return made
    exact = _ticks(value, unit, step) if unit in ("ns", *_FINER) else None
    point = None if exact is None else point_of(exact)
    return point if isinstance(point, datetime.datetime) else str(value)


NANOSECONDS = {
    **{"W": 604800 * 10**9, "D": 86400 * 10**9, "h": 3600 * 10**9, "m": 60 * 10**9},
    **{"s": 10**9, "ms": 10**6, "us": 1000, "ns": 1},
}
"""The nanoseconds of each unit of time that NumPy or Arrow has."""
_FINER = {"ps": 1000, "fs": 10**6, "as": 10**9}


def _ticks(value: Any, unit: str, step: int) -> int | None:
    """The nanoseconds of a time, None if they are not whole."""
    count = int(value.astype("int64")) * step
    if unit in NANOSECONDS:
        return count * NANOSECONDS[unit]
    whole, rest = divmod(count, _FINER[unit])
    return whole if not rest else None


def key_text(value: Any) -> str:
    """The text of a key, or of the name of a column: None is null and True true, as in JSON."""
    if type(value) is str:
        return value
    name = text(value)
    return "null" if name is None else name


def _in_order(values: Iterable[Any]) -> list[Any]:
    """The elements of a set in an order that is the same in each process."""
    listed = list(values)
    kinds = set(map(type, listed))
    if len(kinds) == 1 and kinds <= LEAVES:
        return sorted(listed)
    return sorted(listed, key=lambda value: (type(value).__qualname__, text(value) or ""))


def encodable(value: Any) -> Any:
    """What `for_json` made, with lone surrogates and very long integers as text."""
    match value:
        case str():
            return printable(value)
        case dict():
            return {printable(key): encodable(part) for key, part in value.items()}
        case list():
            return [encodable(part) for part in value]
        case int() if value.bit_length() > _LONG:
            return hex(value)
        case _:
            return value


def _class(value: Any) -> str:
    kind = type(value)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
