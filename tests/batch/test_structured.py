import json
import os
import random
import re
import select
import subprocess
import sys
import textwrap

import jsonschema_rs
import pytest

from penstock.batch import structured
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
    assert Schema(TICKET).parse('{"category": "billing", "count": 2}') == {
        "category": "billing",
        "count": 2,
    }
    assert Schema({"type": "integer"}).parse("7") == {"parsed": 7}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON: it ends too early"),
        ("", "no JSON: it is empty"),
        ('{"count": x}', "no JSON: unexpected text at column 11"),
        ('{"count": NaN}', "no JSON: NaN and Infinity are not JSON"),
        ('{"note": "\\ud800"}', "no JSON: it holds a lone surrogate"),
        ('{"count": 1e999}', "no JSON: it holds a number that is out of range"),
        ('{"tags": ' + "[" * 5000 + "]" * 5000 + "}", "nested too deeply"),
        ('{"count": 1}', "'category' is missing"),
        ('{"category": "rain"}', r'category: must be one of "billing", "shipping", not "rain"'),
        ('{"category": "billing", "tags": [1]}', r"tags\[0\]: must be a string, not 1"),
        ("[]", r"must be an object, not \[\]"),
    ],
)
def test_says_what_does_not_fit(text, message):
    with pytest.raises(ValueError, match=message):
        Schema(TICKET).parse(text)


def test_the_quick_check_never_accepts_what_the_validator_rejects():
    draw = random.Random(3)
    check = _quick_check(TICKET)
    assert check is not None
    validator = jsonschema_rs.validator_for(TICKET)
    pool = ["billing", "rain", 1, 1.0, 2.5, True, None, [], ["a"], [1], {}]
    accepted = 0
    for _ in range(3000):
        value = {
            name: draw.choice(pool)
            for name in ("category", "count", "note", "tags", "more")
            if draw.random() < 0.6
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


def test_a_reference_may_be_quoted_as_a_part_of_a_uri():
    table = {"Ticket<string>": TICKET, "Ticket": TICKET}
    for name in ("Ticket", "Ticket%3Cstring%3E"):
        schema = Schema({"definitions": table, "$ref": f"#/definitions/{name}"})
        assert schema.fields == ("category", "count", "note", "tags")


def test_a_reference_to_the_root_is_not_blamed_for_another():
    with pytest.raises(ConfigError, match=r"the \$ref '#/\$defs/none' leads nowhere"):
        Schema({"properties": {"a": {"$ref": "#"}, "b": {"$ref": "#/$defs/none"}}})


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


def test_a_schema_in_openais_wrapping_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"OpenAI's form of one; give .* its 'schema'"):
        load({"name": "ticket", "schema": TICKET, "strict": True})
    path = tmp_path / "format.json"
    path.write_text(json.dumps({"type": "json_schema", "json_schema": {"schema": TICKET}}))
    with pytest.raises(ConfigError, match="give what stands in its 'json_schema'"):
        load(path)


def test_properties_keep_their_order():
    schema = Schema(
        {"type": "object", "properties": {"why": {"type": "string"}, "answer": {"type": "boolean"}}}
    )
    assert list(json.loads(schema.text)["properties"]) == ["why", "answer"]


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


@pytest.mark.parametrize(
    "reference",
    [
        *(
            "#/$defs/absent",
            "https://example.com/schema.json",
            "file:///etc/hostname",
            "other.json",
            "#absent",
        ),
        "#/$defs/a/b/c",
    ],
)
def test_references_that_lead_nowhere_are_refused(reference):
    with pytest.raises(ConfigError, match=f"the \\$ref '{re.escape(reference)}' leads nowhere"):
        Schema({"type": "object", "properties": {"a": {"$ref": reference}}, "$defs": {"a": {}}})


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "integer"}}},
        {"$ref": "#x", "$defs": {"a": {"$anchor": "x", "type": "integer"}}},
        {
            "$ref": "http://example.com/a",
            "$defs": {"a": {"$id": "http://example.com/a", "type": "integer"}},
        },
        {"$ref": "#/definitions/a~1b", "definitions": {"a/b": {"type": "integer"}}},
        {
            "$schema": "http://json-schema.org/draft-04/schema#",
            "minimum": 0,
            "exclusiveMinimum": True,
        },
        {"$schema": "http://json-schema.org/draft-07/schema#", "type": "integer"},
        {"$schema": "https://json-schema.org/draft/2019-09/schema", "type": "integer"},
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "integer"},
    ],
)
def test_references_within_and_the_drafts_are_followed(schema):
    assert Schema(schema).parse("1") == {"parsed": 1}
    with pytest.raises(ValueError, match="does not fit"):
        Schema(schema).parse("0" if "minimum" in schema else '"a"')


def test_a_reference_that_leads_to_itself_ends():
    assert Schema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}).parse("1") == {
        "parsed": 1
    }
    tree = Schema({"type": "object", "properties": {"a": {"$ref": "#"}}})
    assert tree.parse('{"a": {"a": {}}}') == {"a": {"a": {}}}
    with pytest.raises(ValueError, match=r"a\.a: must be an object"):
        tree.parse('{"a": {"a": 1}}')


@pytest.mark.parametrize(
    "declared", ["http://json-schema.org/draft-03/schema#", "https://example.com/mine", "x"]
)
def test_other_drafts_are_refused_by_name(declared):
    with pytest.raises(ConfigError, match=f'"{declared}" is none of the drafts'):
        Schema({"$schema": declared, "type": "integer"})


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "strnig"}, "type"),
        ({"properties": {"a": 5}}, "properties.a: must be"),
        ({"required": "a"}, "required: must be an array"),
        ({"minimum": "1"}, 'minimum: must be a number, not "1"'),
        ({"pattern": "(?=a)"}, r'the pattern "\(\?=a\)" cannot be used: it has a lookahead'),
        ({"patternProperties": {"(": {}}}, r'the pattern "\(" cannot be used: .*not closed'),
        ({"properties": {"a": {"pattern": r"(a)\1"}}}, "cannot be used: it has a back-reference"),
        ({"pattern": "((a{1,1000}){1,1000}){1,1000}"}, "cannot be used: it is too large"),
    ],
)
def test_what_is_wrong_with_a_schema_is_told(schema, says):
    with pytest.raises(ConfigError, match=says):
        Schema(schema)


@pytest.mark.parametrize("name", ["pattern", "$ref", "patternProperties"])
def test_fields_may_be_called_like_keywords(name):
    schema = {"type": "object", "properties": {name: {"type": "string"}}, "required": [name]}
    assert Schema(schema).parse(json.dumps({name: "(?=a)"})) == {name: "(?=a)"}
    const = {"type": "object", "const": {name: "(?=a)"}}
    assert Schema(const).parse(json.dumps({name: "(?=a)"})) == {"parsed": {name: "(?=a)"}}


@pytest.mark.parametrize(
    "price", ["0.07", "19.99", "4.02", "1e300", "0", "-0.01", "100000000000000000000.01"]
)
def test_cents_are_multiples_of_a_cent(price):
    schema = Schema(
        {"type": "object", "properties": {"price": {"type": "number", "multipleOf": 0.01}}}
    )
    assert schema.parse(f'{{"price": {price}}}') == {"price": json.loads(price)}
    with pytest.raises(ValueError, match=r"price: must be a multiple of 0\.01, not 4\.025"):
        schema.parse('{"price": 4.025}')


@pytest.mark.parametrize(
    ("schema", "text", "says"),
    [
        ({"type": ["string", "null"]}, "1", "must be (a string or null|null or a string), not 1"),
        ({"const": "a"}, '"b"', 'must be "a", not "b"'),
        ({"minimum": 3}, "2", "must be at least 3, not 2"),
        ({"exclusiveMaximum": 3}, "3", "must be less than 3, not 3"),
        ({"minLength": 2}, '"🙂"', 'must have at least 2 characters, not "🙂"'),
        ({"maxItems": 1}, "[1, 2]", r"must have at most 1 items, not \[1,2\]"),
        ({"minProperties": 1}, "{}", "must have at least 1 fields"),
        ({"uniqueItems": True}, "[1, 1]", "has an item twice"),
        ({"pattern": r"^\d+$"}, '"٣"', r'must match \^\\d\+\$, not "٣"'),
        (
            {"propertyNames": {"pattern": "^a"}},
            '{"b": 1}',
            "a name of its fields does not fit: must match",
        ),
        (
            {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "1",
            "fits none of the schemas in 'anyOf'",
        ),
        (
            {"oneOf": [{"type": "integer"}, {"minimum": 0}]},
            "1",
            "fits more than one of the schemas in 'oneOf'",
        ),
        ({"not": {}}, "1", "is what 'not' excludes"),
        ({"contains": {"type": "string"}}, "[1]", "'contains' asks for"),
        (
            {"properties": {"a": {}}, "additionalProperties": False},
            '{"b": 1}',
            "'b' is not among the fields",
        ),
        ({"properties": {"a": False}}, '{"a": 1}', "a: 1 may not be there"),
        ({"dependentRequired": {"a": ["b"]}}, '{"a": 1}', "'b' is missing"),
        (
            {"items": {"items": {"type": "string"}}},
            '[["a"], ["b", 1]]',
            r"\[1\]\[1\]: must be a string",
        ),
        ({"maximum": 10**30}, str(10**31), "must be at most 10{30}, not 10{31}"),
    ],
)
def test_what_does_not_fit_is_told_in_plain_words(schema, text, says):
    with pytest.raises(ValueError, match=f"does not fit the schema: .*{says}"):
        Schema(schema).parse(text)


def test_numbers_are_kept_as_they_are():
    schema = Schema({"type": "array", "items": {"type": "number"}})
    assert schema.parse("[18446744073709551616, 1.5, -0.0]") == {
        "parsed": [18446744073709551616, 1.5, -0.0]
    }


def test_formats_are_for_people():
    assert Schema({"type": "string", "format": "date"}).parse('"soon"') == {"parsed": "soon"}


@pytest.mark.parametrize("pattern", ["^(a+)+$", "(x+x+)+y", "^(x|xx)+$"])
def test_no_pattern_takes_more_than_linear_time(pattern):
    with pytest.raises(ValueError, match="must match"):
        Schema({"type": "string", "pattern": pattern}).parse(json.dumps("x" * 50_000 + "a!"))


def test_the_process_that_checks_answers_ends_with_who_started_it():
    program = """
        import os, subprocess, sys, time
        from penstock.engines.process import modules_of_this, python
        asked, answer = map(int, sys.argv[1:])
        checks = python("-m", "penstock.batch.structured", str(os.getpid()))
        subprocess.Popen(checks, stdin=asked, stdout=answer, env=modules_of_this())
        print("started", flush=True)
        time.sleep(600)
    """
    asked, asks = os.pipe()
    answer, answers = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(asked), str(answers)],
        stdout=subprocess.PIPE,
        pass_fds=(asked, answers),
    ) as parent:
        os.close(asked)
        os.close(answers)
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"started\n"
        parent.kill()
    ended, _, _ = select.select([answer], [], [], 30)
    os.close(asks)  # it would end with what it waits for, too
    os.close(answer)
    assert ended


@pytest.mark.slow
async def test_what_may_take_long_is_checked_apart(monkeypatch):
    schema = Schema(
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "^[ab]*a[ab]{9}$"}}}
    )
    monkeypatch.setattr(structured, "SLOW_STEPS", 1)
    monkeypatch.setattr(Schema, "parse", None)  # not here
    assert await schema.read('{"a": "ababababababababab"}') == {"a": "ababababababababab"}
    for text, says in (('{"a": "bbb"}', r"a: must match \^\[ab\]"), ("{", "ends too early")):
        with pytest.raises(ValueError, match=says):
            await schema.read(text)
