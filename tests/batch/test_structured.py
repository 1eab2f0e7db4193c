import json
import random

import jsonschema
import pytest

from penstock.batch.structured import Schema, _quick_check, load
from penstock.errors import ConfigError

TICKET = {
    "type": "object",
    "properties": {
        "category": {"enum": ["billing", "shipping"]},
        "count": {"type": "integer"},
        "note": {"type": ["string", "null"]},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["category"],
    "additionalProperties": False,
}


def test_fields_are_the_properties():
    assert Schema(TICKET).fields == ("category", "count", "note", "tags")
    assert Schema({"type": "array", "items": {"type": "string"}}).fields == ("parsed",)


def test_parses_what_fits():
    assert Schema(TICKET).parse('{"category": "billing", "count": 2}') == {"category": "billing", "count": 2}
    assert Schema({"type": "integer"}).parse("7") == {"parsed": 7}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ('{"count": 1}', "'category' is a required property"),
        ('{"category": "rain"}', r"category: 'rain' is not one of"),
        ('{"category": "billing", "tags": [1]}', r"tags\[0\]: 1 is not of type 'string'"),
        ("[]", "not of type 'object'"),
    ],
)
def test_says_what_does_not_fit(text, message):
    with pytest.raises(ValueError, match=message):
        Schema(TICKET).parse(text)


def test_the_quick_check_never_accepts_what_the_validator_rejects():
    draw = random.Random(3)
    check = _quick_check(TICKET)
    assert check is not None
    validator = jsonschema.Draft202012Validator(TICKET)
    pool = ["billing", "rain", 1, 1.0, 2.5, True, None, [], ["a"], [1], {}]
    accepted = 0
    for _ in range(3000):
        value = {
            name: draw.choice(pool) for name in ("category", "count", "note", "tags", "more") if draw.random() < 0.6
        }
        if check(value):
            accepted += 1
            assert validator.is_valid(value), value
    assert accepted > 5


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^a"},
        {"enum": [1, True]},
        {"$ref": "#/$defs/a", "$defs": {"a": {}}},
        {"anyOf": []},
    ],
)
def test_the_quick_check_leaves_other_schemas_to_the_validator(schema):
    assert _quick_check(schema) is None


def test_references_are_followed():
    schema = Schema({"$defs": {"t": TICKET}, "$ref": "#/$defs/t"})
    assert schema.fields == ("category", "count", "note", "tags")
    assert schema.parse('{"category": "billing"}') == {"category": "billing"}


def test_bad_schemas_are_configuration_errors(tmp_path):
    with pytest.raises(ConfigError, match="not a valid JSON Schema"):
        load({"type": "strnig"})
    with pytest.raises(ConfigError, match=r"absent.json: \w"):
        load(tmp_path / "absent.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ConfigError, match="is no JSON"):
        load(tmp_path / "broken.json")
    (tmp_path / "good.json").write_text(json.dumps(TICKET))
    loaded = load(tmp_path / "good.json")
    assert loaded is not None
    assert loaded.schema == TICKET
    assert load(None) is None


def test_a_schema_file_with_a_byte_order_mark(tmp_path):
    (tmp_path / "s.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(TICKET).encode())
    loaded = load(tmp_path / "s.json")
    assert loaded is not None
    assert loaded.schema == TICKET
    (tmp_path / "s.json").write_bytes(json.dumps(TICKET).encode("utf-16"))
    with pytest.raises(ConfigError, match=r"s\.json is no JSON: it is UTF-16, not UTF-8"):
        load(tmp_path / "s.json")


def test_schemas_that_cannot_be_walked_through(tmp_path):
    (tmp_path / "s.json").write_text('{"items":' * 9999 + "{}" + "}" * 9999)
    with pytest.raises(ConfigError, match="nested more than 256 deep"):
        load(tmp_path / "s.json")
    circle: dict[str, object] = {}
    circle["items"] = circle
    with pytest.raises(ConfigError, match="nested more than 256 deep"):
        load(circle)
    for schema in ({"enum": [{1, 2}]}, {"enum": ["\ud800"]}):
        with pytest.raises(ConfigError, match=r"schema: holds"):
            load(schema)


@pytest.mark.parametrize("reference", ["#/$defs/absent", "https://example.com/schema.json"])
def test_references_that_lead_nowhere_are_refused(reference):
    with pytest.raises(ConfigError, match="leads nowhere"):
        Schema({"type": "object", "properties": {"a": {"$ref": reference}}})
