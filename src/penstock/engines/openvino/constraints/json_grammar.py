"""Translates JSON Schemas into grammars of compact JSON. Every answer fits its schema.

Objects list their properties in the schema's order. They have further properties only if the schema
allows them explicitly (`additionalProperties`, `patternProperties`) or names no property at all. A
`pattern` must match the whole string. A grammar may allow less than its schema does, never more: a
keyword that no grammar can enforce is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import jsonschema_rs

from penstock.engines.openvino.constraints.json_numbers import (
    FRACTION_DIGITS,
    Bounds,
    integer,
    number,
)
from penstock.engines.openvino.constraints.json_objects import Member, object_body
from penstock.engines.openvino.constraints.json_schemas import (
    FORMATS,
    UNHELD,
    Impossible,
    conflict,
    disjoint,
    ends,
    merged,
    resolve,
    types_of,
    unheld,
)
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
    TABLES,
    WIDE,
    Grammar,
    char_class,
    choice,
    literal,
    too_large,
    without,
)
from penstock.errors import RequestError

MAX_PROPERTIES = 1_000
MAX_VALUES = 5_000
"""Values of one `enum`."""
MAX_DEPTH = 60
_COMMA, _COLON = literal(","), literal(":")
_PLAIN_RANGES = without(ALL, [(0, 0x1F), (34, 34), (92, 92)])
_PLAIN = char_class(_PLAIN_RANGES)
"""Characters that a JSON string holds unescaped."""
_ESCAPE = r'["\\bfnrt] | "u000" [0-7be] | "u001" [0-9a-f]'
"""What follows a backslash: the shortest escapes of the characters that JSON must escape."""
_COMBINED = ("$ref", "allOf", "anyOf", "oneOf")
_NOT_MERGED = {
    "$defs",
    "definitions",
    "$schema",
    "$id",
    "title",
    "description",
    "default",
    "examples",
    "$comment",
}


def json_grammar(schema: Any, checked: bool = False, tables: int = TABLES) -> str:
    """The grammar of a schema's values. Raises `RequestError` for a schema that no grammar can
    enforce.

    With `checked`, somebody validates the answers later, so the grammar may ignore keywords that it
    cannot enforce. `tables` is passed to `Grammar`.
    """
    grammar = Grammar(tables)
    try:
        return grammar.text(_Values(grammar, schema, checked).body(schema, 0))
    except Impossible:
        raise RequestError("no value fits the JSON schema", param="response_format") from None


class _Values:
    def __init__(self, grammar: Grammar, root: Any, checked: bool) -> None:
        self._grammar = grammar
        self._root = root
        self._checked = checked
        self._pattern = RegexWriter(grammar, in_json=True)
        self._references: dict[str, str] = {}
        self._entered: list[str] = []
        """References that are being followed and have written nothing yet."""
        self._properties = 0
        self._rest: str | None = None
        self._any: str | None = None

    def body(self, schema: Any, depth: int) -> str:
        """The body of a schema's values. Raises `Impossible` if no value fits."""
        if depth > MAX_DEPTH:
            raise too_large(f"its schema is nested more than {MAX_DEPTH} deep")
        if schema is False:
            raise Impossible
        if schema is True:
            return self._anything()
        self._check_held(schema)
        if "$ref" in schema:
            others = {
                name: value
                for name, value in schema.items()
                if name != "$ref" and name not in _NOT_MERGED
            }
            if not others:
                return self._referred(schema["$ref"], depth)
            return self.body(merged(resolve(self._root, schema["$ref"]), others), depth + 1)
        for name in ("allOf", "anyOf", "oneOf"):
            if name in schema:
                rest = {
                    key: value
                    for key, value in schema.items()
                    if key != name and key not in _NOT_MERGED
                }
                return (
                    self._all(rest, schema[name], depth)
                    if name == "allOf"
                    else self._one(rest, schema[name], name, depth)
                )
        if "const" in schema or "enum" in schema:
            return self._fixed(schema)
        options = []
        for kind in types_of(schema):
            try:
                options.append(self._typed(kind, schema, depth))
            except Impossible:
                continue
        if not options:
            raise Impossible
        return choice(options)

    def _text(self, value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    def _rule(self, schema: Any, depth: int) -> str:
        return self._grammar.rule(self.body(schema, depth))

    def _check_held(self, schema: Mapping[str, Any]) -> None:
        if self._checked:
            return
        for name in UNHELD & schema.keys():
            if not (
                name == "uniqueItems" and (schema[name] is False or schema.get("maxItems", 2) < 2)
            ):
                raise unheld(name)
        for name in ("unevaluatedProperties", "unevaluatedItems"):
            if isinstance(schema.get(name), Mapping):
                raise unheld(name)

    # Several schemas
    def _referred(self, reference: str, depth: int) -> str:
        known = self._references.get(reference)
        if known is not None:
            if reference in self._entered:
                raise Impossible  # "itself or something else" leaves something else
            return known
        target = resolve(self._root, reference)
        if not self._can_end(reference):
            raise Impossible
        name = self._references[reference] = self._grammar.reserve()
        self._entered.append(reference)
        try:
            self._grammar.rule(self.body(target, depth + 1), name)
        except Impossible:
            raise RequestError(
                f"no value fits the part of the JSON schema at '{reference}'",
                param="response_format",
            ) from None
        self._entered.remove(reference)
        return name

    def _can_end(self, reference: str) -> bool:
        """Whether a recursive reference has a finite value."""
        reachable = {reference}
        todo = [reference]
        while todo:
            for found in _references(resolve(self._root, todo.pop())):
                if found not in reachable:
                    reachable.add(found)
                    todo.append(found)
        finished: set[str] = set()
        while True:
            more = {
                r
                for r in reachable - finished
                if ends(self._root, resolve(self._root, r), finished)
            }
            if reference in more:
                return True
            if not more:
                return False
            finished |= more

    def _all(self, rest: dict[str, Any], parts: list[Any], depth: int) -> str:
        whole: Any = rest
        for part in parts:
            for _ in range(MAX_DEPTH):
                if not isinstance(part, Mapping) or "$ref" not in part:
                    break
                others = {name: value for name, value in part.items() if name != "$ref"}
                if len(parts) == 1 and not rest and not others.keys() - _NOT_MERGED:
                    return self.body(part, depth + 1)
                part = merged(resolve(self._root, part["$ref"]), others)
            whole = merged(whole, part)
        return self.body(whole, depth + 1)

    def _one(self, rest: dict[str, Any], options: list[Any], name: str, depth: int) -> str:
        if name == "oneOf" and not self._checked:
            for at, option in enumerate(options):
                if not all(disjoint(self._root, option, other) for other in options[:at]):
                    raise RequestError(
                        "the JSON schema has a 'oneOf' whose parts may fit the same value; use"
                        " 'anyOf', or tell the parts apart by a property with a 'const'",
                        param="response_format",
                    )
        bodies = []
        for option in options:
            try:
                whole = option if not rest else self._joined(rest, option)
                bodies.append(self.body(whole, depth + 1))
            except Impossible:
                continue
        if not bodies:
            raise Impossible
        return choice(bodies)

    def _joined(self, rest: dict[str, Any], option: Any) -> Any:
        if isinstance(option, Mapping) and any(name in option for name in _COMBINED):
            return {"allOf": [rest, option]}
        return merged(rest, option)

    def _fixed(self, schema: Mapping[str, Any]) -> str:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        if len(values) > MAX_VALUES:
            raise too_large(f"an enum has {len(values):,} values; {MAX_VALUES:,} are taken")
        fits = _validator(
            {name: value for name, value in schema.items() if name not in _NOT_MERGED}
        )
        texts = [self._text(value) for value in values if fits.is_valid(value)]
        if not texts:
            raise Impossible
        return self._grammar.words(texts)

    # Types
    def _typed(self, kind: str, schema: Mapping[str, Any], depth: int) -> str:
        match kind:
            case "null":
                return literal("null")
            case "boolean":
                return choice([literal("true"), literal("false")])
            case "string":
                return self._string(schema)
            case "integer" | "number":
                return self._number(kind, schema)
            case "array":
                return self._inside(lambda: self._array(schema, depth + 1))
            case _:
                return self._inside(lambda: self._object(schema, depth + 1))

    def _inside(self, write: Any) -> str:
        """Call `write` for the inside of brackets, where a reference may be recursive."""
        entered, self._entered = self._entered, []
        try:
            return str(write())
        finally:
            self._entered = entered

    def _number(self, kind: str, schema: Mapping[str, Any]) -> str:
        places = 0 if kind == "integer" else FRACTION_DIGITS
        step = schema.get("multipleOf")
        if step is not None and not self._checked:
            exponent = Decimal(repr(step)).normalize()
            if exponent.as_tuple().digits != (1,) or int(exponent.as_tuple().exponent) > 0:
                raise unheld("multipleOf")
            places = min(places, -int(exponent.as_tuple().exponent))
        bounds = Bounds.of(schema)
        body = integer(bounds) if places == 0 else number(bounds, places)
        if body is None:
            raise Impossible
        return self._grammar.rule(body)

    def _string(self, schema: Mapping[str, Any]) -> str:
        low, high = schema.get("minLength", 0), schema.get("maxLength")
        if high is not None and high < low:
            raise Impossible
        pattern = schema.get("pattern")
        if pattern is None and (known := FORMATS.get(schema.get("format", ""))) is not None:
            try:
                body = self._pattern.body(_shortened(parse(known), schema["format"], low, high))
                return self._grammar.rule(f"{_QUOTE} {body} {_QUOTE}")
            except RequestError:
                if not self._checked:
                    raise
        if pattern is not None:
            return self._grammar.rule(
                f"{_QUOTE} {self._pattern.body(self._cut(parse(pattern), low, high))} {_QUOTE}"
            )
        if low == 0 and high is None:
            return self._any_string()
        return self._grammar.rule(
            f"{_QUOTE} {self._grammar.characters(self._forms(), low, high, self._end())}"
        )

    def _forms(self) -> tuple[str, str]:
        """The two forms of a character in a string: plain and escaped."""
        return _PLAIN, f"{_BACKSLASH} {self._grammar.rule(_ESCAPE)}"

    def _end(self) -> str:
        return self._grammar.rule(_QUOTE)

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
            if (
                not isinstance(part, Repeat)
                or lengths(part.item) != (1, 1)
                or inner_most != inner_least
            ):
                continue
            top = part.high if high is None else min(high - inner_least, part.high or high)
            bottom = max(part.low, low - inner_least)
            if top is not None and bottom > top:
                raise Impossible
            return Sequence((*parts[:at], Repeat(part.item, bottom, top), *parts[at + 1 :]))
        if self._checked:
            return node
        raise RequestError(
            "the JSON schema has a 'pattern' together with a length that no grammar can hold; write"
            " the length into the pattern",
            param="response_format",
        )

    def _any_string(self) -> str:
        return self._grammar.rule(f"{_QUOTE} {self._rest_of_string()}")

    def _rest_of_string(self) -> str:
        """The rest of any string, after its first quotation mark."""
        if self._rest is None:
            self._rest = self._grammar.characters(self._forms(), 0, None, self._end())
        return self._rest

    def _array(self, schema: Mapping[str, Any], depth: int) -> str:
        first = schema.get("prefixItems", [])
        others = schema.get("items", not first)
        if isinstance(others, list):  # as in drafts before 2020-12
            first, others = others, schema.get("additionalItems", False)
        low, high = schema.get("minItems", 0), schema.get("maxItems")
        if high is not None and high < low:
            raise Impossible
        first = first[: high if high is not None else len(first)]
        parts = [self._rule(item, depth) for item in first]
        least, most = max(0, low - len(parts)), None if high is None else high - len(parts)
        try:
            item = self._rule(others, depth) if most != 0 else None
        except Impossible:
            item = None
        if item is None:
            if least:
                raise Impossible
            inside = f" {_COMMA} ".join(parts)
        else:
            more = self._grammar.rule(f"{_COMMA} {item}")
            if parts:
                inside = f" {_COMMA} ".join(parts) + " " + self._grammar.repeat(more, least, most)
            else:
                after = self._grammar.repeat(
                    more, max(least - 1, 0), None if most is None else most - 1
                )
                inside = f"{item} {after}" if least else f"({item} {after})?"
        return self._grammar.rule(f'"[" {inside} "]"')

    def _object(self, schema: Mapping[str, Any], depth: int) -> str:
        given: dict[str, Any] = dict(schema.get("properties", {}))
        self._properties += len(given)
        if self._properties > MAX_PROPERTIES:
            raise too_large(f"its schema has more than {MAX_PROPERTIES:,} properties")
        required = dict.fromkeys(schema.get("required", ()))
        patterns = schema.get("patternProperties", {})
        default = not (given or patterns or required)
        others = schema.get(
            "additionalProperties",
            default if schema.get("unevaluatedProperties") is not False else False,
        )
        names = schema.get("propertyNames", True)
        for name in required:
            given.setdefault(
                name, self._by_pattern(name, patterns, schema.get("additionalProperties", True))
            )
        if isinstance(names, Mapping) and "enum" in names:
            given = {**{name: others for name in names["enum"] if isinstance(name, str)}, **given}
            others = False
        if not self._checked:
            self._check_patterns(given, patterns)
        if names is not True:
            allowed = _validator(
                {name: self._root.get(name, {}) for name in ("$defs", "definitions")}
                | {"allOf": [names]}
            )
            given = {name: part for name, part in given.items() if allowed.is_valid(name)}
        members = []
        for name, part in given.items():
            try:
                members.append(
                    Member(
                        literal(self._text(name) + ":"), self._rule(part, depth), name in required
                    )
                )
            except Impossible:
                if name in required:
                    raise
        if required.keys() - given.keys():
            raise Impossible
        extra = self._extra(given, patterns, others, names, depth)
        low, high = schema.get("minProperties", 0), schema.get("maxProperties")
        if extra and low > max(1, len(required)) and not self._checked:
            raise unheld("minProperties")
        return object_body(self._grammar, members, extra, _COMMA, low, high)

    def _by_pattern(self, name: str, patterns: Mapping[str, Any], others: Any) -> Any:
        fitting = [
            part
            for pattern, part in patterns.items()
            if _validator({"pattern": pattern}).is_valid(name)
        ]
        return {"allOf": fitting} if fitting else others

    def _check_patterns(self, given: Mapping[str, Any], patterns: Mapping[str, Any]) -> None:
        """Refuse properties whose names fall under two schemas."""
        if len({json.dumps(part, sort_keys=True) for part in patterns.values()}) > 1:
            raise conflict("patternProperties")
        for pattern, part in patterns.items():
            matches = _validator({"pattern": pattern})
            for name in given:
                if (
                    part is not True
                    and part != {}
                    and matches.is_valid(name)
                    and given[name] != {"allOf": [part]}
                ):
                    raise conflict("patternProperties")

    def _extra(
        self,
        given: Mapping[str, Any],
        patterns: Mapping[str, Any],
        others: Any,
        names: Any,
        depth: int,
    ) -> str | None:
        """The rule of a property beyond the named ones; None if there can be none."""
        options = []
        if others is False and not patterns:
            return None
        try:
            if patterns and names is True:
                value = self._rule(next(iter(patterns.values())), depth)
                for pattern in patterns:
                    options.append(
                        f"{_QUOTE} {self._pattern.body(parse(pattern))} {_QUOTE} {_COLON} {value}"
                    )
            elif names is not True and not patterns and not given:
                key = self.body({"allOf": [{"type": "string"}, names]}, depth)
                options.append(f"{key} {_COLON} {self._rule(others, depth)}")
            elif names is True and not patterns:
                options.append(
                    f"{_QUOTE} {self._key_but(sorted(given))} {_COLON} {self._rule(others, depth)}"
                )
        except Impossible:
            return None
        return self._grammar.rule(choice(options)) if options else None

    def _key_but(self, names: list[str]) -> str:
        """The rest of a string after its first quotation mark, for any string but `names`."""
        rest = self._rest_of_string()
        return (
            self._tails([self._text(name)[1:][:_NAME_PART] for name in names], rest)
            if names
            else rest
        )

    def _tails(self, texts: list[str], rest: str) -> str:
        """A text that equals none of `texts`, which end in a quotation mark; it continues as
        `rest`.
        """
        heads = sorted({text[0] for text in texts})
        taken = [(ord(head), ord(head)) for head in heads]
        options = [] if '"' in heads else [_QUOTE]
        options.append(f"{char_class(without(_PLAIN_RANGES, [*taken, *WIDE]))} {rest}")
        wide = without(WIDE, taken)
        options.append(self._grammar.rule(f"{char_class(wide)} {rest}"))
        for head in heads:
            after = [text[1:] for text in texts if text[0] == head]
            if head not in '"\\' and all(after):
                options.append(f"{literal(head)} {self._tails(after, rest)}")
        return self._grammar.rule(" | ".join(options))

    def _anything(self) -> str:
        if self._any is None:
            self._any = self._grammar.reserve()
            text, value = self._any_string(), self._any
            member = self._grammar.rule(f"{text} {_COLON} {value}")
            more, next_member = (
                self._grammar.rule(f"{_COMMA} {value}"),
                self._grammar.rule(f"{_COMMA} {member}"),
            )
            kinds = [
                f'"{{" ({member} {next_member}*)? "}}"',
                f'"[" ({value} {more}*)? "]"',
                text,
                self._grammar.rule(str(number(Bounds()))),
                *map(literal, ("true", "false", "null")),
            ]
            self._grammar.rule(" | ".join(kinds), self._any)
        return self._any


def _shortened(node: Node, name: str, low: int, high: int | None) -> Node:
    """A format with smaller counts, so that no text is too long."""
    least, most = lengths(node)
    if least < low:
        raise _length_with(name, "minLength")
    while high is not None and (most is None or most > high):
        largest = _largest_count(node)
        if not largest:
            raise _length_with(name, "maxLength")
        node = _fewer(node, largest)
        most = lengths(node)[1]
    return node


def _length_with(name: str, keyword: str) -> RequestError:
    return RequestError(
        f"the JSON schema has a string with the format '{name}' and a '{keyword}' that the openvino"
        " engine cannot hold together; leave one of them out",
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


def _fewer(node: Node, count: int) -> Node:
    """Reduce the repetitions that count to `count` to three quarters of it."""
    match node:
        case Sequence(parts):
            return Sequence(tuple(_fewer(part, count) for part in parts))
        case Choice(options):
            return Choice(tuple(_fewer(option, count) for option in options))
        case Repeat(item, low, high):
            return Repeat(
                _fewer(item, count), low, max(low, count * 3 // 4) if high == count else high
            )
    return node


_QUOTE, _BACKSLASH = literal('"'), literal("\\")
_NAME_PART = 200
"""Names are compared by at most so many of their first characters."""


def _validator(schema: Any) -> Any:
    try:
        return jsonschema_rs.validator_for(schema)
    except ValueError:  # also raised for a pattern
        raise RequestError(
            "the JSON schema has a pattern that is no regular expression", param="response_format"
        ) from None


def _references(part: Any) -> list[str]:
    """All `$ref` values within a schema."""
    found, todo = [], [part]
    while todo:
        match todo.pop():
            case dict() as schema:
                if isinstance(schema.get("$ref"), str):
                    found.append(schema["$ref"])
                todo += [
                    value
                    for name, value in schema.items()
                    if name not in ("const", "enum", "$defs", "definitions")
                ]
            case list() as parts:
                todo += parts
    return found
