"""What `structured_outputs` takes, and what is told of the rest."""

import pytest

from penstock.errors import RequestError
from penstock.openai.parameters.body import parse_body
from penstock.openai.requests import ChatBody


@pytest.mark.parametrize(
    ("given", "param", "told"),
    [
        ({"choice": []}, "choice", "needs texts that are not empty"),
        ({"choice": ["a", ""]}, "choice", "needs texts that are not empty"),
        ({"choice": ["a"] * 4097}, "choice", "takes at most 4,096 texts"),
        ({"whitespace_pattern": "x"}, "whitespace_pattern", "is not supported"),
        ({"structural_tag": "{}"}, "structural_tag", "is not supported"),
        ({"disable_any_whitespace": True}, "disable_any_whitespace", "is not supported"),
        ({"regex": 5}, "regex", "must be text or null, not 5"),
        ({"json": 5}, "json", "must be an object, text or null, not 5"),
        ({"json": "[1]"}, "json", "must hold a JSON schema, an object, not '[1]'"),
        ({"json_object": "yes"}, "json_object", "must be a boolean or null, not 'yes'"),
    ],
)
def test_errors_name_the_field_the_value_and_what_is_expected(given, param, told):
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "structured_outputs": given,
    }
    with pytest.raises(RequestError) as caught:
        parse_body(ChatBody, body).request()
    assert caught.value.param == f"structured_outputs.{param}"
    assert str(caught.value) == f"structured_outputs.{param} {told}"


def test_an_unknown_field_is_told_the_known_ones():
    with pytest.raises(RequestError, match=r"is unknown, and was 'x'\. Known: choice, disable_"):
        constraint(structured_outputs={"grammer": "x"})


BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def constraint(**fields):
    return parse_body(ChatBody, {**BODY, **fields}).request().sampling.structured


@pytest.mark.parametrize(
    ("fields", "names", "param"),
    [
        (
            {"structured_outputs": {"json": {}, "regex": "a"}},
            "structured_outputs.json and structured_outputs.regex",
            "structured_outputs.regex",
        ),
        (
            {"structured_outputs": {"choice": ["a"]}, "response_format": {"type": "json_object"}},
            "response_format and structured_outputs.choice",
            "structured_outputs.choice",
        ),
        (
            {"guided_regex": "a", "guided_grammar": "b"},
            "guided_regex and guided_grammar",
            "guided_grammar",
        ),
        (
            {"guided_choice": ["a"], "structured_outputs": {"grammar": "b"}},
            "structured_outputs.grammar and guided_choice",
            "guided_choice",
        ),
    ],
)
def test_one_constraint_at_a_time(fields, names, param):
    with pytest.raises(RequestError) as caught:
        constraint(**fields)
    assert str(caught.value) == f"an answer has one form: give one of {names}"
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        (
            {"structured_outputs": {"regex": "a", "json_object": False, "json": None}},
            ("regex", "a"),
        ),
        ({"structured_outputs": {"choice": ["a.b", "c"]}}, ("regex", r"(a\.b|c)")),
        ({"structured_outputs": {"grammar": "root ::= x"}}, ("grammar", "root ::= x")),
        (
            {"structured_outputs": {"disable_any_whitespace": False, "json_object": True}},
            ("json_object", ""),
        ),
        ({"guided_json": {"type": "null"}}, ("json_schema", '{"type": "null"}')),
        ({"guided_json": '{"type": "null"}'}, ("json_schema", '{"type": "null"}')),
        ({"guided_regex": "a+", "guided_decoding_backend": "xgrammar"}, ("regex", "a+")),
        ({"guided_choice": ["yes", "no"]}, ("regex", "(yes|no)")),
        ({"guided_grammar": "root ::= x"}, ("grammar", "root ::= x")),
        (
            {"response_format": {"type": "grammar", "grammar": "root ::= x"}},
            ("grammar", "root ::= x"),
        ),
        (
            {"response_format": {"type": "json_object", "value": {"type": "null"}}},
            ("json_schema", '{"type": "null"}'),
        ),
        ({"guided_regex": None, "structured_outputs": None, "response_format": None}, None),
        ({"response_format": {"type": "text"}, "structured_outputs": {}}, None),
    ],
)
def test_each_name_gives_its_constraint(fields, wanted):
    found = constraint(**fields)
    assert (found and (found.kind, found.spec)) == wanted


def test_a_json_object_has_its_schema_once():
    both = {"type": "json_object", "value": {"type": "null"}, "schema": {"type": "boolean"}}
    with pytest.raises(RequestError, match="a 'schema' or a 'value', not both") as caught:
        constraint(response_format=both)
    assert caught.value.param == "response_format.value"
    with pytest.raises(RequestError, match="the 'value' of a json_object must be an object"):
        constraint(response_format={"type": "json_object", "value": "{}"})
