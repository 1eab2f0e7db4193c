"""Grammars of JSON's numbers and strings.

Numbers have exact bounds. A number with a fraction has at most 15 significant digits. So texts
compare like the doubles that a reader parses from them, and a model cannot write digits for ever.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from math import ceil, floor
from typing import Any

from penstock.engines.openvino.constraints.json_schemas import FORMATS, unheld
from penstock.engines.openvino.constraints.regex import (
    Choice,
    Node,
    RegexWriter,
    Repeat,
    Sequence,
    lengths,
    parse,
)
from penstock.engines.openvino.constraints.writer import (
    ALL,
    WIDE,
    Grammar,
    Impossible,
    char_class,
    choice,
    literal,
    without,
)
from penstock.errors import RequestError
from penstock.openai.json_schema import EMAIL, without_look_ahead

_PLAIN_RANGES = without(ALL, [(0, 0x1F), (34, 34), (92, 92)])
_PLAIN = char_class(_PLAIN_RANGES)
"""Characters that a JSON string holds unescaped."""
_QUOTE, _BACKSLASH, _NOTHING = literal('"'), literal("\\"), literal("")
_ESCAPE = r'["\\bfnrt] | "u000" [0-7be] | "u001" [0-9a-f]'
"""What follows a backslash: the shortest escapes of the characters that JSON must escape."""
_NAME_PART = 200
"""How many first characters of names are compared."""
WHOLE_DIGITS = 19
"""Digits of an unbounded integer: as many as 64 bits hold."""
FRACTION_DIGITS = 9
_FEWEST = 12
"""A pattern's counts become no smaller than this for a `maxLength`: words would be cut off."""
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
        """The bounds in a schema. In draft 4 the exclusive bounds are flags."""
        lows = [
            (_decimal(schema.get("minimum")), schema.get("exclusiveMinimum") is True),
            (_decimal(schema.get("exclusiveMinimum")), True),
        ]
        highs = [
            (_decimal(schema.get("maximum")), schema.get("exclusiveMaximum") is not True),
            (_decimal(schema.get("exclusiveMaximum")), False),
        ]
        low, low_open = max((x for x in lows if x[0] is not None), default=(None, False))
        high, high_closed = min((x for x in highs if x[0] is not None), default=(None, True))
        return cls(low, low_open, high, not high_closed)


def _decimal(value: Any) -> Decimal | None:
    return None if isinstance(value, bool) or value is None else Decimal(repr(value))


def number_body(kind: str, schema: Mapping[str, Any], checked: bool) -> str:
    """The body of the integers or numbers that fit a schema. Raises `Impossible` if there are
    none, and `RequestError` for a `multipleOf` that no grammar can enforce, unless `checked`.
    """
    places = 0 if kind == "integer" else FRACTION_DIGITS
    step = schema.get("multipleOf")
    if step is not None and not checked:
        _, digits, exponent = Decimal(repr(step)).normalize().as_tuple()
        if digits != (1,) or int(exponent) > 0:
            raise unheld("multipleOf")
        places = min(places, -int(exponent))
    bounds = Bounds.of(schema)
    body = integer(bounds) if places == 0 else number(bounds, places)
    if body is None and (bounds.low or 0) <= _END and (bounds.high or 0) >= -_END:
        raise Impossible
    if body is None:
        raise RequestError(
            f"the JSON schema asks for a number of more than {WHOLE_DIGITS} digits, which the"
            " openvino engine does not write; give a smaller bound",
            param="response_format",
        )
    return body


def integer(bounds: Bounds) -> str | None:
    """The body of the integers within bounds; None if there are none."""
    if bounds == Bounds():
        return f'("0" | "-"? [1-9] [0-9]{{0,{WHOLE_DIGITS - 1}}})'
    low, high = -_END, _END
    if bounds.low is not None:
        low = max(low, floor(bounds.low) + 1 if bounds.low_open else ceil(bounds.low))
    if bounds.high is not None:
        high = min(high, ceil(bounds.high) - 1 if bounds.high_open else floor(bounds.high))
    least = max(1, -high)
    options = [f'"-" {choice(_whole(least, -low))}'] if least <= -low else []
    if high >= max(low, 0):
        options += _whole(max(low, 0), high)
    return choice(options) if options else None


def number(bounds: Bounds, places: int = FRACTION_DIGITS) -> str | None:
    """The body of the numbers within bounds with at most `places` decimals; None if none fit."""
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
    """Bodies of the numbers with the integer part `whole` and a fraction between two, as digits."""
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
    """Bodies of the fractions within bounds, and whether no fraction at all is within them."""
    bare = (not low and not (low == "" and low_open)) and not (high == "" and high_open)
    if digits == 0:
        return [], bare
    if low is None and high is None:
        return [f"[0-9]{{1,{digits}}}"], True
    options: list[str] = []
    free = ""
    first = "0" if low is None else low[:1] or "0"
    last = "9" if high is None else high[:1] or "0"
    for digit in "0123456789"[int(first) : int(last) + 1]:
        next_low = low[1:] if low is not None and digit == first else None
        next_high = high[1:] if high is not None and digit == last else None
        if next_low is None and next_high is None:
            free += digit
            continue
        more, ends = _fractions(next_low, low_open, next_high, high_open, digits - 1)
        if more:
            options.append(f'"{digit}" {choice([*more, _NOTHING] if ends else more)}')
        elif ends:
            options.append(f'"{digit}"')
    if free:
        rest = f" [0-9]{{0,{digits - 1}}}" if digits > 1 else ""
        options.append(f"[{free}]{rest}")
    return options, bare


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


class Strings:
    """Writes JSON strings into a grammar. `checked`: the answers are validated later."""

    def __init__(self, grammar: Grammar, checked: bool) -> None:
        self._grammar = grammar
        self._checked = checked
        self._pattern = RegexWriter(grammar, in_json=True)

    def body(self, schema: Mapping[str, Any]) -> str:
        """The body of the strings that fit a schema. Raises `Impossible` if there are none."""
        low, high = schema.get("minLength", 0), schema.get("maxLength")
        if high is not None and high < low:
            raise Impossible
        pattern, form = without_look_ahead(schema.get("pattern", "")), schema.get("format", "")
        given = f"the format '{form}'"
        if pattern == EMAIL:  # the format's usual form has a bound, and may be shortened
            pattern, form, given = "", "email", "a 'pattern' of email addresses"
        if pattern:
            return self._grammar.rule(self.matching(self._cut(parse(pattern), low, high)))
        if form in FORMATS:
            try:
                node = _with_format(parse(FORMATS[form]), given, low, high)
                return self._grammar.rule(self.matching(node))
            except RequestError:
                if not self._checked:
                    raise
        if low == 0 and high is None:
            return self.any()
        return self._grammar.rule(f"{_QUOTE} {self._characters(low, high)}")

    def any(self) -> str:
        return self._grammar.rule(f"{_QUOTE} {self._rest}")

    def any_but(self, names: list[str]) -> str:
        """Any string except `names`."""
        ends = [json_text(name)[1:][:_NAME_PART] for name in names]
        return f"{_QUOTE} {self._tails(ends, self._rest) if ends else self._rest}"

    def matching(self, node: Node) -> str:
        """A string that matches a regular expression as a whole."""
        return f"{_QUOTE} {self._pattern.body(node)} {_QUOTE}"

    @cached_property
    def _rest(self) -> str:
        """The rest of any string, after its first quotation mark."""
        return self._characters(0, None)

    def _characters(self, low: int, high: int | None) -> str:
        forms = (_PLAIN, f"{_BACKSLASH} {self._grammar.rule(_ESCAPE)}")
        return self._grammar.characters(forms, low, high, self._grammar.rule(_QUOTE))

    def _cut(self, node: Node, low: int, high: int | None) -> Node:
        """A pattern, restricted to texts of `low` to `high` characters."""
        least, most = lengths(node)
        if least >= low and (high is None or (most is not None and most <= high)):
            return node
        if (most is not None and most < low) or (high is not None and least > high):
            raise Impossible
        parts = node.parts if isinstance(node, Sequence) else (node,)
        for at, part in enumerate(parts):
            inner_least, inner_most = lengths(Sequence(parts[:at] + parts[at + 1 :]))
            if not isinstance(part, Repeat) or lengths(part.item) != (1, 1) or inner_most is None:
                continue
            top = part.high if high is None else min(high - inner_most, part.high or high)
            bottom = max(part.low, low - inner_least)
            if top is not None and inner_most == inner_least and bottom > top:
                raise Impossible
            if top is None or inner_most == inner_least or top >= max(bottom, _FEWEST):
                return Sequence((*parts[:at], Repeat(part.item, bottom, top), *parts[at + 1 :]))
        if self._checked:
            return node
        if least >= low and high is not None:
            shorter = _shortened(_recounted(node, None, high), high, _FEWEST)
            if shorter is not None:
                return shorter
        raise RequestError(
            "the JSON schema has a 'pattern' together with a length that no grammar can hold; write"
            " the length into the pattern",
            param="response_format",
        )

    def _tails(self, texts: list[str], rest: str) -> str:
        """A text that differs from all `texts` (which have their end quotes), and goes on as
        `rest`.
        """
        heads = sorted({text[0] for text in texts})
        taken = [(ord(head), ord(head)) for head in heads]
        options = [] if '"' in heads else [_QUOTE]
        options.append(f"{char_class(without(_PLAIN_RANGES, [*taken, *WIDE]))} {rest}")
        options.append(self._grammar.rule(f"{char_class(without(WIDE, taken))} {rest}"))
        for head in heads:
            after = [text[1:] for text in texts if text[0] == head]
            if head not in '"\\' and all(after):
                options.append(f"{literal(head)} {self._tails(after, rest)}")
        return self._grammar.rule(" | ".join(options))


def _shortened(node: Node, high: int, fewest: int) -> Node | None:
    """A pattern with smaller counts, so that no text is longer than `high`. None if they would have
    to become smaller than `fewest`.
    """
    while (most := lengths(node)[1]) is None or most > high:
        largest = _largest_count(node)
        if not largest or largest * 3 // 4 < fewest:
            return None
        node = _recounted(node, largest, largest * 3 // 4)
    return node


def _with_format(node: Node, given: str, low: int, high: int | None) -> Node:
    if lengths(node)[0] < low:
        raise _length_with(given, "minLength")
    shorter = node if high is None else _shortened(node, high, 0)
    if shorter is None:
        raise _length_with(given, "maxLength")
    return shorter


def _length_with(given: str, keyword: str) -> RequestError:
    return RequestError(
        f"the JSON schema has a string with {given} and a '{keyword}' that the openvino engine"
        " cannot hold together; leave one of them out",
        param="response_format",
    )


def _largest_count(node: Node) -> int:
    """The largest count of a repetition that can be reduced; 0 if there is none."""
    match node:
        case Sequence(parts) | Choice(parts):
            return max(map(_largest_count, parts), default=0)
        case Repeat(item, low, high) if high:
            return max(high if high > low else 0, _largest_count(item))
    return 0


def _recounted(node: Node, count: int | None, other: int) -> Node:
    """Repetitions that count to `count` count to `other` instead, or to what they need."""
    match node:
        case Sequence(parts):
            return Sequence(tuple(_recounted(part, count, other) for part in parts))
        case Choice(options):
            return Choice(tuple(_recounted(option, count, other) for option in options))
        case Repeat(item, low, high):
            item = _recounted(item, count, other)
            return Repeat(item, low, max(low, other) if high == count else high)
    return node


def json_text(value: Any) -> str:
    """A value as compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
