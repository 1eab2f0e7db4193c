"""Questions: their checks, their texts, their tokens, and decisions made of probabilities."""

import math

import msgspec
import pytest

from penstock.engines.decisions import tokens
from penstock.engines.decisions.answers import decided, decision
from penstock.engines.decisions.checks import check_questions, scale
from penstock.engines.decisions.prompts import asked
from penstock.engines.decisions.tokens import tokenized
from penstock.engines.decisions.trie import Shares
from penstock.errors import RequestError
from penstock.types import (
    ChoiceQuestion,
    DecideRequest,
    Decisions,
    Option,
    PredicateQuestion,
    ScoreQuestion,
)

A, B = Option("a"), Option("b", "the second")
CHOICE = ChoiceQuestion("Which?", (A, B), "letter")


def render(messages, continued):
    text = "".join(f"<{one['role']}>{one['content']}" for one in messages)
    return text if continued else f"{text}<assistant>"


def encode(texts, special_tokens):
    return [[*(b"^" if special_tokens else b""), *text.encode()] for text in texts]


@pytest.mark.parametrize(
    ("questions", "why"),
    [
        ((), "1 to 400 questions, not 0"),
        ((CHOICE,) * 401, "1 to 400 questions, not 401"),
        ((ChoiceQuestion("?", ()),), r"questions\[0\] has no options"),
        ((ChoiceQuestion("?", (A,), "k"),), r"questions\[0\] \('k'\) has one option"),
        ((ChoiceQuestion("?", (A, A), "k"),), r"'k'\) has the option 'a' twice"),
        ((ChoiceQuestion("?", (A, Option(" ")), "k"),), "empty label"),
        ((ChoiceQuestion("?", tuple(Option(f"{n}") for n in range(256))),), "more than 255"),
        ((CHOICE, PredicateQuestion("?", "letter")), r"questions\[1\] \('letter'\)"),
        ((ScoreQuestion("?", (A, Option("b", value="x"))),), "no number"),
        (
            (ScoreQuestion("?", (A, Option("b", value=10**400))),),
            "'b', whose value is out of range",
        ),
        ((ScoreQuestion("?", (A, Option("b", value=math.nan))),), "out of range"),
        ((ChoiceQuestion("?", (A, Option("b", value=2**63))),), "out of range"),
        ((ChoiceQuestion(" ", (A, B), "k", True),), r"'k'\) has no instructions"),
        (
            (ChoiceQuestion("x" * 20_000, tuple(Option(f"{n}") for n in range(255)), "k", True),),
            r"the questions are too long: 51006\d\d characters",
        ),
    ],
)
def test_a_bad_question_is_named(questions, why):
    with pytest.raises(RequestError, match=why):
        check_questions(questions)


def test_the_input_comes_first_and_is_shared():
    found = asked(DecideRequest("text", (CHOICE, PredicateQuestion("True?"))), render)
    assert found.head == "<user>text"
    assert [one.text for one in found.branches] == [
        "\n\nAnswer with one of these:\n- a\n- b: the second\nWhich?<assistant>",
        "\n\nAnswer with Yes or No.\nTrue?<assistant>",
    ]
    assert [one.labels for one in found.branches] == [("a", "b"), ("Yes", "No")]


def test_a_choice_of_several_asks_for_each_option():
    several = ChoiceQuestion("Which?", (A, B), several=True)
    found = asked(DecideRequest("text", (several,)), render)
    assert [one.number for one in found.branches] == [0, 0]
    assert "Does this apply: b: the second" in found.branches[1].text
    answer = decision(several, [Shares([0.2, 0.8], 0.5), Shares([0.7, 0.3], 0.25)])
    assert answer.value == ["b"]
    assert answer.probabilities == [0.2, 0.7]
    assert answer.mass == 0.25


def test_without_instructions_the_input_asks_itself():
    bare = ChoiceQuestion("", (A, B))
    found = asked(DecideRequest("text", (bare,)), render)
    assert (found.head, found.branches[0].text) == ("<user>text", "<assistant>")
    begun = [{"role": "user", "content": "text"}, {"role": "assistant", "content": "It is "}]
    found = asked(DecideRequest(begun, (bare,)), render)
    assert (found.head, found.branches[0].text) == ("<user>text<assistant>It is ", "")


def test_a_question_follows_a_conversation_that_the_assistant_ended():
    said = [{"role": "user", "content": "text"}, {"role": "assistant", "content": "Yes."}]
    found = asked(DecideRequest(said, (CHOICE,)), render)
    assert found.head == "<user>text<assistant>Yes.<user>"


def test_a_model_without_conversations_answers_after_a_word():
    found = asked(DecideRequest("text", (CHOICE,)), None)
    assert found.branches[0].text.endswith("- b: the second\nWhich?\nAnswer:")
    assert found.branches[0].labels == (" a", " b")
    assert found.special_tokens
    with pytest.raises(RequestError, match="no messages"):
        asked(DecideRequest([{"role": "user", "content": "x"}], (CHOICE,)), None)


def test_labels_are_told_apart_by_tokens():
    request = DecideRequest("text", (ChoiceQuestion("", (Option("late"), Option("later"))),))
    read = tokenized(asked(request, render), request.questions, encode)
    (branch,) = read.branches
    assert bytes(read.ids) == b"<user>text"
    assert bytes(branch.stem) == b"<assistant>"
    assert branch.trie.parting == {tuple(b"late"): tuple(b"r")}


def test_a_label_without_tokens_is_refused():
    def without_b(texts, special_tokens):
        return encode([text.replace("b", "") for text in texts], special_tokens)

    request = DecideRequest("text", (CHOICE,))
    with pytest.raises(RequestError, match=r"'letter'\) has the option 'b'.*no token"):
        tokenized(asked(request, render), request.questions, without_b)


def test_labels_that_the_model_reads_alike_are_refused():
    def small(texts, special_tokens):
        return encode([text.lower() for text in texts], special_tokens)

    request = DecideRequest("text", (ChoiceQuestion("", (A, Option("A")), "k"),))
    with pytest.raises(RequestError, match=r"'k'\) has two options"):
        tokenized(asked(request, render), request.questions, small)


def test_a_score_is_the_expected_value():
    found = decided(ScoreQuestion("?", scale(1, 3)), [0.5, 0.25, 0.25])
    assert found.value == pytest.approx(1.75)
    assert found.values == [1, 2, 3]
    placed = decided(ScoreQuestion("?", (A, B)), [0.25, 0.75])
    assert (placed.value, placed.values, placed.labels) == (0.75, [0, 1], ["a", "b"])


def test_ties_and_unknowns_are_stated():
    tied = decided(CHOICE, [0.5, 0.5])
    assert (tied.value, tied.tied) == ("a", True)
    assert not decided(CHOICE, [0.6, 0.4]).tied
    assert decided(CHOICE, [0.5, 0.5], 0.0).value is None


def test_requests_and_answers_cross_a_pipe_unchanged():
    questions = (CHOICE, PredicateQuestion("?"), ScoreQuestion("?", scale(1, 2)))
    request = DecideRequest([{"role": "user", "content": "x"}], questions)
    encode, decode = msgspec.msgpack.encode, msgspec.msgpack.decode
    assert decode(encode(request), type=DecideRequest) == request
    result = Decisions([decided(one, [0.25, 0.75]) for one in questions])
    again = decode(encode(result), type=Decisions)
    assert again == result
    assert [type(one) for one in again.items[2].values] == [int, int]


def test_ids_of_long_texts_are_not_kept_for_ever(monkeypatch):
    monkeypatch.setattr(tokens, "_MOST_KEPT_CHARS", 100)
    asked = []

    def noted(texts, special_tokens):
        asked.extend(texts)
        return encode(texts, special_tokens)

    ids = tokens.TextIds(noted)
    for _ in range(2):
        assert ids(["a" * 60, "b" * 60], False) == encode(["a" * 60, "b" * 60], False)
    assert len(asked) == 4  # they were too long together
    ids.forget(["a" * 60], False)
    ids(["b" * 60, "c"], False)
    assert asked[4:] == ["c"]
