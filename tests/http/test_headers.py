import pytest

from penstock.errors import ConfigError
from penstock.http.endpoint import Headers, bearer

KEY = "sk-very-secret-1234"


@pytest.fixture
def headers(monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    return Headers(
        {"Authorization": "Bearer ${MY_KEY}", "X-Team": "${MY_KEY}-team", "X-Plain": "shown"}
    )


def test_variables_are_filled_in(headers):
    assert headers.values == {
        "Authorization": f"Bearer {KEY}",
        "X-Team": f"{KEY}-team",
        "X-Plain": "shown",
    }


def test_keys_are_not_shown(headers):
    assert KEY not in repr(headers)
    assert "shown" in repr(headers)


def test_keys_are_scrubbed_from_texts(headers):
    assert headers.scrub(f"the key {KEY} is wrong") == "the key *** is wrong"
    assert headers.scrub(f"Authorization: Bearer {KEY}") == "Authorization: ***"


@pytest.mark.parametrize(
    "name", ["Authorization", "X-Api-Key", "Proxy-Authorization", "X-Auth-Token"]
)
def test_keys_that_are_given_in_the_open_are_not_shown_either(name):
    headers = Headers({name: KEY})
    assert KEY not in repr(headers)
    assert headers.scrub(KEY) == "***"


@pytest.mark.parametrize(
    ("given", "field", "hint"),
    [
        ({"X": "${NOT_SET_AT_ALL}"}, "headers.X", "NOT_SET_AT_ALL is not set"),
        ({"X": "a\r\nY: b"}, "headers.X", "line breaks"),
        ({"X": 3}, "headers.X", "text"),
    ],
)
def test_what_cannot_be_a_header_names_its_field(given, field, hint):
    with pytest.raises(ConfigError, match=hint) as caught:
        Headers(given)
    assert caught.value.field == field


def test_a_key_comes_from_the_environment_only_where_it_is_named(monkeypatch):
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    assert bearer(None) == {}
    assert bearer("MY_KEY") == {"Authorization": f"Bearer {KEY}"}
    with pytest.raises(ConfigError, match="OTHER is not set"):
        bearer("OTHER")
