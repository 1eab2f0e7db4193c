"""The grammar of a JSON object: properties in order, required or optional, and their number."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.engines.openvino.constraints.json_schemas import Impossible
from penstock.engines.openvino.constraints.writer import Grammar, literal, too_large

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
