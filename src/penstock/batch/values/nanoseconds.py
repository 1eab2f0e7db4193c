"""Times finer than a microsecond, which Python's own classes cannot hold.

Each is a value of Python's class with a number of nanoseconds beyond it, shown in its text. A time
that is whole in microseconds is never one of these. Arithmetic is that of Python's class, without
them.
"""

from __future__ import annotations

import datetime
from typing import Any, SupportsIndex

_EPOCH = datetime.datetime(1970, 1, 1)
_NONE = datetime.timedelta()


class _Finer:
    """Equal only where the nanoseconds are equal too."""

    def __eq__(self, other: object) -> bool:
        equal = super().__eq__(other)
        return equal if equal is NotImplemented else equal and _beyond(self) == _beyond(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((super().__hash__(), _beyond(self)))


def _beyond(value: object) -> int:
    """The nanoseconds beyond the microsecond, as pandas names them too."""
    return int(getattr(value, "nanosecond", 0) or getattr(value, "nanoseconds", 0))


class NanoDatetime(_Finer, datetime.datetime):
    """A point in time; `nanosecond` (1 to 999) goes beyond its microsecond."""

    nanosecond: int = 0

    @classmethod
    def of(cls, whole: datetime.datetime, nanosecond: int) -> datetime.datetime:
        """`whole`, so many nanoseconds later."""
        if not nanosecond:
            return whole
        made = cls.combine(whole.date(), whole.timetz())
        made.nanosecond = nanosecond
        return made

    def isoformat(self, sep: str = "T", timespec: str = "auto") -> str:
        if timespec not in ("auto", "nanoseconds") or not self.nanosecond:
            return super().isoformat(sep, timespec)
        text = super().isoformat(sep, "microseconds")
        place = len(sep) + 25
        return f"{text[:place]}{self.nanosecond:03}{text[place:]}"

    def __str__(self) -> str:
        return self.isoformat(" ")

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        return NanoDatetime.of, (
            datetime.datetime.combine(self.date(), self.timetz()),
            self.nanosecond,
        )


class NanoTime(_Finer, datetime.time):
    """A time of day; `nanosecond` (1 to 999) goes beyond its microsecond."""

    nanosecond: int = 0

    @classmethod
    def of(cls, whole: datetime.time, nanosecond: int) -> datetime.time:
        """`whole`, so many nanoseconds later."""
        if not nanosecond:
            return whole
        made = cls(
            whole.hour, whole.minute, whole.second, whole.microsecond, whole.tzinfo, fold=whole.fold
        )
        made.nanosecond = nanosecond
        return made

    def isoformat(self, timespec: str = "auto") -> str:
        if timespec not in ("auto", "nanoseconds") or not self.nanosecond:
            return super().isoformat(timespec)
        text = super().isoformat("microseconds")
        return f"{text[:15]}{self.nanosecond:03}{text[15:]}"

    __str__ = isoformat

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        whole = datetime.time(
            self.hour, self.minute, self.second, self.microsecond, self.tzinfo, fold=self.fold
        )
        return NanoTime.of, (whole, self.nanosecond)


class NanoTimedelta(_Finer, datetime.timedelta):
    """A length of time; `nanoseconds` (1 to 999) go beyond its microseconds."""

    nanoseconds: int = 0

    @classmethod
    def of(cls, whole: datetime.timedelta, nanoseconds: int) -> datetime.timedelta:
        """`whole` and so many nanoseconds."""
        if not nanoseconds:
            return whole
        made = cls(whole.days, whole.seconds, whole.microseconds)
        made.nanoseconds = nanoseconds
        return made

    def __str__(self) -> str:
        return duration_text(total_nanoseconds(self))

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        return NanoTimedelta.of, (
            datetime.timedelta(self.days, self.seconds, self.microseconds),
            self.nanoseconds,
        )


def total_nanoseconds(value: datetime.datetime | datetime.time | datetime.timedelta) -> int:
    """Nanoseconds since 1970 (in UTC where there is a zone), since midnight, or of a length."""
    match value:
        case datetime.timedelta():
            whole = value
        case datetime.time():
            whole = datetime.datetime.combine(_EPOCH, value.replace(tzinfo=None)) - _EPOCH
        case _:
            local = datetime.datetime.combine(value.date(), value.time())
            whole = local - _EPOCH - (value.utcoffset() or _NONE)
    micro = (whole.days * 86400 + whole.seconds) * 1_000_000 + whole.microseconds
    return micro * 1000 + _beyond(value)


def length_of(nanoseconds: int) -> datetime.timedelta | str:
    """The length of time of so many nanoseconds; text where Python has none so long."""
    micro, beyond = divmod(nanoseconds, 1000)
    try:
        return NanoTimedelta.of(datetime.timedelta(microseconds=micro), beyond)
    except OverflowError:
        return duration_text(nanoseconds)


def point_of(nanoseconds: int, zone: datetime.tzinfo | None = None) -> datetime.datetime | str:
    """The point in time `nanoseconds` after 1970, with a zone if one is given; text where Python's
    calendar cannot hold it.
    """
    micro, beyond = divmod(nanoseconds, 1000)
    try:
        point = _EPOCH + datetime.timedelta(microseconds=micro)
        if zone is not None:
            point = point.replace(tzinfo=datetime.UTC).astimezone(zone)
        return NanoDatetime.of(point, beyond)
    except OverflowError:
        return _point_text(nanoseconds) + ("Z" if zone is not None else "")


def time_of(nanoseconds: int) -> datetime.time:
    """The time of day so many nanoseconds after midnight."""
    micro, beyond = divmod(nanoseconds, 1000)
    return NanoTime.of((_EPOCH + datetime.timedelta(microseconds=micro)).time(), beyond)


def date_text(days: int) -> str:
    """The date so many days after 1970-01-01 (Gregorian), of any year, as in -0044-03-15."""
    era, day = divmod(days + 719468, 146097)  # eras of 400 years, which begin on a first of March
    year = (day - day // 1460 + day // 36524 - day // 146096) // 365
    day -= 365 * year + year // 4 - year // 100
    month = (5 * day + 2) // 153
    number = (month + 2) % 12 + 1
    whole = year + era * 400 + (number <= 2)
    sign, first = "-" if whole < 0 else "", (153 * month + 2) // 5
    return f"{sign}{abs(whole):04}-{number:02}-{day - first + 1:02}"


def _point_text(nanoseconds: int) -> str:
    seconds, beyond = divmod(nanoseconds, 10**9)
    days, seconds = divmod(seconds, 86400)
    clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{date_text(days)}T{clock}{_fraction(beyond)}"


def duration_text(nanoseconds: int) -> str:
    """A length of time as ISO 8601 writes it, in days and seconds: P1DT0.5S."""
    sign = "-" if nanoseconds < 0 else ""
    seconds, beyond = divmod(abs(nanoseconds), 10**9)
    days, seconds = divmod(seconds, 86400)
    clock = f"T{seconds}{_fraction(beyond)}S" if seconds or beyond else ""
    return f"{sign}P{f'{days}D' if days or not clock else ''}{clock}"


def _fraction(nanoseconds: int) -> str:
    return f".{nanoseconds:09}".rstrip("0") if nanoseconds else ""
