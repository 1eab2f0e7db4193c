from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.openai.parsers.reader import AnswerReader
from penstock.openai.parsers.text import Offered
from penstock.openai.responses import Answers
from penstock.types import Delta, Usage

OFFERED = Offered([{"function": {"name": "a"}}, {"function": {"name": "b"}}])


def read(text: str, size: int = 1, *, bare: bool = False, reason: Any = "stop") -> Answers:
    reader, answers = AnswerReader("seed", forced=bare), Answers()
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1
        delta = Delta(
            text=piece,
            token_ids=(1,),
            finish_reason=reason if last else None,
            usage=Usage() if last else None,
        )
        translated = reader.translate(delta)
        assert translated.token_ids == (1,)
        answers.add(translated)
    return answers


def calls(answers: Answers) -> list[tuple[str, Any]]:
    return [(call.name, json.loads(call.arguments)) for call in answers.tool_calls.get(0, [])]


@pytest.mark.parametrize("size", [1, 3, 500])
@pytest.mark.parametrize(
    ("text", "content", "expected"),
    [
        ("plain text \n", "plain text \n", []),
        ('<tool_call>{"name": "a", "arguments": {}}</tool_call>', "", [("a", {})]),
        (
            '\n\n<tool_call>\n{"name": "a", "arguments": {"x": [{"y": "}"}]}}\n</tool_call>\n',
            "",
            [("a", {"x": [{"y": "}"}]})],
        ),
        (
            '<tool_call>{"name": "a\\"b", "arguments": {"q": "\\\\"}}</tool_call>',
            "",
            [('a"b', {"q": "\\"})],
        ),
        ('<tool_call>{"name": "a", "parameters": {"x": 1}}</tool_call>', "", [("a", {"x": 1})]),
        ('<tool_call>{"arguments": {"x": 1}, "name": "a"}</tool_call>', "", [("a", {"x": 1})]),
        (
            '<tool_call>{"name": "a", "arguments": "{\\"x\\": 1}"}</tool_call>',
            "",
            [("a", {"x": 1})],
        ),
        ('<tool_call>{"name": "a"}</tool_call>', "", [("a", {})]),
        ("<tool_call>[1]</tool_call>", "<tool_call>[1]</tool_call>", []),
        ("<tool_call>{", "<tool_call>{", []),
        ("x < y <tool", "x < y <tool", []),
        (
            'ok <tool_call>{"name": "a", "arguments": {}}</tool_call> and more',
            "ok and more",
            [("a", {})],
        ),
    ],
)
def test_calls_and_text_are_told_apart(
    text: str, content: str, expected: list[Any], size: int
) -> None:
    answers = read(text, size)
    assert answers.texts[0] == content
    assert calls(answers) == expected
    assert answers.reasons[0] == ("tool_calls" if expected else "stop")


def test_a_call_cut_short_keeps_its_reason_and_what_there_was() -> None:
    answers = read('<tool_call>{"name": "a", "arguments": {"x": "lon', reason="length")
    (call,) = answers.tool_calls[0]
    assert (call.name, call.arguments) == ("a", '{"x": "lon')
    assert answers.reasons[0] == "length"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('<tool_call>{"name": "a", "arguments": {"x": "lon', "stop"),
        ('<tool_call>{"name": "a", "arguments": {"x": 1}}\n', "tool_calls"),
    ],
)
@pytest.mark.parametrize("by", [{"stop": "g"}, {"stop_token": 7}])
def test_a_call_that_a_stop_cut_is_not_whole(text: str, reason: str, by: dict[str, Any]) -> None:
    delta = AnswerReader("seed").translate(Delta(text=text, finish_reason="stop", **by))
    assert [part.name for part in delta.tool_calls] == ["a"]
    assert delta.finish_reason == reason


def test_arguments_stream_as_they_come() -> None:
    reader = AnswerReader("seed")
    text = '<tool_call>{"name": "a", "arguments": {"x": "long"}}</tool_call>'
    parts = [
        part
        for char in text
        for part in getattr(reader.translate(Delta(text=char)), "tool_calls", ())
    ]
    assert parts[0].name == "a"
    assert len(parts) > 5
    assert all(part.id is None for part in parts[1:])


def test_ids_differ_and_repeat() -> None:
    text = '<tool_call>{"name": "a", "arguments": {}}</tool_call>' * 2
    first, second = (call.id for call in read(text).tool_calls[0])
    assert first != second
    assert [call.id for call in read(text, 7).tool_calls[0]] == [first, second]


@pytest.mark.parametrize("size", [1, 500])
def test_a_bare_answer_is_one_call(size: int) -> None:
    answers = read('{"name": "a", "arguments": {"x": "</tool_call>"}} ', size, bare=True)
    assert calls(answers) == [("a", {"x": "</tool_call>"})]
    assert answers.texts[0] == ""
    assert read("cut", size, bare=True).texts[0] == "cut"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"name": "a", "arguments": {"x": 1}}' + " " * 20, "tool_calls"),
        ('{"name": "a", "arguments": {"x": 1}', "tool_calls"),
        ('{"name": "a", "arguments": {"x": 1', "length"),
    ],
)
def test_a_required_call_that_is_whole_was_not_cut_short(text: str, reason: str) -> None:
    assert read(text, bare=True, reason="length").reasons[0] == reason


@pytest.mark.parametrize("size", [1, 3, 500])
@pytest.mark.parametrize(
    "call",
    [
        '<tool_call>\n{"name": "c", "arguments": {"x": "a"}}\n</tool_call>',
        '<tool_call>\n{"arguments": {"x": 1}, "name": "c"}\n</tool_call>',
        '<tool_call>\n{"name": ["a"], "arguments": {}}\n</tool_call>',
    ],
)
def test_a_call_of_a_tool_that_nobody_offered_stays_text(call: str, size: int) -> None:
    real = '<tool_call>{"name": "b", "arguments": {}}</tool_call>'
    reader, answers = AnswerReader("seed", offered=OFFERED), Answers()
    text = f"so: {call} and {real}"
    for at in range(0, len(text), size):
        answers.add(reader.translate(Delta(text=text[at : at + size])))
    answers.add(reader.translate(Delta(finish_reason="stop", usage=Usage())))
    assert answers.texts[0] == f"so: {call} and"
    assert calls(answers) == [("b", {})]
    assert answers.reasons[0] == "tool_calls"


def test_an_answer_of_unknown_calls_ends_as_text_does() -> None:
    reader = AnswerReader("seed", offered=OFFERED)
    delta = reader.translate(
        Delta(text='<tool_call>{"name": "c", "arguments": {}}</tool_call>', finish_reason="stop")
    )
    assert (delta.finish_reason, delta.tool_calls) == ("stop", ())
