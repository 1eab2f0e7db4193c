"""Writes grammars in the engine's notation (EBNF), within a bound on their size; and that of a JSON
object: properties in order, required or optional, and their number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from string import hexdigits

from penstock.errors import RequestError

MAX_GRAMMAR = 400_000
"""Characters of a grammar."""
TABLES = 128
MAX_COUNT = 100_000
"""Larger counts mean "unbounded": no answer gets that far."""
_SHORTEST_CHAIN, _LONGEST_CHAIN = 8, 512
"""Lengths of a chain of rules, one rule a character."""
_BASE = 16
"""Repetitions are counted as digits of this base."""
_MANY_WORDS, _DEEPEST_WORDS = 16, 100
Ranges = list[tuple[int, int]]
NOTHING = '""'


class Impossible(Exception):
    """No value fits the schema, so it has no grammar."""


class Grammar:
    """Rules with bodies in EBNF. Equal bodies share one rule.

    The engine builds a table of its vocabulary for each place in a grammar at which many tokens may
    stand. Tables cost compile time; a count without tables costs time at each token. `tables` is
    how many tables counts may use.
    """

    def __init__(self, tables: int = TABLES) -> None:
        self._tables = tables
        self._chains: dict[tuple[str, ...], int] = {}
        """Length of the longest chain so far, by its character and its end."""
        self._rules: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._size = 0

    def rule(self, body: str, name: str | None = None) -> str:
        """The name of the rule with this body. Raises `RequestError` at the size limit."""
        if name is None and (body in self._names or body in self._rules):
            return self._names.get(body, body)
        if name is None:
            name = self.reserve()
            self._names[body] = name
        self._rules[name] = body
        self._size += len(body) + len(name) + 5
        if self._size > MAX_GRAMMAR:
            raise too_large(f"its grammar has more than {MAX_GRAMMAR:,} characters")
        return name

    def reserve(self) -> str:
        """A name for a rule whose body follows later, by `rule(body, name)`."""
        name = f"r{len(self._rules)}"
        self._rules[name] = ""
        return name

    def characters(self, one: Sequence[str], low: int, high: int | None, end: str) -> str:
        """`low` to `high` characters, then the rule `end`. `one` lists the forms of a character."""
        if high is None or high > MAX_COUNT:
            star = self.reserve()
            self.rule(" | ".join([end, *(f"{form} {star}" for form in one)]), star)
            return f"{self._exact_characters(one, low)} {star}" if low else star
        key = (*one, end)
        built = self._chains.get(key, 0)
        wanted = max(high - built, 0) + (low if low != high else 0)
        if high <= _LONGEST_CHAIN and wanted <= self._tables:
            self._tables -= wanted
            self._chains[key] = max(high, built)
            return self._chain(one, low, high, end)
        size = max(self._tables // 2, _SHORTEST_CHAIN)
        several = self._chain(one, size, size, self.rule(NOTHING))
        sets, rest = divmod(high - low, size)
        full = f"{self.exactly(several, sets)} {self._chain(one, 0, rest, end)}"
        fewer = (
            f"{self.repeat(several, 0, sets - 1)} {self._chain(one, 0, size - 1, end)}"
            if sets
            else full
        )
        return f"{self._exact_characters(one, low)} {choice([fewer, full])}"

    def _exact_characters(self, one: Sequence[str], count: int) -> str:
        if count > MAX_COUNT:
            raise too_large(f"it asks for {count:,} characters, more than any answer can have")
        size = max(self._tables // 2, _SHORTEST_CHAIN)
        nothing = self.rule(NOTHING)
        several = self.exactly(self._chain(one, size, size, nothing), count // size)
        return f"{several} {self._chain(one, count % size, count % size, nothing)}"

    def _chain(self, one: Sequence[str], low: int, high: int, end: str) -> str:
        """A chain of rules, one a character. Chains with the same end share their last rules."""
        rule = end
        for place in reversed(range(high)):
            stop = [end] if low <= place and low != high else []
            rule = self.rule(" | ".join([*stop, *(f"{form} {rule}" for form in one)]))
        return rule

    def repeat(self, item: str, low: int, high: int | None) -> str:
        """`low` to `high` repetitions of `item`, a rule's name. `high` None means unbounded."""
        if low > MAX_COUNT:
            raise too_large(f"it asks for {low:,} repetitions, more than any answer can have")
        if high is None or high > MAX_COUNT:
            return f"{item}{'*+'[low]}" if low < 2 else f"{self.exactly(item, low)} {item}*"
        if low == high:
            return self.exactly(item, low)
        if low == 0:
            return self._up_to(item, high)
        return f"{self.exactly(item, low)} {self._up_to(item, high - low)}"

    def exactly(self, item: str, count: int) -> str:
        """`count` repetitions of `item`, as nested groups: a large count slows each token."""
        if count < _BASE:
            return f"{item}{{{count}}}" if count > 1 else item if count else NOTHING
        sets, rest = divmod(count, _BASE)
        several = self.exactly(self._set(item), sets)
        return f"{several} {self.exactly(item, rest)}" if rest else several

    def _up_to(self, item: str, count: int) -> str:
        if count < _BASE:
            return f"{item}{{0,{count}}}" if count > 1 else f"{item}?"
        sets, rest = divmod(count, _BASE)
        several = self._set(item)
        full = self.exactly(several, sets) + (f" {self._up_to(item, rest)}" if rest else "")
        fewer = self._up_to(several, sets - 1) if sets > 1 else NOTHING
        return self.rule(f"{fewer} {self._up_to(item, _BASE - 1)} | {full}")

    def _set(self, item: str) -> str:
        return self.rule(f"{item}{{{_BASE}}}")

    def words(self, texts: Iterable[str]) -> str:
        """One of some fixed texts. Common beginnings and ends are written (and compiled) once."""
        return self._words(sorted(set(texts)), 0)

    def _words(self, texts: list[str], depth: int) -> str:
        if len(texts) == 1 or depth > _DEEPEST_WORDS or (depth == 0 and len(texts) < _MANY_WORDS):
            return choice(map(literal, texts))
        pairs = zip(texts[0], texts[-1], strict=False)
        shared = next((at for at, (a, b) in enumerate(pairs) if a != b), len(texts[0]))
        if shared:
            return (
                f"{literal(texts[0][:shared])}"
                f" {self._words([text[shared:] for text in texts], depth + 1)}"
            )
        by_head = [list(group) for _, group in groupby(texts, lambda text: text[:1])]
        return self.rule(" | ".join(self._words(group, depth + 1) for group in by_head))

    def text(self, root: str) -> str:
        """The whole grammar as text; it starts at the body `root`."""
        rules = [f"{name} ::= {body}" for name, body in self._rules.items()]
        return "\n".join([f"root ::= {root}", *rules, ""])


_BEFORE_HEX = re.compile("(?<=[\x00-\x1f\x7f-\xff])(?=[0-9a-fA-F])")
"""Places between a character that the engine writes as a hexadecimal number and one that it would
read as a further digit.
"""


def too_large(why: str) -> RequestError:
    """The error of a constraint that exceeds a limit; `why` says which."""
    return RequestError(
        f"the constraint is too large: {why}; make it simpler", param="response_format"
    )


def literal(text: str) -> str:
    """A fixed text as a quoted literal of the notation."""
    return " ".join(f'"{"".join(map(_in_literal, part))}"' for part in _BEFORE_HEX.split(text))


def _in_literal(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    return char if " " <= char <= "~" or char >= "\xa0" else f"\\U{ord(char):08x}"


def choice(options: Iterable[str]) -> str:
    """One of several bodies, in parentheses unless there is only one."""
    unique = list(dict.fromkeys(options))
    return unique[0] if len(unique) == 1 else "(" + " | ".join(unique) + ")"


def char_class(ranges: Ranges) -> str:
    """One character out of sorted ranges of code points."""
    pieces = [piece for low, high in ranges for piece in _in_utf8(low, high)]
    pieces.sort(key=lambda piece: (chr(piece[0]) not in hexdigits, piece))  # see _BEFORE_HEX
    return (
        "["
        + "".join(_in_class(a) if a == b else f"{_in_class(a)}-{_in_class(b)}" for a, b in pieces)
        + "]"
    )


def _in_utf8(low: int, high: int) -> Ranges:
    """Split a range into ranges whose UTF-8 bytes vary independently. In other ranges the engine
    runs into dead ends, and accepts bytes that are not UTF-8.
    """
    for last in (0x7F, 0x7FF, 0xFFFF):
        if low <= last < high:
            return _in_utf8(low, last) + _in_utf8(last + 1, high)
    for bits in (6, 12, 18):
        block = (1 << bits) - 1
        if high <= 0x7F or low & ~block == high & ~block:
            break
        if low & block:
            return _in_utf8(low, low | block) + _in_utf8((low | block) + 1, high)
        if high & block != block:
            return _in_utf8(low, (high & ~block) - 1) + _in_utf8(high & ~block, high)
    return [(low, high)]


def _in_class(point: int) -> str:
    char = chr(point)
    return char if char.isascii() and char.isalnum() else f"\\U{point:08x}"


def normal(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The same characters as sorted ranges that neither touch nor overlap."""
    merged: Ranges = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged


def without(ranges: Ranges, removed: Ranges) -> Ranges:
    """The characters of `ranges` that are not in `removed`."""
    left: Ranges = []
    for low, high in normal(ranges):
        for a, b in normal(removed):
            if b < low or a > high:
                continue
            if a > low:
                left.append((low, a - 1))
            low = b + 1
        if low <= high:
            left.append((low, high))
    return left


ALL: Ranges = [(0, 0xD7FF), (0xE000, 0x10FFFF)]
"""All characters."""
WIDE: Ranges = [(0x80, 0xD7FF), (0xE000, 0x10FFFF)]
"""All characters beyond ASCII."""


_COMMA = literal(",")
MAX_STATES = 20_000
"""Places in an object times numbers of properties that have to be counted."""


@dataclass(frozen=True)
class Member:
    """One property: its key with the colon, the rule of its value, and whether it is required."""

    key: str
    value: str
    required: bool


def object_body(
    grammar: Grammar,
    members: list[Member],
    extra: str | None,
    low: int,
    high: int | None,
) -> str:
    """An object of `members` and of further properties by the rule `extra`, `low` to `high` in all.

    Raises `Impossible` if no object has so many.
    """
    needed = sum(member.required for member in members)
    if high is not None and high >= len(members) and extra is None:
        high = None
    if low <= needed and high is None:
        inside = _uncounted(grammar, members, extra)
    else:
        inside = _counted(grammar, members, extra, low if low > needed else 0, high)
    return grammar.rule(f'"{{" {inside} "}}"')


def _uncounted(grammar: Grammar, members: list[Member], extra: str | None) -> str:
    """The members as a balanced tree: the engine passes few rules from one to the next."""

    def part(begin: int, end: int) -> tuple[str, bool]:
        """The body of one or more of these members, and whether all of them are optional."""
        if begin == len(members):
            return f"{extra} {grammar.rule(f'{_COMMA} {extra}')}*", True
        if end - begin == 1:
            return f"{members[begin].key} {members[begin].value}", not members[begin].required
        middle = (begin + end) // 2
        (first, none_first), (second, none_second) = part(begin, middle), part(middle, end)
        if none_first and none_second:
            return grammar.rule(f"{first} ({_COMMA} {second})? | {second}"), True
        if none_first:
            return f"({first} {_COMMA})? {second}", False
        return f"{first} " + (
            f"({_COMMA} {second})?" if none_second else f"{_COMMA} {second}"
        ), False

    size = len(members) + (extra is not None)
    if not size:
        return ""
    inside, none = part(0, size)
    return f"({inside})?" if none else inside


def _counted(
    grammar: Grammar,
    members: list[Member],
    extra: str | None,
    low: int,
    high: int | None,
) -> str:
    counted = max(low, 0 if high is None else high, 1)
    if counted * (len(members) + 1) > MAX_STATES:
        raise too_large("its minProperties or maxProperties are too large to be counted")
    # Backwards from the last place: what may follow that number of properties. Counts above
    # `counted` are equivalent.
    follow = [_further(grammar, extra, count, low, high) for count in range(counted + 1)]
    for member in reversed(members):
        before: list[str | None] = []
        for count in range(counted + 1):
            options = [] if member.required else [follow[count]]
            if (tail := follow[min(count + 1, counted)]) is not None and count != high:
                before_it = f"{_COMMA} " if count else ""
                options.insert(0, f"{before_it}{member.key} {member.value} {tail}".rstrip())
            before.append(_place(grammar, [o for o in options if o is not None], member.required))
        follow = before
    if follow[0] is None:
        raise Impossible
    return follow[0]


def _place(grammar: Grammar, options: list[str], required: bool) -> str | None:
    if not options:
        return None
    if required:
        return options[0]  # a sequence goes on within its rule
    return grammar.rule(" | ".join(option or '""' for option in options))


def _further(
    grammar: Grammar, extra: str | None, count: int, low: int, high: int | None
) -> str | None:
    """The properties beyond the named ones, after `count` properties."""
    if high is not None and count > high:
        return None
    least, most = max(0, low - count), None if high is None else high - count
    if extra is None or most == 0:
        return None if least else ""
    if count:
        return grammar.repeat(grammar.rule(f"{_COMMA} {extra}"), least, most)
    return separated(grammar, extra, least, most)


def separated(grammar: Grammar, item: str, low: int, high: int | None) -> str:
    """`low` to `high` items with commas between them; `high` None means unbounded."""
    more = grammar.rule(f"{_COMMA} {item}")
    after = grammar.repeat(more, max(low - 1, 0), None if high is None else high - 1)
    return f"{item} {after}" if low else f"({item} {after})?"
