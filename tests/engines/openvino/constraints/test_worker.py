import json

import pytest

from penstock.engines.openvino.constraints.worker import after_thoughts, grammar_of

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


@pytest.mark.parametrize("mark", ["</think>", "[/THINK]", 'Here is "my" response:', "<｜end｜>"])
def test_any_mark_can_stand_in_a_grammar(writer, mark):
    writer.texts(after_thoughts(GRAMMAR, (mark,), (mark,)), count=1, tokens=5)
