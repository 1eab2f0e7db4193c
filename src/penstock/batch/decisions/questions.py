"""The questions of a job, from a file or in Python, checked before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from penstock.batch.decisions.calibration import Calibration, read_calibration
from penstock.batch.values.plain import UnstorableError, plain
from penstock.config import unknown_key
from penstock.engines.decisions.answers import Value, values_of
from penstock.engines.decisions.checks import (
    MOST_OPTIONS,
    check_questions,
    named,
    scale,
)
from penstock.errors import ConfigError, RequestError, nearest
from penstock.parsing import read_yaml
from penstock.types import (
    ChoiceQuestion,
    Decision,
    Option,
    PredicateQuestion,
    Question,
    ScoreQuestion,
)

FILTER = "filter"
"""The name of the question that a filter asks."""
CHOICE = "choice"
"""The name of the question whose options are given without a file."""
_WHICH = "Which one fits best?"
_FILE_KEYS = ("questions", "calibration")
_KINDS: dict[str, Any] = {
    "predicate": PredicateQuestion,
    "choice": ChoiceQuestion,
    "score": ScoreQuestion,
}
_TRUTHS = {"yes": "true", "no": "false", "1": "true", "0": "false"}


class RowQuestions(Struct, frozen=True):
    """What a job asks of each row. With a `threshold`, rows stay in the output whose question
    `filter` is true with at least this probability.
    """

    questions: tuple[Question, ...]
    calibration: Calibration | None = None
    threshold: float | None = None

    def identity(self) -> dict[str, Any]:
        """What decides the output, in plain values."""
        return {
            "questions": msgspec.to_builtins(self.questions),
            "calibration": msgspec.to_builtins(self.calibration),
            "threshold": self.threshold,
        }

    def calibrated(self, decision: Decision, question: Question) -> Decision:
        """The decision with the probabilities that the calibration makes of its own."""
        if self.calibration is None:
            return decision
        return self.calibration.applied(decision, question)


def deciding(
    decide: Any,
    choices: Sequence[Any] | str | None,
    keep: str | None,
    threshold: float | None,
    model: str,
) -> RowQuestions | None:
    """The questions of a job's options of these names, None where there are none.

    `decide` is a path of YAML or JSON, a mapping with its keys (`questions`, `calibration`), or a
    list of questions. Raises `ConfigError`, which names a bad question by its place and name.
    """
    if keep is None and threshold is not None:
        raise ConfigError(
            "is that of a filter, and there is none", field="threshold", value=threshold
        )
    if decide is None and choices is None and keep is None:
        return None
    content, folder = _content(decide)
    questions = _questions(content, choices, keep)
    calibration = content.get("calibration")
    return RowQuestions(
        questions,
        None if calibration is None else read_calibration(calibration, folder, questions, model),
        None if keep is None else 0.5 if threshold is None else float(threshold),
    )


def questions_of(decide: Any, choices: Sequence[Any] | str | None) -> tuple[Question, ...]:
    """The questions of `decide` and `choices`, as in `deciding`, without their calibration. Raises
    `ConfigError`.
    """
    return _questions(_content(decide)[0], choices, None)


def _questions(
    content: Mapping[str, Any], choices: Sequence[Any] | str | None, keep: str | None
) -> tuple[Question, ...]:
    questions = [question_of(given, place) for place, given in enumerate(_listed(content))]
    if choices is not None:
        questions.append(_choice(choices))
    if keep is not None:
        if not keep.strip():
            raise ConfigError("must be a question", field="filter", value=keep)
        questions.append(PredicateQuestion(keep, FILTER))
    _check(questions)
    return tuple(questions)


def _choice(choices: Any) -> Question:
    """The question whose options are `choices`, written as in a question of `decide`."""
    labels = choices.split(",") if isinstance(choices, str) else choices
    if hasattr(labels, "tolist"):  # a frame's or NumPy's, such as the unique values of a column
        labels = labels.tolist()
    if not isinstance(labels, list | tuple):
        raise ConfigError(
            f"must be text with commas, or a list, not {choices!r}", field="choices", value=choices
        )
    options = [label.strip() if isinstance(label, str) else label for label in labels]
    try:
        asked = question_of({"name": CHOICE, "instructions": _WHICH, "options": options}, 0)
        _check([asked])
    except ConfigError as error:
        why = str(error).removeprefix(f"decide: questions[0] ('{CHOICE}')").lstrip(": ")
        raise ConfigError(why, field="choices", value=choices) from None
    return asked


def question_of(given: Any, place: int) -> Question:
    """A question as users write it: a mapping with `name`, `instructions`, and `options` (of a
    choice) or `levels` (of a score; also `low` and `high`), each a text, a number or a mapping. The
    `type` follows from those. Raises `ConfigError`, which names the place.
    """
    if isinstance(given, PredicateQuestion | ChoiceQuestion | ScoreQuestion):
        return given
    where = f"questions[{place}]"
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"{where} must be a mapping, not a {type(given).__name__}", field="decide"
        )
    called = f"{where} ('{given['name']}')" if isinstance(given.get("name"), str) else where
    fields = dict(given)
    kind = fields.pop("type", None) or (
        "choice"
        if "options" in fields
        else "score"
        if {"levels", "low"} & fields.keys()
        else "predicate"
    )
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ConfigError(
            f"{called}: there is no type {kind!r}. {nearest(str(kind), _KINDS)}", field="decide"
        )
    if kind == "score" and "levels" not in fields:
        fields["levels"] = _levels(fields.pop("low", None), fields.pop("high", None), called)
    for name in ("options", "levels"):
        if isinstance(fields.get(name), list | tuple):
            fields[name] = [
                _option(option, f"{called}: {name}[{number}]")
                for number, option in enumerate(fields[name])
            ]
    known = _KINDS[kind].__struct_fields__
    for name in fields:
        if name not in known:
            raise ConfigError(
                f"{called}: unknown key '{name}'. {nearest(str(name), known)}", field="decide"
            )
    fields.setdefault("instructions", "")
    try:
        question: Question = msgspec.convert({**fields, "type": kind}, _KINDS[kind])
    except (msgspec.ValidationError, TypeError):
        from penstock.validation import mismatch  # imported only for an error

        raise ConfigError(f"{called}: {mismatch(_KINDS[kind], fields)}", field="decide") from None
    return question


def option_names(question: Question) -> list[str]:
    """The name of each option in the columns of an output: its value as text."""
    return [as_name(value) for value in values_of(question)]


def label_of(value: Any) -> Any:
    """A label in the data as a plain value; None where there is none. NaN is none, as a frame has
    it for a missing value, and so is blank text, as of an empty cell of a CSV file.
    """
    try:
        label = plain(value)
    except UnstorableError:
        return None
    is_blank = not label.strip() if isinstance(label, str) else label != label
    return None if is_blank else label


def option_of_label(question: Question, label: Any) -> str:
    """The name of the option that a label in the data stands for; other text if there is no such
    option. Spaces around it count only between options that differ in nothing else. Yes, no, 1 and
    0 stand for true and false; a number may have a point ("5.0").
    """
    names, name = option_names(question), as_name(label)
    if name in names:
        return name
    name = name.strip()
    values = values_of(question)
    if all(isinstance(value, bool) for value in values):
        return _TRUTHS.get(name.lower(), name.lower())
    if not any(isinstance(value, str) for value in values):
        try:
            return as_name(float(name))
        except ValueError:
            return name
    alike = [option for option in names if option.strip() == name]
    return alike[0] if len(alike) == 1 else name


def as_name(value: Value) -> str:
    """A value as text: true, false, a whole number without a point."""
    if isinstance(value, bool):
        return str(value).lower()
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if whole else value)


def _check(questions: Sequence[Question]) -> None:
    try:
        check_questions(questions)
    except RequestError as error:
        raise ConfigError(str(error), field="decide") from None
    for place, question in enumerate(questions):
        if not _is_unicode(question):
            raise ConfigError(
                f"{named(place, question)} holds text that is no valid Unicode", field="decide"
            )
        if not question.name:
            raise ConfigError(
                f"{named(place, question)} has no name, which its columns are called by",
                field="decide",
            )
        kinds = {type(value) for value in values_of(question)}
        if len(kinds) > 1 and kinds != {int, float}:
            raise ConfigError(
                f"{named(place, question)} has values of several kinds; give all of them as text",
                field="decide",
            )
        names = option_names(question)
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ConfigError(
                f"{named(place, question)} has two options with the value '{min(twice)}'",
                field="decide",
            )


def _is_unicode(question: Question) -> bool:
    try:
        msgspec.json.encode(question)
    except UnicodeEncodeError:
        return False
    return True


def _content(decide: Any) -> tuple[Mapping[str, Any], Path]:
    """The keys of a file, and where it lies."""
    folder = Path()
    if isinstance(decide, str | os.PathLike):
        folder = Path(decide).parent
        decide = read_yaml(Path(decide))
        if decide is None:
            decide = []
    if decide is None:
        return {}, folder
    if isinstance(decide, list | tuple):
        return {"questions": decide}, folder
    if not isinstance(decide, Mapping):
        raise ConfigError("must be questions, or the path of a file with them", field="decide")
    for key in decide:
        if key not in _FILE_KEYS:
            raise unknown_key(key, _FILE_KEYS, field="decide")
    return {"questions": None, **decide}, folder


def _listed(content: Mapping[str, Any]) -> Sequence[Any]:
    if "questions" not in content:
        return ()
    questions = content["questions"]
    if not isinstance(questions, list | tuple) or not questions:
        raise ConfigError("there are no questions", field="decide")
    return questions


def _option(given: Any, called: str) -> Any:
    """An option as a mapping."""
    if isinstance(given, Option):
        return msgspec.to_builtins(given)
    if not isinstance(given, Mapping):
        return _labelled(given, called)
    known = Option.__struct_fields__
    for key in given:
        if key not in known:
            raise ConfigError(
                f"{called}: unknown key '{key}' of an option. {nearest(str(key), known)}",
                field="decide",
            )
    if "label" not in given:
        return given
    more = {key: value for key, value in given.items() if key != "label"}
    return {**_labelled(given["label"], f"{called}.label"), **more}


def _labelled(given: Any, called: str) -> dict[str, Any]:
    """The option with this label. A number, and true or false, is its value too."""
    if getattr(given, "ndim", None) == 0:  # a number of NumPy's
        given = given.item()
    if isinstance(given, bool):  # what YAML makes of yes and no
        return {"label": "Yes" if given else "No", "value": given}
    if isinstance(given, int | float):
        return {"label": str(given), "value": given}
    if isinstance(given, str):
        return {"label": given}
    raise ConfigError(
        f"{called} must be text, a number, true or false, not {given!r} (in YAML, quotes make text"
        " of it)",
        field="decide",
    )


def _levels(low: Any, high: Any, called: str) -> Any:
    if type(low) is not int or type(high) is not int or not 0 < high - low < MOST_OPTIONS:
        raise ConfigError(
            f"{called}: a score needs levels, or whole numbers low and high, at most"
            f" {MOST_OPTIONS} from the lower to the higher",
            field="decide",
        )
    return msgspec.to_builtins(scale(low, high))
