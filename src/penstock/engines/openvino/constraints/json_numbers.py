"""Grammars of JSON's numbers: integers and decimals, with exact bounds.

A number with a fraction has at most 15 significant digits. So texts compare like the doubles that a
reader parses from them, and a model cannot write digits for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from math import ceil, floor
from typing import Any

from penstock.engines.openvino.constraints.writer import choice

WHOLE_DIGITS = 19
"""Digits of an unbounded integer: as many as 64 bits hold."""
FRACTION_DIGITS = 9
_END = 10**WHOLE_DIGITS - 1
_SMALL = 10**6
"""Numbers below this may have nine decimals; numbers below its square may have three."""


@dataclass(frozen=True)
class Bounds:
    """From `low` to `high`; None means no bound. An open end is excluded."""

    low: Decimal | None = None
    low_open: bool = False
    high: Decimal | None = None
    high_open: bool = False

    @classmethod
    def of(cls, schema: Mapping[str, Any]) -> Bounds:
        """The bounds in a schema. Draft 4 has `exclusiveMinimum` and `exclusiveMaximum` as
        flags.
        """
        lows = [(_decimal(schema.get("minimum")), schema.get("exclusiveMinimum") is True)]
        highs = [(_decimal(schema.get("maximum")), schema.get("exclusiveMaximum") is True)]
        lows.append((_decimal(schema.get("exclusiveMinimum")), True))
        highs.append((_decimal(schema.get("exclusiveMaximum")), True))
        low = max(
            ((value, is_open) for value, is_open in lows if value is not None),
            default=(None, False),
        )
        high = min(
            ((value, not is_open) for value, is_open in highs if value is not None),
            default=(None, True),
        )
        return cls(low[0], low[1], high[0], not high[1])


def _decimal(value: Any) -> Decimal | None:
    return None if isinstance(value, bool) or value is None else Decimal(repr(value))


def integer(bounds: Bounds) -> str | None:
    """The body of the integers within bounds; None if there are none."""
    if bounds == Bounds():
        return f'("0" | "-"? [1-9] [0-9]{{0,{WHOLE_DIGITS - 1}}})'
    low, high = -_END, _END
    if bounds.low is not None:
        low = max(low, floor(bounds.low) + 1 if bounds.low_open else ceil(bounds.low))
    if bounds.high is not None:
        high = min(high, ceil(bounds.high) - 1 if bounds.high_open else floor(bounds.high))
    options = (
        [f'"-" {choice(_whole(max(1, -high), -low))}'] if low < 0 and max(1, -high) <= -low else []
    )
    if high >= max(low, 0):
        options += _whole(max(low, 0), high)
    return choice(options) if options else None


def number(bounds: Bounds, places: int = FRACTION_DIGITS) -> str | None:
    """The body of the numbers within bounds, with at most `places` decimals; None if there are
    none.
    """
    if bounds == Bounds():
        return _any_number(places)
    options: list[str] = []
    low, high = bounds.low, bounds.high
    if low is None or low < 0:
        below = high if high is not None and high < 0 else Decimal(0)
        below_open = bounds.high_open if high is not None and high < 0 else True
        far = -low if low is not None else Decimal(_END)
        options += [
            f'"-" {part}' for part in _decimals(-below, below_open, far, bounds.low_open, places)
        ]
    if high is None or high >= 0:
        least = low if low is not None and low > 0 else Decimal(0)
        least_open = bounds.low_open and low is not None and low >= 0
        most = high if high is not None else Decimal(_END)
        options += _decimals(least, least_open, most, bounds.high_open and high is not None, places)
    return choice(options) if options else None


def _any_number(places: int) -> str:
    whole = f'"0" | [1-9] [0-9]{{0,{WHOLE_DIGITS - 1}}}'
    if places == 0:
        return f'"-"? ({whole})'
    small = f'("0" | [1-9] [0-9]{{0,5}}) "." [0-9]{{1,{min(places, FRACTION_DIGITS)}}}'
    large = f'[1-9] [0-9]{{6,11}} "." [0-9]{{1,{min(places, 3)}}}'
    options = [whole, small, large]
    if places == FRACTION_DIGITS:
        options.append('[1-9] ("." [0-9]{1,9})? [eE] [+\\-]? [1-9] [0-9]?')
    return f'"-"? ({" | ".join(options)})'


def _decimals(
    low: Decimal, low_open: bool, high: Decimal, high_open: bool, places: int
) -> list[str]:
    """Bodies of the non-negative numbers between two bounds."""
    high = min(high, Decimal(_END))
    if low > high or (low == high and (low_open or high_open)):
        return []
    first, last = int(low), int(high)
    low_fraction, high_fraction = _fraction_of(low), _fraction_of(high)
    if first == last:
        return _with_fraction(first, low_fraction, low_open, high_fraction, high_open, places)
    options = _with_fraction(first, low_fraction, low_open, None, False, places)
    options += _with_fraction(last, None, False, high_fraction, high_open, places)
    for start, end, digits in (
        (0, _SMALL, FRACTION_DIGITS),
        (_SMALL, _SMALL**2, 3),
        (_SMALL**2, _END + 1, 0),
    ):
        a, b = max(first + 1, start), min(last, end) - 1
        if a <= b:
            digits = min(digits, places)
            fraction = f' ("." [0-9]{{1,{digits}}})?' if digits else ""
            options.append(f"{choice(_whole(a, b))}{fraction}")
    return options


def _with_fraction(
    whole: int, low: str | None, low_open: bool, high: str | None, high_open: bool, places: int
) -> list[str]:
    """Bodies of the numbers with the integer part `whole` and a fraction within bounds, which are
    given as digits.
    """
    digits = min(places, FRACTION_DIGITS if whole < _SMALL else 3 if whole < _SMALL**2 else 0)
    fractions, bare = _fractions(low, low_open, high, high_open, digits)
    options = [f'"{whole}"'] if bare else []
    if fractions:
        options.append(f'"{whole}." {choice(fractions)}')
    return options


def _fraction_of(value: Decimal) -> str:
    return format(value, "f").partition(".")[2].rstrip("0")


def _fractions(
    low: str | None, low_open: bool, high: str | None, high_open: bool, digits: int
) -> tuple[list[str], bool]:
    """Bodies of the fractions within bounds, and whether leaving the fraction out is within bounds
    too.
    """
    bare = (not low and not (low == "" and low_open)) and not (high == "" and high_open)
    if digits == 0:
        return [], bare
    if low is None and high is None:
        return [f"[0-9]{{1,{digits}}}"], True
    options: list[str] = []
    free = ""
    for digit in "0123456789":
        next_low, next_high = low, high
        if low is not None:
            edge = low[:1] or "0"
            if digit < edge:
                continue
            next_low = low[1:] if digit == edge else None
        if high is not None:
            edge = high[:1] or "0"
            if digit > edge:
                continue
            next_high = high[1:] if digit == edge else None
        if next_low is None and next_high is None:
            free += digit
            continue
        more, ends = _fractions(next_low, low_open, next_high, high_open, digits - 1)
        if more:
            options.append(
                f'"{digit}" {choice(more)}'
                if not ends
                else f'"{digit}" {choice([*more, _NOTHING])}'
            )
        elif ends:
            options.append(f'"{digit}"')
    if free:
        rest = f" [0-9]{{0,{digits - 1}}}" if digits > 1 else ""
        options.append(f"[{free}]{rest}")
    return options, bare


_NOTHING = '""'


def _whole(low: int, high: int) -> list[str]:
    """Bodies of the integers from `low` to `high`, which are at least 0."""
    options: list[str] = []
    full: list[int] = []
    for size in range(len(str(low)), len(str(high)) + 1):
        least = max(low, 10 ** (size - 1) if size > 1 else 0)
        most = min(high, 10**size - 1)
        if size > 1 and least == 10 ** (size - 1) and most == 10**size - 1:
            full.append(size)
        else:
            options += _same_size(str(least), str(most))
    if full:
        options.append(f"[1-9] [0-9]{{{full[0] - 1},{full[-1] - 1}}}")
    return options


def _same_size(low: str, high: str) -> list[str]:
    """Bodies of the digit strings from `low` to `high`, which are equally long."""
    size = len(low)
    if size == 0:
        return [_NOTHING]
    if low == "0" * size and high == "9" * size:
        return [f"[0-9]{{{size}}}"]
    if low[0] == high[0]:
        return [f'"{low[0]}" {part}' for part in _same_size(low[1:], high[1:])]
    options: list[str] = []
    first, last = int(low[0]), int(high[0])
    if low[1:].strip("0"):
        options += [f'"{low[0]}" {part}' for part in _same_size(low[1:], "9" * (size - 1))]
        first += 1
    if high[1:].strip("9"):
        options += [f'"{high[0]}" {part}' for part in _same_size("0" * (size - 1), high[1:])]
        last -= 1
    if first <= last:
        rest = f" [0-9]{{{size - 1}}}" if size > 1 else ""
        options.append(f"[{first}-{last}]{rest}")
    return options
