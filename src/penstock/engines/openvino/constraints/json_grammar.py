"""Translates JSON Schemas into grammars of compact JSON. Every answer fits its schema.

Objects list their properties in the schema's order. They have further properties only if the schema
allows them explicitly (`additionalProperties`, `patternProperties`) or names no property at all. A
`pattern` must match the whole string. A grammar may allow less than its schema does, never more: a
keyword that no grammar can enforce is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import reduce
from typing import Any

from penstock.engines.openvino.constraints.json_scalars import (
    Strings,
    json_text,
    number_body,
)
from penstock.engines.openvino.constraints.json_schemas import (
    UNEVALUATED,
    UNHELD,
    conflict,
    followed,
    has_end,
    merged,
    places,
    resolve,
    said,
    text,
    told_apart,
    types_of,
    unheld,
    validator,
)
from penstock.engines.openvino.constraints.regex import (
    parse,
)
from penstock.engines.openvino.constraints.writer import (
    NOTHING,
    TABLES,
    Grammar,
    Impossible,
    Member,
    choice,
    literal,
    object_body,
    separated,
    too_large,
)
from penstock.errors import RequestError

MAX_PROPERTIES = 1_000
MAX_VALUES = 5_000
"""Values of one `enum`."""
MAX_DEPTH = 60
_COMMA, _COLON = literal(","), literal(":")


def json_grammar(schema: Any, checked: bool = False, tables: int = TABLES) -> str:
    """The grammar of a schema's values. Raises `RequestError` for a schema that no grammar can
    enforce.

    `checked`: the answers are validated later, so the grammar may ignore keywords that it
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
        self._strings = Strings(grammar, checked)
        self._references: dict[str, str] = {}
        self._ending: set[str] = set()
        """References that are known to have a finite value."""
        self._recurring: set[str] = set()
        """References whose rules others name already."""
        self._entered: list[str] = []
        """References that are being followed and have written nothing yet."""
        self._properties = 0
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
            return self._referred(said(schema), depth)
        for name in ("allOf", "anyOf", "oneOf"):
            if name in schema:
                rest = said(schema, name)
                return (
                    self._all(rest, schema[name], depth)
                    if name == "allOf"
                    else self._one(rest, schema[name], name, depth)
                )
        if "const" in schema or "enum" in schema:
            return self._fixed(schema)
        return _possible(lambda kind: self._typed(kind, schema, depth), types_of(schema))

    def _rule(self, schema: Any, depth: int) -> str:
        return self._grammar.rule(self.body(schema, depth))

    def _check_held(self, schema: Mapping[str, Any]) -> None:
        base = schema.get("$id", "#")
        if not (base.startswith("#") or base == self._root.get("$id")) and _refers(schema):
            raise unheld("$id")  # references would lead into this part
        if self._checked:
            return
        for name in UNHELD & schema.keys():
            if not (
                name == "uniqueItems" and (schema[name] is False or schema.get("maxItems", 2) < 2)
            ):
                raise unheld(name)
        for name in UNEVALUATED & schema.keys():
            if isinstance(schema[name], Mapping):
                raise unheld(name)

    def _check_apart(self, part: Any, around: Iterable[Mapping[str, Any]]) -> None:
        """Refuse a part of a schema that forbids what only those around it speak of."""
        if self._checked or not isinstance(part, Mapping):
            return
        for name in UNEVALUATED & part.keys():
            if part[name] is not True and any(other.keys() - {"type"} for other in around):
                raise unheld(name)

    # Several schemas
    def _referred(self, schema: Mapping[str, Any], depth: int) -> str:
        """A `$ref` with the keywords beside it."""
        place = text(schema)
        known = self._references.get(place)
        if known is not None:
            if place in self._entered:
                raise Impossible  # "itself or something else" leaves something else
            self._recurring.add(place)
            return known
        target = self._target(schema)
        if not has_end(self._root, schema, self._ending):
            raise Impossible
        name = self._references[place] = self._grammar.reserve()
        self._entered.append(place)
        try:
            self._grammar.rule(self.body(target, depth + 1), name)
        except Impossible:
            if len(schema) > 1 and place not in self._recurring:  # no other schema refers to it
                self._grammar.rule(NOTHING, name)
                del self._references[place]
                raise
            raise RequestError(
                f"no value fits the part of the JSON schema at '{schema['$ref']}'",
                param="response_format",
            ) from None
        finally:
            self._entered.remove(place)
        return name

    def _target(self, schema: Mapping[str, Any]) -> Any:
        self._check_apart(resolve(self._root, schema["$ref"]), [said(schema, "$ref")])
        return followed(self._root, schema)

    def _all(self, rest: dict[str, Any], parts: list[Any], depth: int) -> str:
        if len(parts) == 1 and not rest:
            return self.body(parts[0], depth + 1)
        found = [self._followed(part) for part in parts]
        for at, part in enumerate(found):
            around = [rest, *found[:at], *found[at + 1 :]]
            self._check_apart(part, [other for other in around if isinstance(other, Mapping)])
        return self.body(reduce(merged, found, rest), depth + 1)

    def _followed(self, part: Any) -> Any:
        for _ in range(MAX_DEPTH):
            if not isinstance(part, Mapping) or "$ref" not in part:
                break
            part = self._target(part)
        return part

    def _one(self, rest: dict[str, Any], options: list[Any], name: str, depth: int) -> str:
        if name == "oneOf" and not self._checked:
            apart = told_apart(self._root, options)
            if apart is None:
                raise RequestError(
                    "the JSON schema has a 'oneOf' whose parts may fit the same value; use"
                    " 'anyOf', or tell the parts apart by a property with a 'const'",
                    param="response_format",
                )
            options = apart
        return _possible(
            lambda option: self.body({**rest, "allOf": [option]} if rest else option, depth + 1),
            options,
        )

    def _fixed(self, schema: Mapping[str, Any]) -> str:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        if len(values) > MAX_VALUES:
            raise too_large(f"an enum has {len(values):,} values; {MAX_VALUES:,} are taken")
        fits = self._validator(said(schema))
        texts = [json_text(value) for value in values if fits.is_valid(value)]
        if not texts:
            raise Impossible
        return self._grammar.words(texts)

    def _validator(self, schema: Any) -> Any:
        """A validator of a part's values. Its references lead to the definitions of the root."""
        tables = {name: self._root.get(name, {}) for name in ("$defs", "definitions")}
        return validator({**tables, "allOf": [schema]})

    # Types
    def _typed(self, kind: str, schema: Mapping[str, Any], depth: int) -> str:
        match kind:
            case "null":
                return literal("null")
            case "boolean":
                return choice([literal("true"), literal("false")])
            case "string":
                return self._strings.body(schema)
            case "integer" | "number":
                return self._grammar.rule(number_body(kind, schema, self._checked))
        entered, self._entered = self._entered, []  # a reference inside brackets may be recursive
        try:
            write = self._array if kind == "array" else self._object
            return write(schema, depth + 1)
        finally:
            self._entered = entered

    def _array(self, schema: Mapping[str, Any], depth: int) -> str:
        first, others = places(schema)
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
        inside = f" {_COMMA} ".join(parts)
        if item is None:
            if least:
                raise Impossible
        elif parts:
            more = self._grammar.rule(f"{_COMMA} {item}")
            inside += " " + self._grammar.repeat(more, least, most)
        else:
            inside = separated(self._grammar, item, least, most)
        return self._grammar.rule(f'"[" {inside} "]"')

    def _object(self, schema: Mapping[str, Any], depth: int) -> str:
        given: dict[str, Any] = dict(schema.get("properties", {}))
        self._properties += len(given)
        if self._properties > MAX_PROPERTIES:
            raise too_large(f"its schema has more than {MAX_PROPERTIES:,} properties")
        required = dict.fromkeys(schema.get("required", ()))
        patterns = schema.get("patternProperties", {})
        closed = given or patterns or required or schema.get("unevaluatedProperties") is False
        others = schema.get("additionalProperties", not closed)
        names = schema.get("propertyNames", True)
        unnamed = schema.get("additionalProperties", schema.get("unevaluatedProperties", True))
        for name in required:
            given.setdefault(name, self._by_pattern(name, patterns, unnamed))
        if isinstance(names, Mapping) and "enum" in names:
            given = {**{name: others for name in names["enum"] if isinstance(name, str)}, **given}
            others = False
        if not self._checked:
            self._check_patterns(given, patterns)
        if names is not True:
            allowed = self._validator(names)
            given = {name: part for name, part in given.items() if allowed.is_valid(name)}
        members = []
        for name, part in given.items():
            try:
                value = self._rule(part, depth)
                members.append(Member(literal(json_text(name) + ":"), value, name in required))
            except Impossible:
                if name in required:
                    raise
        if required.keys() - given.keys():
            raise Impossible
        extra = self._extra(given, patterns, others, names, depth)
        low, high = schema.get("minProperties", 0), schema.get("maxProperties")
        if extra and low > max(1, len(required)) and not self._checked:
            raise unheld("minProperties")
        return object_body(self._grammar, members, extra, low, high)

    def _by_pattern(self, name: str, patterns: Mapping[str, Any], others: Any) -> Any:
        fitting = [
            part
            for pattern, part in patterns.items()
            if validator({"pattern": pattern}).is_valid(name)
        ]
        return {"allOf": fitting} if fitting else others

    def _check_patterns(self, given: Mapping[str, Any], patterns: Mapping[str, Any]) -> None:
        """Refuse properties whose names fall under two schemas."""
        if len({json.dumps(part, sort_keys=True) for part in patterns.values()}) > 1:
            raise conflict("patternProperties")
        for pattern, part in patterns.items():
            matches = validator({"pattern": pattern})
            for name in given:
                if matches.is_valid(name) and given[name] != {"allOf": [part]}:
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
                keys = (self._strings.matching(parse(pattern)) for pattern in patterns)
                options += [f"{key} {_COLON} {value}" for key in keys]
            elif names is not True and not patterns and not given:
                key = self.body({"allOf": [{"type": "string"}, names]}, depth)
                options.append(f"{key} {_COLON} {self._rule(others, depth)}")
            elif names is True and not patterns:
                key = self._strings.any_but(sorted(given))
                options.append(f"{key} {_COLON} {self._rule(others, depth)}")
        except Impossible:
            return None
        return self._grammar.rule(choice(options)) if options else None

    def _anything(self) -> str:
        if self._any is None:
            self._any = self._grammar.reserve()
            string, value = self._strings.any(), self._any
            member = self._grammar.rule(f"{string} {_COLON} {value}")
            more = self._grammar.rule(f"{_COMMA} {value}")
            next_member = self._grammar.rule(f"{_COMMA} {member}")
            kinds = [
                f'"{{" ({member} {next_member}*)? "}}"',
                f'"[" ({value} {more}*)? "]"',
                string,
                self._grammar.rule(number_body("number", {}, checked=False)),
                *map(literal, ("true", "false", "null")),
            ]
            self._grammar.rule(" | ".join(kinds), self._any)
        return self._any


def _possible(write: Callable[[Any], str], parts: Iterable[Any]) -> str:
    """A choice of the parts for which there is a value. Raises `Impossible` if there is none."""
    bodies = []
    for part in parts:
        with suppress(Impossible):
            bodies.append(write(part))
    if not bodies:
        raise Impossible
    return choice(bodies)


def _refers(schema: Mapping[str, Any]) -> bool:
    return '"$ref"' in json.dumps(schema)
