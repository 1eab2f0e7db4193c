import pytest

from penstock.json_schema import resolve, rewritten

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
    ["", "#anchor", "https://example.org/#", "#/none", "#/anyOf/2", "#/anyOf/x/y", "a/b"],
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
