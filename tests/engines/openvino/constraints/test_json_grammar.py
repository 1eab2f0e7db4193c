import json
import re
from datetime import date

import jsonschema_rs
import pytest

from penstock.engines.openvino.constraints.json_grammar import json_grammar
from penstock.engines.openvino.constraints.json_schemas import FORMATS
from penstock.errors import RequestError
from penstock.openai.json_schema import EMAIL

NODE = {
    "type": "object",
    "properties": {
        "v": {"type": "integer"},
        "next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]},
    },
    "required": ["v", "next"],
}
SCHEMAS = [
    {
        "type": "object",
        "properties": {"a": {"type": "string", "maxLength": 5}, "b": {"type": "integer"}},
    },
    {
        "type": "object",
        "properties": {"a": {"type": ["string", "null"], "maxLength": 4}},
        "required": ["a"],
    },
    {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "additionalProperties": {"enum": [1, 2]},
    },
    {
        "type": "object",
        "patternProperties": {"^x_[a-z]{1,3}$": {"type": "number"}},
        "properties": {"y": {"const": 1}},
    },
    {
        "type": "object",
        "propertyNames": {"pattern": "^[A-Z]{2,4}$"},
        "additionalProperties": {"type": "boolean"},
    },
    {
        "type": "object",
        "minProperties": 2,
        "maxProperties": 3,
        "properties": {k: {"const": k} for k in "abcde"},
    },
    {
        "type": "object",
        "required": ["z"],
        "additionalProperties": {"type": "integer"},
        "maxProperties": 1,
    },
    {
        "type": "object",
        "properties": {
            "sp ace": {"type": "null"},
            'q"uote': {"type": "null"},
            "éA": {"type": "null"},
        },
    },
    {"enum": ["éA", "ÿ0é1"]},
    {"properties": {"a": False, "b": {"type": "integer"}}, "type": "object"},
    {
        "type": "array",
        "items": {"type": "integer", "minimum": -3, "maximum": 17},
        "minItems": 2,
        "maxItems": 5,
    },
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}], "items": False},
    {
        "$schema": "http://json-schema.org/draft-07/schema#",
        **{
            "type": "array",
            "items": [{"type": "boolean"}],
            "additionalItems": {"type": "null"},
            "maxItems": 3,
        },
    },
    {"type": "array", "items": {"type": "boolean"}, "maxItems": 0},
    {"type": "number", "minimum": -1.5, "maximum": 2.25},
    {"type": "number", "exclusiveMinimum": 0.1, "exclusiveMaximum": 0.3},
    {"type": "number", "multipleOf": 0.01, "minimum": 0, "maximum": 20},
    {"type": "integer", "exclusiveMinimum": -12345, "maximum": 98765},
    {"enum": ['a"b', "c\\d", "e\nf", 1, 1.5, None, True, {"k": [1, 2]}, "ü"]},
    {"type": "string", "enum": ["x", 1, "yy"]},
    {"type": "string", "minLength": 3, "maxLength": 6},
    {"type": "string", "minLength": 150, "maxLength": 170},
    {"type": "string", "pattern": "^(foo|ba[rz])-[0-9]{2,3}$"},
    {"type": "string", "pattern": "^[a-c]+$", "maxLength": 4},
    {"type": "string", "pattern": "^https?://.+$", "maxLength": 40},
    {"type": "string", "pattern": r"^[^@\s]+@[^@\s]+\.[^@\s]+$", "maxLength": 64},
    {"type": "string", "pattern": "^[a-z]+(-[a-z]+)*$", "maxLength": 255},
    {"type": "string", "pattern": '["\\\\\n]{3}'},
    {"type": "string", "format": "uuid", "maxLength": 36},
    {"type": "string", "format": "ipv4", "minLength": 1, "maxLength": 200},
    *[{"type": "string", "format": "email", "maxLength": most} for most in (6, 30, 254)],
    *[{"type": "string", "pattern": EMAIL, "maxLength": most} for most in (30, 254)],
    {"type": "string", "format": "uri", "minLength": 5, "maxLength": 20},
    {
        "type": "object",
        "properties": {f"p{n}": {"type": "null"} for n in range(9)},
        "required": ["p2", "p7"],
    },
    {"enum": [f"{'x' * (n % 3)}value {n // 2 * 7}" for n in range(40)] + ["x", "", "\x01a", 'q"']},
    *[
        {"type": "string", "format": name}
        for name in ("date", "time", "date-time", "uuid", "ipv4", "ipv6", "hostname")
    ],
    {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "integer"}]},
    {
        "oneOf": [
            {
                "type": "object",
                "properties": {"k": {"const": name}, name: {"type": "integer"}},
                "required": ["k", name],
            }
            for name in "ab"
        ]
    },
    {
        "allOf": [
            {
                "type": "object",
                "properties": {"a": {"type": "integer", "minimum": 3}},
                "required": ["a"],
            },
            {"properties": {"a": {"maximum": 6}, "b": {"type": "null"}}, "required": ["b"]},
        ]
    },
    {
        "type": "object",
        "properties": {"a": {"type": "null"}},
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
    },
    {"$defs": {"n": NODE}, "$ref": "#/$defs/n"},
    {
        "type": "object",
        "properties": {"kids": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}},
    },
    {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    *[
        {
            "$ref": "#/$defs/n",
            "$defs": {
                "n": {
                    "type": "object",
                    "properties": {"v": {"type": "null"}, "n": {"$ref": "#/$defs/n", **beside}},
                    "required": ["v"],
                }
            },
        }
        for beside in ({"deprecated": True}, {"readOnly": True, "x-order": 1}, {"nullable": True})
    ],
    {
        "$ref": "#/$defs/e",
        "$defs": {
            "e": {
                "oneOf": [{"$ref": "#/$defs/not"}, {"$ref": "#/$defs/x"}],
                "discriminator": {"propertyName": "kind"},
            },
            **{
                kind: {
                    "type": "object",
                    "properties": {"kind": {"const": kind}, "of": of},
                    "required": ["kind", "of"],
                }
                for kind, of in (("not", {"$ref": "#/$defs/e"}), ("x", {"type": "null"}))
            },
        },
    },
    {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/x"}},
        "const": {"a": 1},
        "$defs": {"x": {"type": "integer"}},
    },
    {
        "$ref": "#/$defs/n",
        "$defs": {
            "n": {
                "type": "object",
                "properties": {
                    name: {"$ref": "#/$defs/x"} for name in ("const", "enum", "definitions")
                },
                "required": ["const", "enum", "definitions"],
            },
            "x": {"type": "integer"},
        },
    },
    {"type": "array", "prefixItems": [{"type": "integer"}], "minItems": 2},
    {
        "$ref": "#/$defs/tree",  # as pydantic writes a recursive union
        "$defs": {
            "tree": {
                "oneOf": [{"$ref": "#/$defs/leaf"}, {"$ref": "#/$defs/fork"}],
                "discriminator": {"propertyName": "kind"},
            },
            "leaf": {
                "type": "object",
                "properties": {"kind": {"const": "leaf", "default": "leaf"}},
            },
            "fork": {
                "type": "object",
                "properties": {"kind": {"const": "fork", "default": "fork"}}
                | {side: {"$ref": "#/$defs/tree"} for side in ("left", "right")},
                "required": ["left", "right"],
            },
        },
    },
    {
        "type": "object",
        "properties": {"next": {"$ref": "#", "type": "object", "maxProperties": 1}},
    },
    {
        "oneOf": [{"$ref": "#/$defs/s", "type": "null"}, {"$ref": "#/$defs/s"}],
        "$defs": {"s": {"type": "string", "maxLength": 3}},
    },
    {"$ref": "#/definitions/A%3Cb%3E", "definitions": {"A<b>": {"type": "integer"}}},
    {
        "type": "object",
        "properties": {
            "a": {"type": "null"},
            "b": {"$ref": "#/$defs/o", "anyOf": [{"type": "string"}]},  # no value fits
        },
        "$defs": {"o": {"type": "object"}},
    },
    {"type": "array", "unevaluatedItems": False},
    {"type": "array", "allOf": [{"prefixItems": [{"type": "null"}]}], "unevaluatedItems": False},
    {
        "type": "object",
        "properties": {"a": {"type": "null"}},
        "anyOf": [{"$ref": "#/$defs/b"}, {"properties": {"c": {"type": "null"}}}],
        "unevaluatedProperties": False,
        "$defs": {"b": {"properties": {"b": {"type": "null"}}, "required": ["b"]}},
    },
]


def without_strings(text):
    return re.sub(r'"(\\.|[^"\\])*"', "", text)


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:60])
def test_what_the_grammar_allows_fits_the_schema_and_has_no_white_space(writer, schema):
    texts = writer.texts(json_grammar(schema))
    assert texts
    fits = jsonschema_rs.validator_for(schema, validate_formats=True)
    for text in texts:
        assert fits.is_valid(json.loads(text)), text
        assert not re.search(r"\s", without_strings(text)), text


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "null"}}, "'not'"),
        ({"type": "integer", "multipleOf": 7}, "multipleOf"),
        ({"if": {"type": "string"}, "then": {"maxLength": 3}}, "'if'"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"oneOf": [{"$ref": "#/$defs/any"}, {"type": "null"}], "$defs": {"any": True}}, "oneOf"),
        ({"allOf": [{"pattern": "a"}, {"pattern": "b"}], "type": "string"}, "'pattern'"),
        (
            {"allOf": [{"prefixItems": [{"type": "null"}]}, {"items": {"type": "integer"}}]},
            "'prefixItems'",
        ),
        ({"allOf": [{"items": [{"type": "null"}]}, {"items": {"type": "integer"}}]}, "'items'"),
        (
            {
                "allOf": [
                    {"items": [{"type": "null"}], "additionalItems": others}
                    for others in (True, False)
                ]
            },
            "'items'",
        ),
        (
            {
                "allOf": [
                    {"properties": {"a": {}}, "unevaluatedProperties": False},
                    {"properties": {"b": {}}},
                ]
            },
            "'unevaluatedProperties'",
        ),
        ({"allOf": [{"enum": [0, 1]}, {"enum": [False, True]}]}, "no value fits"),
        (
            {
                "$defs": {"k": {"type": "string"}},
                "properties": {
                    "a": {
                        "$id": "https://example.org/a",
                        "items": {"$ref": "#/$defs/k"},
                        "$defs": {"k": {"type": "integer"}},
                    }
                },
            },
            "'$id'",
        ),
        (
            {"type": "string", "pattern": r"^\w+ \w+$", "maxLength": 9},
            "'pattern' together with a length",
        ),
        (
            {"type": "string", "pattern": "^[a-z]+(-[a-z]+)*$", "maxLength": 60},
            "'pattern' together with a length",
        ),
        (
            {"type": "string", "pattern": "^[a-z]+(-[a-z]+)*$", "minLength": 2},
            "'pattern' together with a length",
        ),
        ({"type": "string", "format": "date", "maxLength": 9}, "format 'date' and a 'maxLength'"),
        (
            {"type": "string", "format": "email", "minLength": 50},
            "format 'email' and a 'minLength'",
        ),
        (
            {"type": "string", "pattern": EMAIL, "minLength": 50},
            "'pattern' of email addresses and a 'minLength'",
        ),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"$ref": "https://example.org/schema"}, "leads out of the schema"),
        ({"$ref": "#/$defs/none"}, "leads nowhere"),
        ({"$ref": "#"}, "no value fits"),
        (
            {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
            "no value fits",
        ),
        (False, "no value fits"),
        ({"type": "object", "required": ["a"], "unevaluatedProperties": False}, "no value fits"),
        ({"type": "integer", "minimum": 1e20}, "more than 19 digits"),
        ({"type": "number", "maximum": -1e20}, "more than 19 digits"),
        ({"prefixItems": [{"$ref": "#"}], "type": "array"}, "no value fits"),
        (
            {
                "$ref": "#/$defs/n",
                "required": ["n"],
                "$defs": {
                    "n": {
                        "type": "object",
                        "properties": {"n": {"$ref": "#/$defs/n", "required": ["n"]}},
                    }
                },
            },
            "no value fits",
        ),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "no value fits"),
        (
            {
                "type": "object",
                "properties": {"x1": {"type": "null"}},
                "patternProperties": {"^x": {}, "1$": True},
            },
            "'patternProperties'",
        ),
        *[
            (
                {
                    "type": "object",
                    "properties": {"ab": {"type": "integer"}},
                    "patternProperties": {"^a[a-z]$": anything},
                },
                "'patternProperties'",
            )
            for anything in (dict[str, object](), True)
        ],
    ],
    ids=str,
)
def test_what_no_grammar_holds_is_refused_by_name(schema, told):
    with pytest.raises(RequestError) as refused:
        json_grammar(schema)
    assert told in str(refused.value)


def test_what_is_checked_later_may_be_left_to_that(writer):
    schema = {
        "type": "array",
        "items": {"type": "boolean"},
        "uniqueItems": True,
        "minItems": 1,
        "maxItems": 3,
    }
    assert writer.texts(json_grammar(schema, checked=True))


def nested(depth):
    schema: dict[str, object] = {}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(5000)}},
        {"enum": [f"value {n}" for n in range(50_000)]},
        {"type": "string", "pattern": "^([a-z]{1,300} ){1,300}$"},
        {"type": "string", "minLength": 5_000_000},
        {
            "anyOf": [
                {"type": "object", "properties": {f"tool{n}": {"type": "object"}}}
                for n in range(10_000)
            ]
        },
        nested(200),
    ],
    ids=["properties", "enum", "pattern", "minLength", "tools", "depth"],
)
def test_what_is_too_large_is_refused(schema):
    with pytest.raises(RequestError, match="the constraint is too large"):
        json_grammar(schema)


def test_dates_begin_at_the_year_1():
    pattern = re.compile(FORMATS["date"])
    for day in ("0000-01-01", "0000-02-29", "1900-02-29", "2023-02-29"):
        assert not pattern.fullmatch(day)
    for day in ("0001-01-01", "0004-02-29", "0099-12-31", "0400-02-29", "2000-02-29"):
        assert pattern.fullmatch(day)
        date.fromisoformat(day)
