"""Whether a value that stands in an output is the one that was given, by the table of
docs/batch.md.

Written without the code that it judges: text is read back with the standard library and NumPy.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import decimal
import enum
import json
import math
import pathlib
import re
import uuid
from fractions import Fraction
from typing import Any

import numpy as np

_EPOCH = datetime.datetime(1970, 1, 1)


@dataclasses.dataclass(frozen=True)
class Ticks:
    """A time as a count of nanoseconds: an "instant", a "clock" without a zone, a "day", a "length"
    or a "time".
    """

    kind: str
    count: int


def agrees(found: Any, given: Any) -> bool:
    """Whether `found` is `given`, or the text that stands for it."""
    given = simple(given)
    if given is None:
        return found is None or found == ""  # which CSV does not tell apart
    if isinstance(given, str):
        return bool(simple(found) == given)
    if isinstance(given, bool):
        return found is given or found == json.dumps(given)
    if isinstance(given, Ticks):
        return ticks(found, given.kind) == given
    if isinstance(given, bytes):
        return (
            base64.b64decode(found, validate=True) if isinstance(found, str) else found
        ) == given
    if isinstance(given, int | float | decimal.Decimal | Fraction):
        return not isinstance(found, bool | None) and _same_number(found, given)
    if isinstance(found, str):
        found = json.loads(found)
    if isinstance(given, list):
        return (
            isinstance(found, list | tuple)
            and len(found) == len(given)
            and all(map(agrees, found, given))
        )
    assert isinstance(given, dict), given
    if not isinstance(found, dict):
        return False
    absent = [found[name] for name in found.keys() - given.keys()]
    return all(agrees(found.get(name), part) for name, part in given.items()) and not any(
        map(filled, absent)
    )


def filled(value: Any) -> bool:
    return value is not None and value != ""


def simple(value: Any) -> Any:
    """The value in few kinds."""
    if isinstance(value, enum.Enum):
        return simple(value.value)
    if value is None or value is np.ma.masked or type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, np.datetime64 | np.timedelta64):
        if np.isnat(value):
            return None
        kind = "length" if isinstance(value, np.timedelta64) else "clock"
        unit = "m8[ns]" if kind == "length" else "M8[ns]"
        if np.datetime_data(value.dtype)[0] == "D" and kind == "clock":
            kind = "day"
        return Ticks(kind, int(value.astype(unit).astype("int64")))
    if isinstance(value, np.ndarray) and value.dtype.kind in "mM":
        return [simple(part) for part in value]
    if isinstance(value, np.ndarray | np.generic) and not isinstance(value, str | bytes | float):
        return simple(value.tolist())
    if isinstance(value, uuid.UUID | pathlib.PurePath):
        return str(value)
    if isinstance(value, str):
        return str(value).encode(errors="backslashreplace").decode()
    if isinstance(value, complex):
        return str(value).strip("()")
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta):
        return _of_python(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, Ticks):
        return {
            field.name: simple(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, set | frozenset):
        return [simple(part) for part in sorted(value)]
    if isinstance(value, list | tuple):
        return [simple(part) for part in value]
    if isinstance(value, dict):
        return {
            name if isinstance(name, str) else json.dumps(name): simple(part)
            for name, part in value.items()
        }
    return value


def ticks(found: Any, kind: str) -> Ticks | None:
    """The time that a found value is, or that its text tells."""
    if not isinstance(found, str):
        return simple(found) if found is not None else None
    if kind == "length":
        sign, days, seconds = _parts(r"(-?)P(?:(\d+)D)?(?:T([\d.]+)S)?", found)
        length = Fraction(days or 0) * 86400 + Fraction(seconds or 0)
        return Ticks(kind, int((-length if sign else length) * 10**9))
    if kind == "time":
        hour, minute, second = found.split(":")
        return Ticks(
            kind, int((Fraction(hour) * 3600 + Fraction(minute) * 60 + Fraction(second)) * 10**9)
        )
    stamp, zone = (
        _parts(r"(.*?)(Z|[+-]\d\d:\d\d(?::[\d.]+)?)?", found) if kind == "instant" else (found, "")
    )
    if (kind == "day" and "T" in stamp) or (kind == "instant" and not zone):
        return None
    whole, _, fraction = stamp.partition(".")
    count = int(np.datetime64(whole, "s").astype("int64")) * 10**9 + int(
        fraction.ljust(9, "0") or 0
    )
    if zone and zone != "Z":
        sizes = zip(zone[1:].split(":"), (3600, 60, 1), strict=False)
        offset = sum((Fraction(part) * size for part, size in sizes), Fraction(0))
        count -= int((-offset if zone[0] == "-" else offset) * 10**9)
    return Ticks(kind, count)


def _parts(pattern: str, text: str) -> tuple[Any, ...]:
    found = re.fullmatch(pattern, text)
    assert found is not None, text
    return found.groups()


def _of_python(value: datetime.date | datetime.time | datetime.timedelta) -> Ticks:
    beyond = getattr(value, "nanosecond", 0) + getattr(value, "nanoseconds", 0)
    if isinstance(value, datetime.timedelta):
        return Ticks("length", _nano(value) + beyond)
    if isinstance(value, datetime.time):
        clock = datetime.timedelta(0, value.second, value.microsecond, 0, value.minute, value.hour)
        return Ticks("time", _nano(clock) + beyond)
    if not isinstance(value, datetime.datetime):
        return Ticks("day", (value - _EPOCH.date()).days * 86400 * 10**9)
    local = datetime.datetime(*value.timetuple()[:6], value.microsecond)
    if value.tzinfo is None:
        return Ticks("clock", _nano(local - _EPOCH) + beyond)
    return Ticks(
        "instant", _nano(local - _EPOCH) - _nano(value.utcoffset() or datetime.timedelta()) + beyond
    )


def _nano(value: datetime.timedelta) -> int:
    return ((value.days * 86400 + value.seconds) * 10**6 + value.microseconds) * 1000


def _same_number(found: Any, given: Any) -> bool:
    if isinstance(given, decimal.Decimal) and not given.is_finite():
        return str(found) == str(given)
    if not math.isfinite(given):
        return str(float(found)) == str(float(given))
    if isinstance(given, float):
        return float(found) == given
    exact = Fraction(found) if not isinstance(found, float) or math.isfinite(found) else None
    return exact == Fraction(given)
