import re

import jsonschema_rs
import pytest
from hypothesis import given, settings, strategies as st

from penstock.batch.schema_validator import translated


def matches(pattern, text):
    rust, _ = translated(pattern)
    options = jsonschema_rs.RegexOptions()
    return jsonschema_rs.validator_for({"pattern": rust}, pattern_options=options).is_valid(text)


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"^(a+)+$", ["a", "aaa"], ["", "aab", "a\n"]),
        (r"b", ["abc"], ["ac"]),
        (r"^\d+$", ["12"], ["١٢", "1a"]),
        (r"^\D$", ["a", "١"], ["1"]),
        (r"^\w+$", ["a_1"], ["é"]),
        (r"^\W$", ["é", "-"], ["a"]),
        (r"^\s$", [" ", "\t", "\ufeff", "\u00a0"], ["\u200b", "a"]),
        (r"^\S$", ["a", "\u200b"], ["\ufeff"]),
        (r"\bfoo\b", ["foo", "éfoo", "a foo."], ["xfoo"]),
        (r"^\cJ$", ["\n"], ["J"]),
        (r"^\u0041\x42\u{43}$", ["ABC"], ["abc"]),
        (r"^\ud83d\ude00$", ["😀"], ["😁"]),
        (r"^[\ud83d\ude00-\ud83d\ude4f]$", ["😀", "😁"], ["a"]),
        (r"^[^\ud800-\udfff]$", ["a", "😀"], [""]),
        (r"^.$", ["a", "🙂"], ["\n", "\r", "\u2028"]),
        (r"^[^]$", ["a", "\n"], [""]),
        (r"^a[]$", [], ["a", "ab"]),
        (r"^[\w-a]$", ["-", "a", "z"], ["!"]),
        (r"^[a-\d]$", ["-", "a", "5"], ["b"]),
        (r"^[\d-x]$", ["-", "x", "5"], ["y"]),
        (r"^[\b\0]$", ["\b", "\0"], ["b"]),
        (r"^[[a&&b~~c]$", ["[", "&", "~", "a"], ["]", "d"]),
        (r"^[\]\-\\^]$", ["]", "-", "\\", "^"], ["a"]),
        (r"^a{,3}$", ["a{,3}"], ["aa"]),
        (r"^x{2$", ["x{2"], ["xx"]),
        (r"^a{2,}?$", ["aa", "aaa"], ["a"]),
        (r"^a{0}b$", ["b"], ["ab"]),
        (r"^\/\-\.\é$", ["/-.é"], ["/-xé"]),
        (r"^(?<year>\d{4})-(?:a|b)$", ["2026-a"], ["2026-c"]),
        (r"^\p{Lu}\P{Lu}$", ["Éa"], ["aÉ"]),
        (r"^\p{Script=Greek}$", ["α"], ["a"]),
        (r"^(?i:ab)c$", ["ABc"], ["ABC"]),
        (r"^(|a)$", ["", "a"], ["b"]),
        ("^a b#c$", ["a b#c"], ["abc"]),
        (r"^\u{110000}$", [], ["a"]),
    ],
)
def test_patterns_match_as_ecma_says(pattern, good, bad):
    for text in good:
        assert matches(pattern, text), text
    for text in bad:
        assert not matches(pattern, text), text


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(?=a)", "lookahead"),
        ("a(?!b)", "negative lookahead"),
        ("(?<=a)b", "lookbehind"),
        ("(?<!a)b", "negative lookbehind"),
        (r"(a)\1", "back-reference"),
        (r"(?<n>a)\k<n>", "back-reference"),
        ("(a", "not closed"),
        ("[a", "not closed"),
        ("[a-", "not closed"),
        ("a)", "too many"),
        ("*a", "nothing"),
        ("a**", "once more"),
        ("a{3,2}", "wrong order"),
        ("[b-a]", "ends before"),
        ("a\\", "backslash"),
        (r"\Aa\Z", "does not know"),
        ("(?P<n>a)", "does not know"),
        (r"\pL", "no property"),
        ("(" * 200 + ")" * 200, "too deeply"),
    ],
)
def test_what_cannot_be_matched_in_linear_time_or_is_no_pattern_is_refused_by_name(pattern, why):
    with pytest.raises(ValueError, match=why):
        translated(pattern)


@pytest.mark.parametrize(
    ("pattern", "cost"), [("abc", 4), ("(a{1,100}){1,100}", 10101), ("a+b*", 3), ("[a-z]{20}", 21)]
)
def test_the_cost_is_that_of_what_repetitions_expand_to(pattern, cost):
    assert translated(pattern)[1] == cost


_atoms = st.sampled_from(
    ["a", "b", "-", "[ab]", "[^a]", r"\d", r"\w", r"\s", ".", "(a|b)", "(?:ab)", r"\.", r"\-", "é"]
)
_patterns = st.lists(
    st.tuples(_atoms, st.sampled_from(["", "*", "+", "?", "{1,2}", "{2}"])), max_size=5
)


@settings(max_examples=200, deadline=None)
@given(_patterns, st.text("ab-1 .é_", max_size=8))
def test_both_engines_agree_where_their_syntax_does(parts, text):
    pattern = "".join(atom + times for atom, times in parts)
    assert matches(f"^{pattern}$", text) == (re.fullmatch(pattern, text, re.ASCII) is not None)
