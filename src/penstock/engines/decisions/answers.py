"""Decisions from the probabilities of labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from penstock.engines.decisions.checks import options_of
from penstock.engines.decisions.prompts import Branch
from penstock.engines.decisions.trie import Shares
from penstock.types import (
    ChoiceQuestion,
    Decision,
    Decisions,
    PredicateQuestion,
    Question,
    ScoreQuestion,
    Usage,
)

TIE = 1e-9
"""Probabilities that differ by no more are equal: a tie."""
_APPLIES = 0.5
Value = str | bool | int | float
_KINDS: dict[type, Literal["predicate", "choice", "score"]] = {
    PredicateQuestion: "predicate",
    ChoiceQuestion: "choice",
    ScoreQuestion: "score",
}


def decisions(
    questions: Sequence[Question], branches: Sequence[Branch], given: Sequence[Shares], usage: Usage
) -> Decisions:
    """The answers to all questions, from the shares of their branches."""
    of_each: list[list[Shares]] = [[] for _ in questions]
    for branch, one in zip(branches, given, strict=True):
        of_each[branch.number].append(one)
    return Decisions(list(map(decision, questions, of_each)), usage)


def decision(question: Question, given: Sequence[Shares]) -> Decision:
    """The answer to a question, from the shares of its branches: one, or one an option."""
    values, labels = values_of(question), [option.label for option in options_of(question)]
    mass = min(one.mass for one in given)
    if isinstance(question, ChoiceQuestion) and question.several:
        chances = [one.probabilities[0] for one in given]
        chosen = [value for value, p in zip(values, chances, strict=True) if p >= _APPLIES]
        tied = any(abs(p - _APPLIES) <= TIE for p in chances)
        known = None if mass <= 0 else chosen
        return Decision(question.name, "choice", known, values, chances, tied, mass, labels)
    return decided(question, list(given[0].probabilities), mass)


def decided(question: Question, chances: list[float], mass: float = 1.0) -> Decision:
    """The answer to a question that has one answer, from the probabilities of its options."""
    values = values_of(question)
    best = max(chances)
    tied = sum(best - chance <= TIE for chance in chances) > 1
    value: Value | None = values[chances.index(best)]
    if isinstance(question, ScoreQuestion):
        value = math.fsum(p * float(v) for p, v in zip(chances, values, strict=True))
    if mass <= 0:
        value = None
    labels = [option.label for option in options_of(question)]
    kind = _KINDS[type(question)]
    return Decision(question.name, kind, value, values, chances, tied, mass, labels)


def values_of(question: Question) -> list[Value]:
    """The value of each option of a question, in a decision."""
    numbered = isinstance(question, ScoreQuestion)
    return [
        option.value if option.value is not None else number if numbered else option.label
        for number, option in enumerate(options_of(question))
    ]
