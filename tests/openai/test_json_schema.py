import re
from itertools import product

import pytest

from penstock.openai.json_schema import EMAIL, resolve, rewritten, without_look_ahead

ROOT = {
    "anyOf": [{"type": "null"}, {"type": "string"}],
    "definitions": {"Foo<string>": 1, "a/b": 2, "c~d": 3, "50%": 4, "": 5},
}


@pytest.mark.parametrize(
    ("reference", "target"),
    [
        ("#", ROOT),
        ("#/anyOf/1/type", "string"),
        ("#/definitions/Foo<string>", 1),
        ("#/definitions/Foo%3Cstring%3E", 1),
        ("#/definitions/a~1b", 2),
        ("#/definitions/c~0d", 3),
        ("#/definitions/50%25", 4),
        ("#/definitions/50%", 4),
        ("#/definitions/", 5),
    ],
)
def test_references_lead_into_the_schema(reference, target):
    assert resolve(ROOT, reference) == target


@pytest.mark.parametrize(
    "reference",
    [
        "",
        "#anchor",
        "https://example.org/#",
        "#/none",
        "#/anyOf/2",
        "#/anyOf/x/y",
        "a/b",
        f"#/anyOf/{'9' * 5000}",
    ],
)
def test_references_that_lead_nowhere(reference):
    with pytest.raises(LookupError):
        resolve(ROOT, reference)


def test_names_and_values_are_no_keywords():
    schema = {
        "properties": {"const": {"$ref": "#a"}, "$ref": {"const": {"$ref": "#a"}}},
        "anyOf": [{"$ref": "#a"}, True],
    }
    seen = []

    def change(keyword, value):
        seen.append(keyword)
        return "#b" if keyword == "$ref" else value

    assert rewritten(schema, change) == {
        "properties": {"const": {"$ref": "#b"}, "$ref": {"const": {"$ref": "#a"}}},
        "anyOf": [{"$ref": "#b"}, True],
    }
    assert sorted(seen) == ["$ref", "$ref", "anyOf", "const", "properties"]


@pytest.mark.parametrize(
    ("pattern", "alphabet", "longest"),
    [
        (
            r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]"
            r"@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$",
            "a.@'",
            8,
        ),
        (r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$", "0+-.7e", 5),
    ],
)
def test_common_patterns_have_an_equal_without_look_ahead(pattern, alphabet, longest):
    with_it, without = re.compile(pattern), re.compile(without_look_ahead(pattern))
    assert "(?!" not in without.pattern
    texts = ["".join(text) for n in range(longest + 1) for text in product(alphabet, repeat=n)]
    assert [t for t in texts if with_it.search(t)] == [t for t in texts if without.search(t)]
    assert any(map(with_it.search, texts))


def test_other_patterns_stay_as_they_are():
    assert without_look_ahead(EMAIL) == EMAIL
    assert without_look_ahead("(?=a)b") == "(?=a)b"
