import datetime

import pytest

from penstock.batch.rows.requests import Template, as_text
from penstock.errors import ConfigError, RequestError


def test_places_values_and_unescapes_braces():
    template = Template('Sort {{"id": {id}}}: {long name}, {id}.')
    assert template.columns == ("id", "long name")
    assert template.render({"id": 7, "long name": "x"}) == 'Sort {"id": 7}: x, 7.'


@pytest.mark.parametrize("text", ["{a.__class__}", "{a[0]}", "{a!r}", "{a:>10}"])
def test_no_field_reaches_beyond_a_column(text):
    template = Template(text)
    with pytest.raises(ConfigError, match="has no column"):
        template.check(["a"])
    with pytest.raises(RequestError):
        template.render({"a": "x"})


@pytest.mark.parametrize("text", ["a { b", "a } b", "{}", "{{}"])
def test_a_lone_brace_is_an_error_that_tells_the_remedy(text):
    with pytest.raises(ConfigError, match="for a brace in the text"):
        Template(text)


@pytest.mark.parametrize("text", ['{"a": "b"} {text}', '{"a": {"b": 1}}', "{a, b}", "{\n}"])
def test_json_in_a_prompt_is_told_to_double_its_braces(text):
    with pytest.raises(ConfigError, match=r"Write '\{\{' or '\}\}' for a brace in the text"):
        Template(text).check(["text"])


def test_where_columns_may_come_later_only_json_is_missed():
    Template("{text} {later}").check(["text"], complete=False)
    Template('{"odd" name}').check(['"odd" name'], complete=False)
    with pytest.raises(ConfigError, match="for a brace in the text"):
        Template('{"a": "b"}').check(["text"], complete=False)


def test_an_unknown_column_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'message'"):
        Template("{mesage}").check(["id", "message"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "true"),
        (1.5, "1.5"),
        ({"a": [1]}, '{"a":[1]}'),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (b"bytes", "bytes"),
    ],
)
def test_values_as_text(value, text):
    assert as_text(value) == text


def test_binary_values_have_no_text():
    with pytest.raises(RequestError, match="binary"):
        as_text(b"\xff")


def test_arrays_stand_in_full():
    numpy = pytest.importorskip("numpy")
    assert Template("{a}").render({"a": numpy.arange(3)}) == "[0,1,2]"
