import json
import math

import numpy as np
import pyarrow as pa
import pytest

from penstock.batch.decisions.questions import (
    RowQuestions,
    deciding,
    option_names,
    option_of_label,
    question_of,
)
from penstock.errors import ConfigError
from penstock.types import ChoiceQuestion, Option, PredicateQuestion, ScoreQuestion


def read(decide=None, choices=None, keep=None, threshold=None):
    return deciding(decide, choices, keep, threshold, "demo")


def test_types_follow_from_what_a_question_has(tmp_path):
    path = tmp_path / "questions.yaml"
    path.write_text(
        """
questions:
  - {name: team, instructions: "Which?", options: [billing, {label: tech, description: Faults}]}
  - {name: urgent, instructions: "Urgent?"}
  - {name: anger, instructions: "How angry?", low: 1, high: 3}
  - {name: mood, instructions: "Mood?", levels: [bad, good]}
  - {name: sure, instructions: "Sure?", options: [yes, no]}
"""
    )
    found = read(path)
    assert found.questions[:2] == (
        ChoiceQuestion("Which?", (Option("billing"), Option("tech", "Faults")), "team"),
        PredicateQuestion("Urgent?", "urgent"),
    )
    assert [option_names(question) for question in found.questions] == [
        ["billing", "tech"],
        ["true", "false"],
        ["1", "2", "3"],
        ["0", "1"],
        ["true", "false"],
    ]
    assert isinstance(found.questions[2], ScoreQuestion)


def test_json_lists_and_structures_are_the_same(tmp_path):
    path = tmp_path / "questions.json"
    given = [{"name": "urgent", "instructions": "Urgent? 🙂"}]
    path.write_text(json.dumps(given))
    expected = RowQuestions((PredicateQuestion("Urgent? 🙂", "urgent"),))
    for each in (path, given, {"questions": given}, [PredicateQuestion("Urgent? 🙂", "urgent")]):
        assert read(each) == expected


def test_choices_and_a_filter_are_questions_too():
    found = read(choices="a, b", keep="Is it?")
    assert [question.name for question in found.questions] == ["choice", "filter"]
    assert option_names(found.questions[0]) == ["a", "b"]
    assert found.threshold == 0.5
    assert read(choices=["a", "b"]).threshold is None
    assert read(choices=pa.array(["a", "b"])) == read(choices=["a", "b"])
    described = [{"label": "a", "description": "first"}, "b"]
    (question,) = read(choices=described).questions
    assert question.options == (Option("a", "first"), Option("b"))
    assert read(keep="Is it?", threshold=0.8).threshold == 0.8
    assert read() is None


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        ([1, 2], [Option("1", value=1), Option("2", value=2)]),
        ([np.int64(1), np.int64(2)], [Option("1", value=1), Option("2", value=2)]),
        (np.array([1, 2]), [Option("1", value=1), Option("2", value=2)]),
        ([0.5, 1], [Option("0.5", value=0.5), Option("1", value=1)]),
        ([True, False], [Option("Yes", value=True), Option("No", value=False)]),
        ("1,2", [Option("1"), Option("2")]),  # on a command line all is text
    ],
)
def test_a_number_is_the_value_too(labels, options):
    (chosen,) = read(choices=labels).questions
    assert chosen.options == tuple(options)
    if not isinstance(labels, str):
        (asked,) = read([{"name": "x", "options": list(labels)}]).questions
        assert asked.options == tuple(options)
        as_objects = [{"label": label} for label in labels]
        (asked,) = read([{"name": "x", "options": as_objects}]).questions
        assert asked.options == tuple(options)


GOOD = {"name": "good", "instructions": "Good?"}


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"name": "x", "options": []}, r"questions\[1\] \('x'\) has no options"),
        ({"name": "x", "options": ["a"]}, r"questions\[1\] \('x'\) has one option"),
        ({"name": "x", "options": ["a", "a"]}, r"questions\[1\] \('x'\) has the option 'a' twice"),
        ({"name": "x", "options": ["a", " "]}, r"questions\[1\] \('x'\) has an option with an em"),
        (
            {"name": "x", "options": ["a", {"label": "b", "descripton": "c"}]},
            r"\('x'\): options\[1\]: unknown key 'descripton' of an option. Did you mean 'descri",
        ),
        ({"name": "x", "optoins": ["a"]}, r"questions\[1\] \('x'\): unknown key 'optoins'"),
        ({"name": "x", "type": ["choice"]}, r"\('x'\): there is no type \['choice'\]"),
        ({"name": "x", "low": 0, "high": 255}, "at most 255 from the lower to the higher"),
        ({"name": "x", "options": ["a", "b"], "several": True}, r"'x'\) has no instructions"),
        ({"name": "x", "type": "chioce"}, r"questions\[1\] \('x'\): there is no type 'chioce'"),
        ({"name": "x", "type": "score"}, r"questions\[1\] \('x'\): a score needs levels"),
        ({"name": "x", "low": 3, "high": 1}, r"questions\[1\] \('x'\): a score needs levels"),
        ({"name": "x", "instructions": 3}, r"\('x'\): instructions must be text, not 3"),
        ({"name": "x", "type": "choice"}, r"questions\[1\] \('x'\): options is missing"),
        ({"name": 3, "instructions": "Is it?"}, r"questions\[1\]: name must be text, not 3"),
        ({"name": "x", "options": [["a"]]}, r"\('x'\): options\[0\] must be text, a number, true"),
        ({"name": "x", "options": [np.array([1, 2])]}, r"options\[0\] must be text, a number, t"),
        ({"name": "x", "options": ["a", None]}, r"options\[1\] .* not None \(in YAML, quotes mak"),
        ({"name": "x", "options": [{"label": None}]}, r"options\[0\]\.label must be text, a num"),
        ({"name": "x", "options": ["a", 1]}, r"questions\[1\] \('x'\) has values of several kinds"),
        (
            {"name": "x", "options": [{"label": "a", "value": "b"}, "b"]},
            r"questions\[1\] \('x'\) has two options with the value 'b'",
        ),
        ({"instructions": "Is it?"}, r"questions\[1\] has no name"),
        ({"name": "x", "instructions": "\ud800"}, r"\('x'\) holds text that is no valid Unicode"),
        (GOOD, r"questions\[1\] \('good'\) has the name of an earlier one"),
        ("Is it?", r"questions\[1\] must be a mapping"),
    ],
)
def test_a_bad_question_is_named(bad, why):
    with pytest.raises(ConfigError, match=why):
        read([GOOD, bad])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"decide": []}, "there are no questions"),
        ({"decide": {}}, "there are no questions"),
        ({"decide": 3}, "must be questions, or the path"),
        ({"decide": {"questions": [GOOD], "claibration": "c"}}, "unknown key 'claibration'"),
        ({"decide": [{**GOOD, "name": f"q{n}"} for n in range(401)]}, "1 to 400 questions"),
        ({"choices": "a"}, "^choices: has one option"),
        ({"choices": ["a", "b", "a"]}, "^choices: has the option 'a' twice"),
        ({"choices": {"a", "b"}}, "^choices: must be text with commas, or a list, not"),
        ({"choices": ["a", 1]}, "^choices: has values of several kinds; give all of them as text"),
        ({"choices": ["a", None]}, r"^choices: options\[1\] must be text, a number, true or false"),
        ({"choices": [1, math.nan]}, "^choices: has the option 'nan', whose value is out of range"),
        ({"choices": [1, 1.0]}, "^choices: has two options with the value '1'"),
        ({"choices": "a,\udcff"}, "^choices: holds text that is no valid Unicode"),
        ({"keep": " "}, "must be a question"),
        ({"threshold": 0.5}, "is that of a filter, and there is none"),
        ({"decide": [GOOD], "threshold": 0.5}, "is that of a filter, and there is none"),
    ],
)
def test_bad_options(options, why):
    with pytest.raises(ConfigError, match=why):
        read(**options)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path / "no.yaml")


@pytest.mark.parametrize(
    ("question", "label", "name"),
    [
        ({"instructions": "Is it?"}, "YES ", "true"),
        ({"options": [True, False]}, 0, "false"),
        ({"options": ["yes", "no"]}, "yes", "yes"),
        ({"low": 1, "high": 5}, "5.0", "5"),
        ({"low": 1, "high": 5}, "five", "five"),
        ({"options": ["1.0", "2.0"]}, "1.0", "1.0"),
        ({"options": [" a", " b"]}, "a", " a"),
        ({"options": [" a", " b"]}, " b ", " b"),
        ({"options": ["a", " a"]}, " a", " a"),
        ({"options": ["a", " a"]}, "a", "a"),
        ({"options": [2**53, 2**53 + 1]}, 2**53 + 1, str(2**53 + 1)),
    ],
)
def test_labels_in_the_data_name_options(question, label, name):
    assert option_of_label(question_of({"name": "x", **question}, 0), label) == name
