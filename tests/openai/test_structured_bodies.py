"""What `structured_outputs` takes, and what is told of the rest."""

import pytest

from penstock.errors import RequestError
from penstock.openai.requests import ChatBody, parse_body


@pytest.mark.parametrize(
    ("given", "param", "told"),
    [
        (
            {"choice": ["a", "b"]},
            "choice",
            "is unknown, and was a list. Known: json, json_object, regex",
        ),
        (
            {"grammar": "root ::= x"},
            "grammar",
            "is unknown, and was 'root ::= x'. Known: json, json_object, regex",
        ),
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


def test_one_constraint_at_a_time():
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    with pytest.raises(
        RequestError, match="takes one of json, json_object and regex, not json and regex"
    ):
        parse_body(ChatBody, {**body, "structured_outputs": {"json": {}, "regex": "a"}}).request()
    given = {"regex": "a", "json_object": False, "json": None}
    asked = parse_body(ChatBody, {**body, "structured_outputs": given}).request()
    assert asked.sampling.structured is not None
    assert asked.sampling.structured.kind == "regex"
