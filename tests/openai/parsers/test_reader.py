from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, strategies as st

from penstock.openai.parsers.reader import AnswerReader
from penstock.openai.parsers.table import forms_of
from penstock.openai.parsers.text import Offered
from penstock.openai.responses import Answers
from penstock.types import Delta, Usage
from transcripts import BROKEN, CALLS, THOUGHTS, TOOLS, Transcript

ALL = [*CALLS, *THOUGHTS, *BROKEN]


def reader_of(transcript: Transcript, prompt: str = "") -> AnswerReader:
    calls, thinking = transcript.parsers
    forms = forms_of("", calls, thinking)
    return AnswerReader(
        "seed",
        calls=forms.calls,
        offered=Offered(TOOLS),
        thinking=forms.thinking,
        thinks=forms.thinking is not None and forms.thinking.begun(prompt),
    )


def parsed(transcript: Transcript, pieces: list[str]) -> tuple[str, str, list[Any], Any]:
    reader, answers, reasoning = reader_of(transcript), Answers(), ""
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1
        delta = reader.translate(
            Delta(
                text=piece,
                finish_reason="stop" if last else None,
                usage=Usage() if last else None,
            )
        )
        reasoning += delta.reasoning
        answers.add(delta)
    calls = [(call.name, call.arguments) for call in answers.tool_calls.get(0, [])]
    return answers.texts[0], reasoning, calls, answers.reasons[0]


def split(raw: str, cuts: list[int]) -> list[str]:
    places = [0, *sorted(cuts), len(raw)]
    return [raw[a:b] for a, b in pairwise(places)]


@pytest.mark.parametrize("transcript", ALL, ids=lambda t: f"{t.parsers} {t.raw[:40]}")
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_each_form_is_read(transcript: Transcript, size: int) -> None:
    raw = transcript.raw
    pieces = [raw[at : at + size] for at in range(0, len(raw), size)]
    text, reasoning, calls, reason = parsed(transcript, pieces)
    assert (text, reasoning) == (transcript.text, transcript.reasoning)
    assert [(name, json.loads(arguments)) for name, arguments in calls] == [*transcript.calls]
    assert reason == ("tool_calls" if transcript.calls else "stop")


@given(st.data())
def test_splits_change_nothing(data: st.DataObject) -> None:
    transcript = data.draw(st.sampled_from(ALL))
    raw = transcript.raw[: data.draw(st.integers(0, len(transcript.raw)))]  # or what is left of it
    raw += data.draw(st.sampled_from(["", " \n", " and so on", "\n" + transcript.raw]))
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=12))
    assert parsed(transcript, split(raw, cuts)) == parsed(transcript, [raw])


_MARKS = sorted({mark for t in ALL for mark in forms_of("", *t.parsers).calls.marks})
_WORDS = [*_MARKS, *"{}[]()\"\\:,;\n <=/>'", '"name"', '"arguments"', "weather", "functions."]


@given(st.sampled_from(sorted({t.parsers for t in ALL}, key=str)), st.data())
def test_nonsense_is_split_alike_and_not_lost(parsers: Any, data: st.DataObject) -> None:
    raw = "".join(data.draw(st.lists(st.sampled_from(_WORDS), max_size=30)))
    transcript = Transcript(parsers, raw)
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=12))
    whole = parsed(transcript, [raw])
    assert parsed(transcript, split(raw, cuts)) == whole
    if not whole[2] and parsers[1] is None and parsers[0] != "openai":
        assert whole[0] == raw


@pytest.mark.parametrize("prefix", ["call:", "call ", ":", ""])
def test_gemma_calls_a_function_whose_name_begins_with_call(prefix: str) -> None:
    tool = {"type": "function", "function": {"name": "call_back", "parameters": {}}}
    forms = forms_of("", "functiongemma", None)
    reader = AnswerReader("seed", calls=forms.calls, offered=Offered([tool]))
    answers = Answers()
    raw = f"<start_function_call>{prefix}call_back{{}}<end_function_call>"
    answers.add(reader.translate(Delta(text=raw, finish_reason="stop", usage=Usage())))
    assert [call.name for call in answers.tool_calls[0]] == ["call_back"]


@pytest.mark.parametrize("number", ["NaN", "1e999", "-Infinity"])
@pytest.mark.parametrize(
    ("parser", "raw"),
    [
        ("pythonic", "[weather(days=@)]"),
        ("qwen3_coder", "<tool_call>\n<function=weather>\n<parameter=days>\n@\n</parameter>\n"
         "</function>\n</tool_call>"),
        ("functiongemma", "<start_function_call>call:weather{days:@}<end_function_call>"),
    ],
)  # fmt: skip
def test_arguments_are_json_whatever_number_is_written(parser: str, raw: str, number: str) -> None:
    raw = raw.replace("@", number)
    _, _, calls, _ = parsed(Transcript((parser, None), raw), [raw])
    for _, arguments in calls:
        json.loads(arguments, parse_constant=pytest.fail)
