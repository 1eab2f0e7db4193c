import re

import pytest

from penstock.engines.openvino.constraints.regex import Chars, RegexWriter, lengths, parse
from penstock.engines.openvino.constraints.writer import Grammar
from penstock.errors import RequestError


def grammar_of(pattern):
    grammar = Grammar()
    return grammar.text(RegexWriter(grammar, in_json=False).body(parse(pattern)))


@pytest.mark.parametrize(
    "pattern",
    [
        "[ab]{3}-[0-9]{2}",
        "^(yes|no|may ?be)$",
        r"\d{4}-\d{2}",
        r"[^\s\W]{1,40}",
        "a*b+c?",
        "(?:ab|c){2,}x",
        r"\x41\u0042\.\-\\",
        "[а-я]{2,9}|[一-龥]{1,3}",
        "[a-z]{140,150}",
        ".{1,40}",
        "[a-z]{1,200}-",
        "(a|b|){3}c",
        "{x}",
        r"[\]^-]{1,3}",
        "a.c",
        "éAb",
        "[é]A",
        r"\x01f[\x02a-f]c",
        "(ÿ0){2}",
        "(^a$)|(^b$)",
        "^(?:^(?P<month>May|June) [1-9]$)$",
        "^^(^a|^b)c$|(d|e$)$",
    ],
)
def test_what_the_grammar_allows_matches(writer, pattern):
    texts = writer.texts(grammar_of(pattern))
    assert texts
    for text in texts:
        assert re.fullmatch(pattern, text), text


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("[a", "no ']'"),
        ("(a", "no ')'"),
        ("a)", "no '('"),
        ("*a", "repeats nothing"),
        ("a**", "repetition of a repetition"),
        ("[z-a]", "backwards"),
        ("a{3,2}", "backwards"),
        ("a\\", "ends in a backslash"),
        (r"(a)\1", "back-reference"),
        ("(?=a)b", "look-around"),
        ("(?<!a)b", "look-around"),
        (r"\bword", "word boundary"),
        (r"\p{L}", "Unicode property"),
        ("a$b", "'$'"),
        ("a|b^", "'^'"),
        ("a(^b)", "'^'"),
        ("(a$|b)c", "'$'"),
        ("(^a)*", "in a repetition"),
        ("(a$)?", "in a repetition"),
        ("a++", "possessive"),
        ("((a{1,1000}){1,1000}){1,1000}", "repetitions"),
        ("(" * 100 + "a" + ")" * 100, "nested"),
        ("a{9999999}", "repetitions"),
        ("a{99999999999999999999}", "too often"),
    ],
)
def test_others_are_refused_by_name(pattern, told):
    with pytest.raises(RequestError) as refused:
        grammar_of(pattern)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("abc", (3, 3)), ("a|bcd", (1, 3)), ("a{2,5}b?", (2, 6)), ("(ab)*", (0, None)), ("", (0, 0))],
)
def test_lengths(pattern, expected):
    assert lengths(parse(pattern)) == expected


@pytest.mark.parametrize("space", "\t\x0b \xa0\u1680\u2003\u2028\u202f\u205f\u3000\ufeff")
def test_spaces_are_those_of_ecma(space):
    for pattern, has in ((r"\s", True), (r"\S", False), (r"[^\s]", False)):
        match parse(pattern):
            case Chars(ranges):
                assert any(low <= ord(space) <= high for low, high in ranges) is has
            case other:
                pytest.fail(f"{pattern} is {other}")
