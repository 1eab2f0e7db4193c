"""Operations on JSON Schemas: follow references, merge two schemas, compare them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import jsonschema_rs

from penstock.engines.openvino.constraints.writer import Impossible
from penstock.errors import RequestError
from penstock.openai import json_schema

Schema = Mapping[str, Any]
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_BY_KEYWORD = {
    "object": (
        *("properties", "required", "additionalProperties", "patternProperties", "propertyNames"),
        *("minProperties", "maxProperties", "unevaluatedProperties"),
    ),
    "array": (
        *("items", "prefixItems", "additionalItems", "unevaluatedItems"),
        *("minItems", "maxItems"),
    ),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
ASSERTIONS = frozenset(name for names in _BY_KEYWORD.values() for name in names) | {
    "type", "enum", "const", "$ref", "allOf", "anyOf", "oneOf",
}  # fmt: skip
"""Keywords that grammars enforce. `UNHELD` has those that they cannot."""
UNHELD = frozenset(
    {
        "not",
        "if",
        "dependentRequired",
        "dependentSchemas",
        "dependencies",
        "uniqueItems",
        "contains",
    }
    | {"$dynamicRef", "$recursiveRef"}
)
_SAID = ASSERTIONS | UNHELD
UNEVALUATED = frozenset({"unevaluatedProperties", "unevaluatedItems"})
_LARGER = {"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"}
_SMALLER = {"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"}
_HEX = "[0-9a-fA-F]"
_YEAR = "([1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
"""A year, but not 0000: Python's dates begin with the year 1."""
_DAYS = (
    "((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    "|02-(0[1-9]|1[0-9]|2[0-8]))",
    "([0-9]{2}(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)-02-29",
)
_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_LABEL = "[a-zA-Z0-9]([a-zA-Z0-9-]{0,60}[a-zA-Z0-9])?"
_HOST = rf"{_LABEL}(\.{_LABEL}){{0,3}}"
_IN_PATH = "([A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9a-fA-F]{2})"
FORMATS = {
    "date": f"({_YEAR}-{_DAYS[0]}|{_DAYS[1]})",
    "time": (
        r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?"
        r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
    ),
    "email": (
        r"[a-zA-Z0-9_+-]{1,20}(\.[a-zA-Z0-9_+-]{1,20}){0,2}@"
        rf"({_LABEL}\.){{1,3}}[a-zA-Z]{{2,20}}"
    ),
    "uuid": f"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}",
    "ipv4": rf"({_BYTE}\.){{3}}{_BYTE}",
    "ipv6": (
        f"{_HEX}{{1,4}}(:{_HEX}{{1,4}}){{7}}|"
        + "|".join(
            (f"{_HEX}{{1,4}}(:{_HEX}{{1,4}}){{{left - 1}}}" if left else "")
            + "::"
            + (f"({_HEX}{{1,4}}(:{_HEX}{{1,4}}){{0,{6 - left}}})?" if left < 7 else "")
            for left in range(8)
        )
    ),
    "hostname": _HOST,
    "uri": (
        rf"[a-zA-Z][a-zA-Z0-9+.-]{{0,15}}://{_HOST}(:[1-9][0-9]{{0,3}})?"
        rf"(/{_IN_PATH}{{0,200}}){{0,20}}(\?{_IN_PATH}{{1,300}})?"
    ),
    "duration": "P([0-9]{1,4}D|T[0-9]{1,4}[HMS]|[0-9]{1,4}[WMY])",
}
FORMATS["date-time"] = f"{FORMATS['date']}T{FORMATS['time']}"
"""The regular expression of each known `format`: a part of what the format allows, in its usual
form. Unknown formats are ignored.
"""


def unheld(keyword: str) -> RequestError:
    """The error of a keyword that no grammar can enforce."""
    return RequestError(
        f"the JSON schema has '{keyword}', to which the openvino engine cannot hold an answer;"
        " leave it out, and check the answer",
        param="response_format",
    )


def conflict(keyword: str) -> RequestError:
    """The error of two schemas for one value that disagree in a keyword."""
    return RequestError(
        f"two parts of the JSON schema that hold for one value both have '{keyword}'; write them as"
        " one schema",
        param="response_format",
    )


def resolve(root: Any, reference: str) -> Any:
    """The target of a `$ref` within the schema. Raises `RequestError` for any other reference."""
    if not f"{reference}/".startswith("#/"):
        raise RequestError(
            f"the $ref '{reference}' leads out of the schema; only those that begin with '#/' are"
            " followed",
            param="response_format",
        )
    try:
        return json_schema.resolve(root, reference)
    except LookupError:
        raise RequestError(
            f"the $ref '{reference}' leads nowhere in this schema", param="response_format"
        ) from None


def said(schema: Schema, without: str = "") -> dict[str, Any]:
    """What a schema says about values by its keywords other than `without`: no annotations."""
    return {name: part for name, part in schema.items() if name in _SAID and name != without}


def followed(root: Any, schema: Schema) -> Any:
    """The schema that a `$ref` and the keywords beside it make together."""
    return merged(resolve(root, schema["$ref"]), said(schema, "$ref"))


def types_of(schema: Schema) -> list[str]:
    """The types that a schema allows; without `type`, the types that its keywords are about."""
    given = schema.get("type")
    if given is None:
        return [
            kind for kind, names in _BY_KEYWORD.items() if any(name in schema for name in names)
        ] or [kind for kind in TYPES if kind != "integer"]
    types = [given] if isinstance(given, str) else list(dict.fromkeys(given))
    return [kind for kind in types if not (kind == "integer" and "number" in types)]


def places(schema: Schema) -> tuple[list[Any], Any]:
    """The schemas of an array's first items, by their places, and that of the others.

    Without one for the others there are none, unless the first are too few.
    """
    first = schema.get("prefixItems", [])
    if isinstance(items := schema.get("items"), list):  # as in drafts before 2020-12
        first, items = items, schema.get("additionalItems")
    if items is None:
        few = not first or schema.get("minItems", 0) > len(first)
        items = few and schema.get("unevaluatedItems") is not False
    return first, items


def merged(first: Any, second: Any) -> Any:
    """One schema for the values that fit both. Raises `RequestError` if there is no such schema."""
    if first is False or second is False:
        return False
    if first is True or second is True:
        return second if first is True else first
    _check_items(first, second)
    result = dict(first)
    objects = {"properties", "additionalProperties", "patternProperties"}
    if objects & first.keys() and objects & second.keys():
        result |= _merged_objects(first, second)
    for name, value in second.items():
        if name in objects and name in result:
            continue
        if name not in first or name not in _SAID:
            result.setdefault(name, value)
        elif text(first[name]) != text(value):
            result[name] = _merged_values(name, first[name], value)
    return result


def text(value: Any) -> str:
    """The same for equal values; to Python, 1 and true are equal too."""
    return json.dumps(value, sort_keys=True)


def _check_items(first: Schema, second: Schema) -> None:
    """Refuse two schemas of items of which one goes by their places."""
    names = {"items", "prefixItems", "additionalItems"}
    both = [{name: schema[name] for name in names & schema.keys()} for schema in (first, second)]
    if all(both) and text(both[0]) != text(both[1]):
        for items in both:
            if "prefixItems" in items or isinstance(items.get("items"), list):
                raise conflict("prefixItems" if "prefixItems" in items else "items")


def _merged_values(name: str, first: Any, second: Any) -> Any:
    if name in _LARGER | _SMALLER and not isinstance(first, bool) and not isinstance(second, bool):
        return max(first, second) if name in _LARGER else min(first, second)
    match name:
        case "type":
            both = [kind for kind in TYPES if _allows(first, kind) and _allows(second, kind)]
            if not both:
                raise Impossible
            return both
        case "enum":
            texts = set(map(text, second))
            return [value for value in first if text(value) in texts]
        case "const":
            raise Impossible
        case "required":
            return list(dict.fromkeys([*first, *second]))
        case "items" | "propertyNames":
            return {"allOf": [first, second]}
        case "allOf":
            return [*first, *second]
        case "format":
            return first
        case _:
            raise conflict(name)


def _allows(types: str | list[str], kind: str) -> bool:
    types = [types] if isinstance(types, str) else types
    return kind in types or (kind == "integer" and "number" in types)


def _merged_objects(first: Schema, second: Schema) -> dict[str, Any]:
    """The properties of two object schemas, each with all its constraints."""
    if "patternProperties" in first or "patternProperties" in second:
        raise conflict("patternProperties")
    names = dict.fromkeys([*first.get("properties", {}), *second.get("properties", {})])
    properties: dict[str, Any] = {}
    for name in names:
        parts = [
            schema.get("properties", {}).get(name, schema.get("additionalProperties", True))
            for schema in (first, second)
        ]
        parts = [part for part in parts if part is not True]
        properties[name] = parts[0] if len(parts) == 1 else {"allOf": parts} if parts else True
    result: dict[str, Any] = {"properties": properties}
    if "additionalProperties" in first and "additionalProperties" in second:
        others = (first["additionalProperties"], second["additionalProperties"])
        result["additionalProperties"] = False if False in others else {"allOf": list(others)}
    elif "additionalProperties" in first or "additionalProperties" in second:
        # A schema without `additionalProperties` allows others too, but the grammar leaves unnamed
        # ones out.
        result["additionalProperties"] = False
    return result


def told_apart(root: Any, options: list[Any]) -> list[Any] | None:
    """The options of a `oneOf`, if no value fits two of them; None if that is uncertain.

    A property that has other constants in each is required where it tells them apart: pydantic
    leaves those with a default optional.
    """
    if _all_disjoint(root, options):
        return options
    found = [_target(root, option) for option in options]
    if not all(isinstance(one, Mapping) for one in found):
        return None
    given = [one.get("properties", {}) for one in found]
    for name in given[0]:
        if all(name in properties for properties in given):
            needing = [
                {**option, "required": [*option.get("required", ()), name]} for option in options
            ]
            if _all_disjoint(root, needing):
                return needing
    return None


def _all_disjoint(root: Any, options: list[Any]) -> bool:
    return all(
        disjoint(root, option, other) for at, option in enumerate(options) for other in options[:at]
    )


def disjoint(root: Any, first: Any, second: Any, depth: int = 0) -> bool:
    """Whether no value fits both schemas. False if that is uncertain."""
    first, second = _target(root, first), _target(root, second)
    if first is False or second is False:
        return True
    if not isinstance(first, Mapping) or not isinstance(second, Mapping) or depth > 8:
        return False
    values = _values(first), _values(second)
    if values[0] is not None and values[1] is not None:
        return not values[0] & values[1]
    kinds = set(types_of(first)), set(types_of(second))
    if "type" in first and "type" in second:
        numbers = {"number", "integer"}
        if not kinds[0] & kinds[1] and not (kinds[0] & numbers and kinds[1] & numbers):
            return True
    if (
        kinds[0] != {"object"}
        or kinds[1] != {"object"}
        or "type" not in first
        or "type" not in second
    ):
        return False
    required = [set(schema.get("required", ())) for schema in (first, second)]
    properties = [schema.get("properties", {}) for schema in (first, second)]
    for mine, other, names in ((0, second, properties[1]), (1, first, properties[0])):
        if (
            other.get("additionalProperties") is False
            and "patternProperties" not in other
            and required[mine] - names.keys()
        ):
            return True
    both = properties[0].keys() & properties[1].keys() & (required[0] & required[1])
    return any(disjoint(root, properties[0][name], properties[1][name], depth + 1) for name in both)


def _target(root: Any, schema: Any) -> Any:
    for _ in range(8):
        if not isinstance(schema, Mapping) or not isinstance(schema.get("$ref"), str):
            break
        try:
            schema = followed(root, schema)
        except Impossible:
            return False
    return schema


def _values(schema: Schema) -> set[str] | None:
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return None if values is None else set(map(text, values))


def has_end(root: Any, schema: Schema, known: set[str]) -> bool:
    """Whether a recursive `$ref` has a finite value. `known` keeps the texts of those that have."""
    before = -1
    while len(known) > before:
        before = len(known)
        if _ends(root, schema, known, set()):
            return True
    return False


def _ends(root: Any, schema: Any, known: set[str], entered: set[str]) -> bool:
    """Whether the schema has a finite value by what is known of the references in it. Looks at each
    of these once.
    """
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema:
        if (place := text(said(schema))) not in known and place not in entered:
            entered.add(place)
            with suppress(Impossible):
                if _ends(root, followed(root, schema), known, entered):
                    known.add(place)
        return place in known

    def end(parts: Iterable[Any]) -> Iterator[bool]:
        return (_ends(root, part, known, entered) for part in parts)

    if not all(end(schema.get("allOf", ()))):
        return False
    if not all(any(end(schema[name])) for name in ("anyOf", "oneOf") if name in schema):
        return False
    kinds = types_of(schema)
    if "const" in schema or "enum" in schema or set(kinds) - {"object", "array"}:
        return True
    properties, required = schema.get("properties", {}), schema.get("required", ())
    if "object" in kinds and all(end(properties.get(name, True) for name in required)):
        return True
    first, others = places(schema)
    if schema.get("minItems", 0) > len(first):
        first = [*first, others]
    return "array" in kinds and all(end(first))


def validator(schema: Any) -> Any:
    """A validator of values. Raises `RequestError` for a pattern that is no regular expression, and
    for a reference that leads nowhere.
    """
    try:
        return jsonschema_rs.validator_for(schema)
    except jsonschema_rs.ValidationError as error:
        what = "a part whose values cannot be checked: " + str(error).partition("\n")[0]
        if error.kind.name == "format":
            what = "a pattern that is no regular expression"
        raise RequestError(f"the JSON schema has {what}", param="response_format") from None
