"""Refuses bad questions. The error names the question by its place and name."""

from __future__ import annotations

import math
from collections.abc import Sequence

from penstock.errors import ContextLengthError, RequestError
from penstock.types import ChoiceQuestion, Option, PredicateQuestion, Question, ScoreQuestion

MOST_QUESTIONS = 400
MOST_OPTIONS = 255
"""Both as in OpenAI's Decisions API."""
MOST_CHARS = 4_000_000
"""Characters of all questions, as often as they are read. No model reads as many."""


def check_questions(questions: Sequence[Question]) -> None:
    """Raise `RequestError` for a number of questions that is not 1 to 400, for the first question
    that cannot be asked, and for questions that are too long together.
    """
    if not 1 <= len(questions) <= MOST_QUESTIONS:
        raise RequestError(
            f"there must be 1 to {MOST_QUESTIONS} questions, not {len(questions)}",
            param="questions",
        )
    names: set[str] = set()
    for number, question in enumerate(questions):
        if question.name and question.name in names:
            raise bad_question(number, question, "has the name of an earlier one")
        names.add(question.name)
        _check_options(number, question)
    chars = sum(map(chars_of, questions))
    if chars > MOST_CHARS:
        raise ContextLengthError(
            f"the questions are too long: {chars} characters are read, more than {MOST_CHARS}"
            " (the instructions of a choice of several once for each option)",
            param="questions",
        )


def chars_of(question: Question) -> int:
    """Characters that are read for a question: its instructions and options, and for a choice of
    several the instructions once for each option.
    """
    options = options_of(question)
    times = len(options) if isinstance(question, ChoiceQuestion) and question.several else 1
    described = sum(len(option.label) + len(option.description) for option in options)
    return len(question.instructions) * times + described


def options_of(question: Question) -> tuple[Option, ...]:
    """The possible answers to a question."""
    match question:
        case ChoiceQuestion():
            return question.options
        case ScoreQuestion():
            return question.levels
        case PredicateQuestion():
            return YES_NO


YES_NO = (Option("Yes", value=True), Option("No", value=False))


def scale(low: int, high: int) -> tuple[Option, ...]:
    """The levels of a score from `low` to `high`, a whole number each."""
    return tuple(Option(str(value), value=value) for value in range(low, high + 1))


def named(number: int, question: Question) -> str:
    """How errors call a question."""
    return f"questions[{number}]" + (f" ('{question.name}')" if question.name else "")


def bad_question(number: int, question: Question, why: str) -> RequestError:
    """The refusal of a question."""
    return RequestError(f"{named(number, question)} {why}", param=f"questions[{number}]")


def _check_options(number: int, question: Question) -> None:
    options = options_of(question)
    if len(options) < 2:
        raise bad_question(
            number, question, f"has {'one option' if options else 'no options'}: it needs 2"
        )
    if len(options) > MOST_OPTIONS:
        raise bad_question(
            number, question, f"has {len(options)} options, more than {MOST_OPTIONS}"
        )
    seen: set[str] = set()
    for option in options:
        if not option.label.strip():
            raise bad_question(number, question, "has an option with an empty label")
        if option.label in seen:
            raise bad_question(number, question, f"has the option {option.label!r} twice")
        seen.add(option.label)
        if isinstance(option.value, int | float) and not _fits(option.value):
            raise bad_question(
                number, question, f"has the option {option.label!r}, whose value is out of range"
            )
    if isinstance(question, ScoreQuestion):
        for level in options:
            if level.value is not None and type(level.value) not in (int, float):
                raise bad_question(
                    number, question, f"has the level {level.label!r}, which is no number"
                )
    several = isinstance(question, ChoiceQuestion) and question.several
    if several and not question.instructions.strip():
        raise bad_question(number, question, "has no instructions, which a choice of several needs")


def _fits(value: int | float) -> bool:
    """Whether a column of 64 bits holds the number."""
    return -(2**63) <= value < 2**63 if isinstance(value, int) else math.isfinite(value)
