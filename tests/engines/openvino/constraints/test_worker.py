import json
import re

import pytest

from penstock.engines.openvino.constraints.worker import (
    Prover,
    _answer,
    after_thoughts,
    grammar_of,
    triggered,
)
from penstock.engines.process import Call, Failed
from penstock.errors import RequestError

GRAMMAR = grammar_of("json_schema", '{"enum": ["yes", "no"]}', False)


def test_thoughts_are_free_up_to_their_end(writer):
    texts = writer.texts(after_thoughts(GRAMMAR, ("e", "</s>"), ()), count=20)
    assert len(texts) > 3
    for text in texts:
        thoughts, end, answer = text.partition("e")
        assert end
        assert thoughts or end
        assert json.loads(answer) in ("yes", "no")


def test_thoughts_may_be_left_out_if_the_prompt_has_not_begun_them(writer):
    texts = writer.texts(after_thoughts(GRAMMAR, ("e",), ("a", "n")), count=40)
    assert texts
    for text in texts:
        answer = text.lstrip("\n")
        if answer[0] in "an":
            answer = answer.partition("e")[2]
        assert json.loads(answer) in ("yes", "no")


GIVEN = """# root ::= "no"
answer   ::= "root" | [root] "x" answer
  root ::= answer "!"
thoughts::="t"
"""


def test_a_clients_own_grammar_may_follow_thoughts_whatever_its_layout(writer):
    texts = writer.texts(after_thoughts(GIVEN, ("e",), ()), count=20)
    assert texts
    for text in texts:
        assert re.fullmatch(r"([rot]x)*root!", text.partition("e")[2].lstrip()), text


def test_what_follows_a_trigger_is_held_and_other_text_is_free(writer):
    texts = writer.texts(triggered(GRAMMAR, ("e", "q")), count=40)
    called = 0
    for text in texts:
        for rest in re.split("[eq]", re.sub(r'"(yes|no)"', lambda m: m[0].upper(), text))[1:]:
            assert re.match(r'[ \n]{0,2}("YES"|"NO"|\[[ \n]{0,2}("YES"|"NO"))', rest), text
            called += 1
    assert called
    assert any(text[0] not in "eq" for text in texts)


def test_text_with_triggers_may_follow_thoughts(writer):
    texts = writer.texts(after_thoughts(triggered(GRAMMAR, ("q",)), ("e",), ()), count=40)
    assert texts
    for text in texts:
        for rest in text.partition("e")[2].split("q")[1:]:
            assert re.match(r'[ \n]{0,2}\[?[ \n]{0,2}"(yes|no)"', rest), text


@pytest.mark.parametrize("mark", ["</think>", "[/THINK]", 'Here is "my" response:', "<｜end｜>"])
def test_any_mark_can_stand_in_a_grammar(writer, mark):
    writer.texts(after_thoughts(GRAMMAR, (mark,), (mark,)), count=1, tokens=5)


@pytest.mark.parametrize(
    "spec",
    [
        '{"type": "string", "minLength": 2.0, "maxLength": 3.0}',
        '{"type": "array", "minItems": 1.0, "maxItems": 3.0, "items": {"type": "null"}}',
        '{"type": "object", "maxProperties": 2.0, "properties": {"a": {}}}',
    ],
)
def test_a_whole_number_may_be_written_with_a_fraction(spec):
    assert grammar_of("json_schema", spec, False) == grammar_of(
        "json_schema", spec.replace(".0", ""), False
    )


def test_a_number_beyond_53_bits_is_not_written_in_digits():
    assert '"1e+300"' in grammar_of("json_schema", '{"const": 1e300}', False)


def test_numbers_are_equal_however_they_are_written():
    with pytest.raises(RequestError, match="may fit the same value"):
        grammar_of("json_schema", '{"oneOf": [{"const": 1}, {"const": 1.0}]}', False)


def test_what_nobody_foresaw_ends_no_process_and_is_logged(monkeypatch, caplog):
    def odd(*args):
        raise AttributeError("no such thing")

    prover = Prover.__new__(Prover)
    monkeypatch.setattr(prover, "prove", odd)
    assert _answer(prover, Call(7, "prove", ["json_schema", "{}", False])) == Failed(
        7,
        RequestError.kind,
        "the constraint cannot be translated: AttributeError: no such thing",
        "response_format",
    )
    assert "no such thing" in caplog.text
    assert "in odd" in caplog.text
