"""Checks values against a JSON Schema of draft 4, 6, 7, 2019-09 or 2020-12, in linear time, and
says what does not fit.

`jsonschema_rs` checks; the words are our own. Nothing is fetched: a `$ref` leads into the schema,
or to a draft itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema_rs
import msgspec

from penstock.batch.ecma_patterns import translated
from penstock.errors import ConfigError

_MAPS = frozenset(
    {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"}
)
"""Keywords whose values map names of any kind to schemas."""
_VALUES = frozenset({"const", "enum", "default", "examples", "required", "dependentRequired"})
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
    """Checks values, in `cost` steps a character of text at most. Raises `ConfigError`."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.cost = 0
        self._patterns: dict[str, str] = {}
        try:
            linear = self._linear(schema)
            self._check = jsonschema_rs.validator_for(
                linear,
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
        """What of a value does not fit, and where; None if it fits."""
        try:
            self._check(value)
        except jsonschema_rs.ValidationError as error:
            return self._with_place(error)
        except (ValueError, RecursionError):
            return "it is nested too deeply to be checked"
        return None

    def _linear(self, schema: Any) -> Any:
        """The schema with its patterns as they are matched."""
        if isinstance(schema, list):
            return [self._linear(part) for part in schema]
        if not isinstance(schema, Mapping):
            return schema
        made: dict[str, Any] = {}
        for key, part in schema.items():
            if key == "pattern" and isinstance(part, str):
                made[key] = self._matched(part)
            elif key == "patternProperties" and isinstance(part, Mapping):
                made[key] = {self._matched(name): self._linear(one) for name, one in part.items()}
            elif key in _MAPS and isinstance(part, Mapping):
                made[key] = {name: self._linear(one) for name, one in part.items()}
            else:
                made[key] = part if key in _VALUES else self._linear(part)
        return made

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
            culprit = next(
                (one for one in _references(schema) if one in reason or one.lstrip("#") in reason),
                "",
            )
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


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, Mapping):
        for key, value in part.items():
            if key in ("$ref", "$dynamicRef", "$recursiveRef") and isinstance(value, str):
                yield value
            elif key not in _VALUES:
                yield from _references(value)
    elif isinstance(part, list):
        for value in part:
            yield from _references(value)


def _place(path: list[str | int]) -> str:
    """As one would write it: `a.b[0]`."""
    return "".join(
        f"[{step}]" if isinstance(step, int) else f".{step}" for step in path
    ).removeprefix(".")


def _shown(value: Any) -> str:
    try:
        text = msgspec.json.encode(value).decode()
    except (ValueError, TypeError, RecursionError):
        text = "this value"
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"
