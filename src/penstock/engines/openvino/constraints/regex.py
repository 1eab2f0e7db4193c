"""Regular expressions of ECMAScript and JSON Schema, as far as a grammar can express them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from string import hexdigits

from penstock.engines.openvino.constraints.writer import (
    ALL,
    MAX_COUNT,
    NOTHING,
    TABLES,
    Grammar,
    Ranges,
    char_class,
    choice,
    literal,
    normal,
    too_large,
    without,
)
from penstock.errors import RequestError
from penstock.openai.json_schema import CLASSES, CONTROLS

MAX_DEPTH = 50
MAX_REPEATS = 20_000
"""Limit on the product of the counts of nested repetitions."""
_FEW = 16
"""A class of at most this many characters needs no table: few tokens begin with them."""
_UNABLE = {
    **dict.fromkeys("bB", "a word boundary"),
    **dict.fromkeys("pP", "a Unicode property"),
    "k": "a back-reference",
}
"""Escapes that no grammar can express."""
_LINE_ENDS: Ranges = [(10, 10), (13, 13), (0x2028, 0x2029)]


@dataclass(frozen=True)
class Chars:
    """One character of a class, as sorted ranges of code points."""

    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Sequence:
    """Parts that match one after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Choice:
    """Alternatives, of which one matches."""

    options: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    """`low` to `high` repetitions of a node; `high` None means unbounded."""

    item: Node
    low: int
    high: int | None


Node = Chars | Sequence | Choice | Repeat


def parse(pattern: str) -> Node:
    """Parse an expression that must match the whole text; `^` and `$` may stand at its ends, also
    within groups.

    Raises `RequestError` for a damaged expression, and for a construct that no grammar can express,
    by name.
    """
    return _Parser(pattern).whole()


def lengths(node: Node) -> tuple[int, int | None]:
    """The least and the largest number of characters; None means unbounded."""
    match node:
        case Chars():
            return 1, 1
        case Sequence(parts):
            lows, highs = _bounds(parts)
            return sum(lows), None if highs is None else sum(highs)
        case Choice(options):
            lows, highs = _bounds(options)
            return min(lows), None if highs is None else max(highs)
        case Repeat(item, low, high):
            least, most = lengths(item)
            if most == 0:
                return 0, 0
            return low * least, None if high is None or most is None else high * most


def _bounds(nodes: tuple[Node, ...]) -> tuple[list[int], list[int] | None]:
    """The least lengths, and the largest ones; None where one of these is unbounded."""
    lows, highs = zip(*map(lengths, nodes), strict=True) if nodes else ((), ())
    return list(lows), None if None in highs else list(highs)


class RegexWriter:
    """Writes expressions into a grammar; with `in_json` as the inside of a JSON string."""

    def __init__(self, grammar: Grammar, in_json: bool) -> None:
        self._grammar = grammar
        self._in_json = in_json

    def body(self, node: Node) -> str:
        """The expression as an EBNF body."""
        match node:
            case Chars(ranges):
                return choice(self._forms(list(ranges)))
            case Sequence(parts):
                return " ".join(self._parts(parts)) or NOTHING
            case Choice(options):
                texts = [(option, self._text(option)) for option in options]
                others = [self.body(option) for option, text in texts if text is None]
                fixed = [text for _, text in texts if text is not None]
                return choice([*([self._grammar.words(fixed)] if fixed else []), *others])
            case Repeat(item, low, high):
                return self._repeat(item, low, high)

    def _parts(self, parts: tuple[Node, ...]) -> Iterator[str]:
        """The bodies of a sequence; adjacent fixed characters form one literal."""
        for fixed, group in groupby(parts, lambda part: self._text(part) is not None):
            if fixed:
                yield literal("".join(str(self._text(part)) for part in group))
            else:
                yield from map(self.body, group)

    def _text(self, node: Node) -> str | None:
        """The only text that a node matches, in its source form; None if it matches several."""
        match node:
            case Chars(((low, high),)) if low == high:
                char = chr(low)
                return json.dumps(char, ensure_ascii=False)[1:-1] if self._in_json else char
            case Sequence(parts):
                texts = [self._text(part) for part in parts]
                return None if None in texts else "".join(map(str, texts))
        return None

    def _repeat(self, item: Node, low: int, high: int | None) -> str:
        if not isinstance(item, Chars):
            # The engine copies a plain body for each count, and builds a table of the whole
            # vocabulary for each copy. The empty rule at the end prevents the copies.
            body = f"{self.body(item)} {self._grammar.rule(NOTHING)}"
            return self._grammar.repeat(self._grammar.rule(body), low, high)
        forms = self._forms(list(item.ranges))
        if len(forms) == 1 and high is None and low < 2:
            return f"{forms[0]}{'*+'[low]}"
        few = sum(last - first + 1 for first, last in item.ranges) <= _FEW
        if len(forms) == 1 and few and high is not None and high <= TABLES:
            return f"{forms[0]}{{{low},{high}}}"
        return self._grammar.characters(forms, low, high, self._grammar.rule(NOTHING))

    def _forms(self, ranges: Ranges) -> list[str]:
        """The forms of one of these characters: a class, and in JSON the escapes."""
        if not self._in_json:
            return [char_class(ranges)]
        plain = without(ranges, [(0, 0x1F), (34, 34), (92, 92)])
        escapes = [
            text
            for point, text in _ESCAPES.items()
            if any(low <= point <= high for low, high in ranges)
        ]
        return [char_class(plain), *escapes] if plain else escapes


_SHORT = {8: "b", 9: "t", 10: "n", 12: "f", 13: "r", 34: '\\"', 92: "\\\\"}
_ESCAPES = {
    point: f'"\\\\{_SHORT.get(point, f"u{point:04x}")}"' for point in [34, 92, *range(0x20)]
}


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0
        self._depth = 0
        self._begun = self._ended = False
        """Whether something stands before this place, and whether a `$` does."""
        self._anchors = 0

    def whole(self) -> Node:
        node = self._choice()
        if self._at < len(self._text):
            raise self._wrong("a ')' has no '('")
        return node

    def _choice(self) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise too_large(f"its groups are nested more than {MAX_DEPTH} deep")
        begun, ended = self._begun, False
        options: list[Node] = []
        while not options or self._takes("|"):
            self._begun, self._ended = begun, False
            options.append(self._sequence())
            ended |= self._ended
        self._ended = ended
        self._depth -= 1
        return options[0] if len(options) == 1 else _choice_of(options)

    def _sequence(self) -> Node:
        parts: list[Node] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            char = self._text[self._at]
            if char in "^$":
                self._at += 1
                self._anchors += 1
                if char == "^" and self._begun:
                    raise self._unable("a '^' that is not at the beginning")
                self._ended |= char == "$"
                continue
            if self._ended:
                raise self._unable("a '$' that is not at the end")
            parts.append(self._repeated())
            self._begun = True
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _repeated(self) -> Node:
        anchors = self._anchors
        item = self._item()
        count = self._count()
        if count is None:
            return item
        if self._count() is not None:
            raise self._wrong("a repetition of a repetition")
        if self._anchors > anchors:
            raise self._unable("a '^' or a '$' in a repetition")
        low, high = count
        if not isinstance(item, Chars) and _repeats(item) * max(high or low, 1) > MAX_REPEATS:
            raise too_large(f"its repetitions, one in another, come to more than {MAX_REPEATS:,}")
        return Repeat(item, low, high)

    def _count(self) -> tuple[int, int | None] | None:
        """The quantifier at this position, if any. A lazy one matches the same texts."""
        char = self._text[self._at : self._at + 1]
        if char and char in "*+?":
            self._at += 1
            found: tuple[int, int | None] = {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        elif char == "{" and (numbers := self._numbers()):
            found = numbers
        else:
            return None
        if not self._takes("?") and self._peek("+"):
            raise self._unable("a possessive repetition")
        return found

    def _numbers(self) -> tuple[int, int | None] | None:
        end = self._text.find("}", self._at)
        low, comma, high = self._text[self._at + 1 : max(end, 0)].partition(",")
        if end < 0 or not low.isdecimal() or not (high == "" or high.isdecimal()):
            return None  # a literal brace
        if len(low) > 18 or len(high) > 18:
            raise too_large("it repeats too often")
        least, most = int(low), (int(high) if high else None) if comma else int(low)
        if most is not None and most < least:
            raise self._wrong(f"the repetition {{{low},{high}}} runs backwards")
        if least > MAX_COUNT:
            raise too_large(f"it asks for {least:,} repetitions, more than any answer can have")
        self._at = end + 1
        return least, most

    def _item(self) -> Node:
        char = self._text[self._at]
        match char:
            case "(":
                return self._group()
            case "[":
                return self._class()
            case "*" | "+" | "?":
                raise self._wrong(f"'{char}' repeats nothing")
        self._at += 1
        match char:
            case ".":
                return Chars(tuple(without(ALL, _LINE_ENDS)))
            case "\\":
                return self._one(self._escaped(in_class=False))
        return self._one([(ord(char), ord(char))])

    def _one(self, ranges: Ranges) -> Chars:
        kept = without(ranges, [(0xD800, 0xDFFF)])
        if not kept:
            raise self._wrong("a class of no characters")
        return Chars(tuple(kept))

    def _group(self) -> Node:
        self._at += 1
        if self._peek("?"):
            head = self._text[self._at : self._at + 3]
            if head.startswith("?:"):
                self._at += 2
            elif head.startswith(("?=", "?!", "?<=", "?<!")):
                raise self._unable("look-around")
            elif head.startswith(("?<", "?P<")):
                end = self._text.find(">", self._at)
                if end < 0:
                    raise self._wrong("a group's name has no end")
                self._at = end + 1
            else:
                raise self._unable(f"a group that begins with '({head[:2]}'")
        inside = self._choice()
        if not self._takes(")"):
            raise self._wrong("a '(' has no ')'")
        return inside

    def _class(self) -> Node:
        self._at += 1
        negated = self._takes("^")
        ranges: Ranges = []
        while not self._takes("]"):
            if self._at >= len(self._text):
                raise self._wrong("a '[' has no ']'")
            low = self._member()
            if self._peek("-") and not self._text.startswith("-]", self._at):
                self._at += 1
                high = self._member() if self._at < len(self._text) else low
                if (
                    len(low) != 1
                    or len(high) != 1
                    or low[0][0] != low[0][1]
                    or high[0][0] != high[0][1]
                ):
                    raise self._wrong("a range of a class has no single characters as its ends")
                if high[0][0] < low[0][0]:
                    raise self._wrong("a range of a class runs backwards")
                ranges.append((low[0][0], high[0][0]))
            else:
                ranges += low
        return self._one(without(ALL, ranges) if negated else normal(ranges))

    def _member(self) -> Ranges:
        char = self._text[self._at]
        self._at += 1
        return self._escaped(in_class=True) if char == "\\" else [(ord(char), ord(char))]

    def _escaped(self, in_class: bool) -> Ranges:
        char = self._text[self._at : self._at + 1]
        self._at += 1
        if not char:
            raise self._wrong("it ends in a backslash")
        if char.lower() in CLASSES:
            named = list(CLASSES[char.lower()])
            return named if char.islower() else without(ALL, named)
        if char in CONTROLS:
            return [(CONTROLS[char], CONTROLS[char])]
        if char == "0" and not self._text[self._at : self._at + 1].isdecimal():
            return [(0, 0)]
        if char in "xu":
            return self._code_point(char)
        if char == "b" and in_class:
            return [(8, 8)]
        if char.isalnum():
            other = "a back-reference" if char.isdecimal() else f"the escape '\\{char}'"
            raise self._unable(_UNABLE.get(char, other))
        return [(ord(char), ord(char))]

    def _code_point(self, kind: str) -> Ranges:
        if kind == "u" and self._peek("{"):
            end = self._text.find("}", self._at)
            digits, after = self._text[self._at + 1 : max(end, 0)], end + 1
        else:
            size = 2 if kind == "x" else 4
            digits, after = self._text[self._at : self._at + size], self._at + size
            if len(digits) < size:
                digits = ""
        point = int(digits, 16) if digits and not digits.strip(hexdigits) else -1
        if not 0 <= point <= 0x10FFFF:
            raise self._wrong(f"'\\{kind}' is not followed by a code point")
        self._at = after
        return [(point, point)]

    def _peek(self, char: str) -> bool:
        return self._text.startswith(char, self._at)

    def _takes(self, char: str) -> bool:
        """Whether this character is next. Goes on behind it."""
        found = self._peek(char)
        self._at += found
        return found

    def _wrong(self, what: str) -> RequestError:
        return RequestError(f"not a valid regular expression: {what}", param="response_format")

    def _unable(self, what: str) -> RequestError:
        return RequestError(
            f"the regular expression has {what}, to which the openvino engine cannot hold an"
            " answer",
            param="response_format",
        )


def _choice_of(options: list[Node]) -> Node:
    if all(isinstance(option, Chars) for option in options):
        return Chars(
            tuple(
                normal(r for option in options if isinstance(option, Chars) for r in option.ranges)
            )
        )
    return Choice(tuple(options))


def _repeats(node: Node) -> int:
    """The largest product of the counts of nested repetitions."""
    match node:
        case Repeat(item, low, high):
            return max(high or low, 1) * _repeats(item)
        case Sequence(parts) | Choice(parts):
            return max(map(_repeats, parts), default=1)
        case Chars():
            return 1
