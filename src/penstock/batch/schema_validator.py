"""Checks values against a JSON Schema of draft 4, 6, 7, 2019-09 or 2020-12, in linear time, and
says what does not fit.

`jsonschema_rs` checks; the error texts are our own. Nothing is fetched: a `$ref` may point into the
schema, or to a draft. The regular expressions of a schema (ECMA 262) are translated to the syntax
of an engine that takes linear time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jsonschema_rs
import msgspec

from penstock.errors import ConfigError
from penstock.openai.json_schema import CLASSES, CONTROLS, rewritten, without_look_ahead

_ANY_BUT_LINE_ENDS = r"[^\n\r\x{2028}\x{2029}]"
_LAST = 0x10FFFF
_REFUSED = {
    "(?=": "lookahead",
    "(?!": "negative lookahead",
    "(?<=": "lookbehind",
    "(?<!": "negative lookbehind",
}
_QUANTIFIER = re.compile(r"[*+?]|\{(\d+)(?:(,)(\d*))?\}")
_PROPERTY = re.compile(r"\{[A-Za-z0-9_]+(=[A-Za-z0-9_]+)?\}")
_GROUP = re.compile(r"\((?:\?:|\?<[A-Za-z_$][\w$]*>|(?!\?))")
_FLAGS = re.compile(r"\(\?[ims]+(-[ims]+)?:|\(\?-[ims]+:")
_HEX = {"x": re.compile(r"[0-9A-Fa-f]{2}"), "u": re.compile(r"[0-9A-Fa-f]{4}")}
_LONG_HEX = re.compile(r"\{([0-9A-Fa-f]{1,8})\}")

Ranges = tuple[tuple[int, int], ...]


def translated(pattern: str) -> tuple[str, int]:
    """The pattern in Rust's syntax, and the most steps that it may take for each character of a
    text.

    Raises `ValueError`, with a message for people, for a pattern that takes more than linear time
    (look-around, back-references) or is not valid.
    """
    pattern = without_look_ahead(pattern)
    reader = _Reader(pattern)
    made, cost = reader.alternatives()
    if reader.at < len(pattern):
        raise ValueError("it has a ')' too many")
    return made, cost


class _Reader:
    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._depth = 0
        self.at = 0

    def alternatives(self) -> tuple[str, int]:
        """The alternatives up to the end of the pattern or group, and their steps."""
        made: list[str] = []
        cost = 1
        while self.at < len(self._pattern) and self._pattern[self.at] != ")":
            if self._pattern[self.at] == "|":
                made.append("|")
                self.at += 1
                continue
            atom, steps = self._atom()
            again, copies = self._quantifier()
            made.append(atom + again)
            cost += steps * copies
        return "".join(made), cost

    def _atom(self) -> tuple[str, int]:
        sign = self._pattern[self.at]
        match sign:
            case "(":
                return self._group()
            case "[":
                return self._class(), 1
            case "\\":
                return self._escape(), 1
            case "*" | "+" | "?":
                raise ValueError(f"there is nothing that its '{sign}' could repeat")
        self.at += 1
        if sign in "^$":
            return sign, 0
        return (_ANY_BUT_LINE_ENDS if sign == "." else _literal(ord(sign))), 1

    def _group(self) -> tuple[str, int]:
        rest = self._pattern[self.at : self.at + 80]
        for opening, name in _REFUSED.items():
            if rest.startswith(opening):
                raise ValueError(
                    f"it has a {name} ('{opening}'), which is not matched in linear time"
                )
        found = _GROUP.match(rest) or _FLAGS.match(rest)
        if found is None:
            raise ValueError(f"it has a group '{rest[:4]}', which ECMA 262 does not know")
        opening = found[0] if found.re is _FLAGS else "(?:"
        self.at += found.end()
        self._depth += 1
        if self._depth > 100:
            raise ValueError("its groups are nested too deeply")
        made, cost = self.alternatives()
        self._depth -= 1
        if self.at >= len(self._pattern):
            raise ValueError("a '(' of it is not closed")
        self.at += 1
        return f"{opening}{made})", cost

    def _quantifier(self) -> tuple[str, int]:
        """The quantifier that follows an atom, and how many copies of the atom it makes."""
        found = _QUANTIFIER.match(self._pattern, self.at)
        if found is None:
            return "", 1
        self.at = found.end()
        lazy = self._pattern.startswith("?", self.at)
        self.at += lazy
        if _QUANTIFIER.match(self._pattern, self.at):
            raise ValueError(f"'{found[0]}' of it is repeated once more")
        copies = 1
        if found[1] is not None:
            least, most = int(found[1]), int(found[3] or found[1])
            if most < least:
                raise ValueError(f"'{found[0]}' of it has its bounds in the wrong order")
            copies = max(most, 1)
        return found[0] + "?" * lazy, copies

    def _escape(self) -> str:
        """An escape outside of a class."""
        following = self._pattern[self.at + 1 : self.at + 2]
        if following in ("b", "B"):
            self.at += 2
            return rf"(?-u:\{following})"
        if following == "k" or (following.isdigit() and following != "0"):
            raise ValueError(
                f"it has a back-reference ('\\{following}'), which is not matched in linear time"
            )
        found = self._one()
        return _literal(found) if isinstance(found, int) else f"[{found}]"

    def _one(self) -> int | str:
        """The character, or the inside of a class, that an escape stands for."""
        pattern, start = self._pattern, self.at
        following = pattern[start + 1 : start + 2]
        self.at += 2
        if not following:
            raise ValueError("it ends with a backslash")
        if following.lower() in CLASSES:
            ranges = CLASSES[following.lower()]
            return _written(ranges if following.islower() else _others(ranges))
        if following in "pP":
            found = _PROPERTY.match(pattern, self.at)
            if found is None:
                raise ValueError(f"'\\{following}' of it names no property")
            self.at = found.end()
            return f"\\{following}{found[0]}"
        if following in CONTROLS:
            return CONTROLS[following]
        if following == "0" and not pattern[self.at : self.at + 1].isdigit():
            return 0
        if following == "c" and re.match("[A-Za-z]", pattern[self.at : self.at + 1]):
            self.at += 1
            return ord(pattern[self.at - 1]) % 32
        if following == "u" and (found := _LONG_HEX.match(pattern, self.at)):
            self.at = found.end()
            return min(int(found[1], 16), _LAST + 1)
        if following in _HEX and (found := _HEX[following].match(pattern, self.at)):
            self.at = found.end()
            return self._paired(int(found[0], 16)) if following == "u" else int(found[0], 16)
        if following.isalnum() and following.isascii():
            raise ValueError(f"it has '\\{following}', which ECMA 262 does not know")
        return ord(following)

    def _paired(self, code: int) -> int:
        """The character of a surrogate pair that is written as two escapes."""
        if 0xD800 <= code <= 0xDBFF and self._pattern.startswith("\\u", self.at):
            found = _HEX["u"].match(self._pattern, self.at + 2)
            if found and 0xDC00 <= (low := int(found[0], 16)) <= 0xDFFF:
                self.at = found.end()
                return 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
        return code

    def _class(self) -> str:
        pattern = self._pattern
        self.at += 1
        negated = pattern.startswith("^", self.at)
        self.at += negated
        inside: list[str] = []
        while not pattern.startswith("]", self.at):
            low = self._member()
            ranged = pattern.startswith("-", self.at) and not pattern.startswith("-]", self.at)
            if not ranged or isinstance(low, str):
                inside.append(low if isinstance(low, str) else _written([(low, low)]))
                continue
            self.at += 1
            high = self._member()
            if isinstance(high, str):  # as in [a-\d], where the hyphen is a member
                inside += [_written([(low, low), (0x2D, 0x2D)]), high]
            elif high < low:
                raise ValueError(f"a range of it ends before it begins ('{chr(low)}-{chr(high)}')")
            else:
                inside.append(_written([(low, high)]))
        self.at += 1
        if not "".join(inside):
            return r"[\x{0}-\x{10FFFF}]" if negated else r"[^\x{0}-\x{10FFFF}]"
        return f"[{'^' * negated}{''.join(inside)}]"

    def _member(self) -> int | str:
        if self.at >= len(self._pattern):
            raise ValueError("a '[' of it is not closed")
        if self._pattern.startswith("\\b", self.at):
            self.at += 2
            return 0x08
        if self._pattern[self.at] == "\\":
            return self._one()
        self.at += 1
        return ord(self._pattern[self.at - 1])


def _others(ranges: Ranges) -> Ranges:
    found, start = [], 0
    for low, high in ranges:
        if low > start:
            found.append((start, low - 1))
        start = high + 1
    return (*found, (start, _LAST))


def _written(ranges: Iterable[tuple[int, int]]) -> str:
    """Ranges in the syntax of a class, without surrogates and numbers beyond Unicode."""
    made = ""
    for low, high in ranges:
        low, high = (
            (0xE000 if 0xD800 <= low < 0xE000 else low),
            (0xD7FF if 0xD800 <= high < 0xE000 else min(high, _LAST)),
        )
        if low <= high:
            made += rf"\x{{{low:X}}}" if low == high else rf"\x{{{low:X}}}-\x{{{high:X}}}"
    return made


def _literal(code: int) -> str:
    if code < 0x80 and chr(code).isalnum():
        return chr(code)
    return _written([(code, code)]) or r"[^\x{0}-\x{10FFFF}]"


_SHOWN_CHARS = 80
_BOUNDS = {
    "minimum": "must be at least {limit}",
    "maximum": "must be at most {limit}",
    "exclusiveMinimum": "must be more than {limit}",
    "exclusiveMaximum": "must be less than {limit}",
    "minLength": "must have at least {limit} characters",
    "maxLength": "must have at most {limit} characters",
    "minItems": "must have at least {limit} items",
    "maxItems": "must have at most {limit} items",
    "additionalItems": "must have at most {limit} items",
    "minProperties": "must have at least {limit} fields",
    "maxProperties": "must have at most {limit} fields",
}
_ARTICLES = {"array": "an array", "integer": "an integer", "object": "an object", "null": "null"}


class Validator:
    """Checks values, in at most `cost` steps for each character of text. Raises `ConfigError`."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.cost = 0
        self._patterns: dict[str, str] = {}
        self._references: list[str] = []
        try:
            self._check = jsonschema_rs.validator_for(
                rewritten(schema, self._linear),
                validate_formats=False,
                pattern_options=jsonschema_rs.RegexOptions(),
                offline=True,
            ).validate
        except jsonschema_rs.ValidationError as error:
            raise ConfigError(self._complaint(schema, error), field="schema") from None
        except ConfigError:
            raise
        except (RecursionError, ValueError):
            raise ConfigError("the JSON Schema is nested too deeply", field="schema") from None

    def misfit(self, value: Any) -> str | None:
        """What does not fit in a value, and where; None if it fits."""
        try:
            self._check(value)
        except jsonschema_rs.ValidationError as error:
            return self._with_place(error)
        except (ValueError, RecursionError):
            return "it is nested too deeply to be checked"
        return None

    def _linear(self, keyword: str, value: Any) -> Any:
        """The value of a keyword, its patterns translated. Notes references."""
        if keyword == "pattern" and isinstance(value, str):
            return self._matched(value)
        if keyword == "patternProperties" and isinstance(value, Mapping):
            return {self._matched(pattern): part for pattern, part in value.items()}
        if keyword in ("$ref", "$dynamicRef", "$recursiveRef") and isinstance(value, str):
            self._references.append(value)
        return value

    def _matched(self, pattern: str) -> str:
        try:
            made, cost = translated(pattern)
        except ValueError as error:
            raise ConfigError(
                f"the pattern {_shown(pattern)} cannot be used: {error}", field="schema"
            ) from None
        self._patterns[made] = pattern
        self.cost += cost
        return made

    def _complaint(self, schema: Mapping[str, Any], error: Any) -> str:
        kind = error.kind.name
        if kind == "$ref":
            declared = schema.get("$schema")
            reason = str(error.kind.as_dict()["error"].message)
            if isinstance(declared, str) and declared in reason:
                return (
                    f"the $schema {_shown(declared)} is none of the drafts 4, 6, 7, 2019-09 and"
                    " 2020-12"
                )
            named = (one for one in self._references if one.lstrip("#") in reason)
            culprit = max(named, key=len, default="")
            return f"the $ref '{culprit}' leads nowhere in this schema"
        if kind == "format" and isinstance(error.instance, str):
            pattern = self._patterns.get(error.instance, error.instance)
            why = "it is too large, or names a property that Unicode does not know"
            return f"the pattern {_shown(pattern)} cannot be used: {why}"
        return f"not a valid JSON Schema: {self._with_place(error)}"

    def _with_place(self, error: Any) -> str:
        place = _place(error.instance_path)
        what = self._fault(error)
        return f"{place}: {what}" if place else what

    def _fault(self, error: Any) -> str:
        kind, facts = error.kind.name, error.kind.as_dict()
        shown = _shown(error.instance)
        but = f", not {shown}"
        if kind in _BOUNDS:
            return _BOUNDS[kind].format(limit=facts.get("limit")) + but
        match kind:
            case "type":
                kinds = (_ARTICLES.get(name, f"a {name}") for name in facts["types"])
                return f"must be {' or '.join(kinds)}{but}"
            case "required":
                return f"'{facts['property']}' is missing"
            case "additionalProperties" | "unevaluatedProperties":
                names = ", ".join(f"'{name}'" for name in facts["unexpected"][:10])
                verb = "is" if len(facts["unexpected"]) == 1 else "are"
                return f"{names} {verb} not among the fields that it may have"
            case "enum":
                return f"must be one of {', '.join(map(_shown, facts['options'][:20]))}{but}"
            case "const":
                return f"must be {_shown(facts['expected_value'])}{but}"
            case "pattern":
                return f"must match {self._patterns.get(facts['pattern'], facts['pattern'])}{but}"
            case "multipleOf":
                return f"must be a multiple of {facts['multiple_of']}{but}"
            case "propertyNames":
                return f"a name of its fields does not fit: {self._fault(facts['error'])}"
            case "falseSchema":
                return f"{shown} may not be there"
            case "oneOf" if not all(facts["context"]):
                return f"{shown} fits more than one of the schemas in 'oneOf'"
            case "oneOf" | "anyOf":
                return f"{shown} fits none of the schemas in '{kind}'"
            case "uniqueItems":
                return f"{shown} has an item twice"
            case "contains":
                return f"{shown} has too few or too many of the items that 'contains' asks for"
            case "not":
                return f"{shown} is what 'not' excludes"
            case _:
                return f"{shown} breaks the rule '{kind}'"


def _place(path: list[str | int]) -> str:
    """A path in the form `a.b[0]`."""
    return "".join(
        f"[{step}]" if isinstance(step, int) else f".{step}" for step in path
    ).removeprefix(".")


def _shown(value: Any) -> str:
    try:
        text = msgspec.json.encode(value).decode()
    except (ValueError, TypeError, RecursionError):
        text = "this value"
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"
