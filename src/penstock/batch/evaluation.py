"""Evaluates a model on a file: each row gets a score from 0 to 1, by one of a few forms of tasks,
and two evaluations are compared row by row. Rows are asked in jobs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from penstock.batch import structured
from penstock.batch.decisions.questions import (
    as_name,
    label_of,
    option_names,
    option_of_label,
    questions_of,
)
from penstock.batch.decisions.thresholds import binomial_at_most
from penstock.batch.job.job import Job, answered_rows
from penstock.batch.write.state_files import writing
from penstock.errors import ConfigError, InputError, nearest
from penstock.observability import counted
from penstock.parsing import decode_json, read_file
from penstock.types import ChoiceQuestion, Option, Question

Form = Literal["choice", "exact", "schema", "pair"]
FORMS: tuple[Form, ...] = ("choice", "exact", "schema", "pair")
_OF_FORMS: dict[str, tuple[Form, ...]] = {
    "expected": ("choice", "exact"),
    "schema": ("schema",),
    "pair": ("pair",),
    "choices": ("choice",),
    "decide": ("choice",),
    "messages": ("choice", "exact", "schema"),
    "filter": (),
}
"""By option, the forms that use it. No form uses `filter`, which leaves rows out."""
_PREFIX = "evaluated_"
_Z = 1.959964  # for a 95 % interval
_JUDGE = ChoiceQuestion("Which of the two answers is better?", (Option("A"), Option("B")), "better")


class Evaluation(Struct, frozen=True):
    """The `scores` of all rows, in their order: 1 for a right answer, 0 for a wrong one and for a
    row that failed. In the form "pair" the score is the probability that the first text is better,
    0.5 if the row failed. `failed` counts the rows that failed. `unlabelled` rows, without a label
    that can be right, have no score. `labels` is a digest of the labels of the scored rows, and
    `columns` has one of each input column whose values differ.
    """

    form: Form
    scores: list[float]
    failed: int = 0
    unlabelled: int = 0
    labels: str = ""
    columns: dict[str, str] = {}

    @property
    def mean(self) -> float:
        return math.fsum(self.scores) / len(self.scores)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the mean (Wilson, "Probable Inference", JASA 1927; too
        wide for scores between 0 and 1).
        """
        rows, mean = len(self.scores), self.mean
        middle = (mean + _Z**2 / (2 * rows)) / (1 + _Z**2 / rows)
        half = _Z * math.sqrt(mean * (1 - mean) / rows + (_Z / (2 * rows)) ** 2)
        half /= 1 + _Z**2 / rows
        return max(middle - half, 0.0), min(middle + half, 1.0)

    def __str__(self) -> str:
        low, high = self.interval
        failed = f", {self.failed:,} failed" if self.failed else ""
        left = f", {self.unlabelled:,} more without a usable label" if self.unlabelled else ""
        return f"{self.form}: {self.mean:.3f} (95 %: {low:.3f} to {high:.3f}), " + (
            f"{counted(len(self.scores), 'row')}{failed}{left}"
        )

    def json(self) -> bytes:
        """As JSON, with the mean and its interval."""
        more = {"mean": self.mean, "interval": self.interval}
        return msgspec.json.encode({**msgspec.structs.asdict(self), **more})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the evaluation as JSON, to compare later ones with it. Raises `OutputError`."""
        with writing(path):
            Path(path).write_bytes(self.json() + b"\n")


class Comparison(Struct, frozen=True):
    """Two evaluations of the same rows: how many became `better` and `worse`, the `difference` of
    the means with its 95 % confidence `interval` (of paired rows; Agresti and Min, "Simple improved
    confidence intervals for comparing matched proportions", 2005), and the probability `p` of rows
    that differ so unevenly by chance alone (exact sign test; McNemar's for right and wrong).
    """

    rows: int
    better: int
    worse: int
    difference: float
    interval: tuple[float, float]
    p: float

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"difference {self.difference:+.3f} (95 %: {low:+.3f} to {high:+.3f}): {self.better:,}"
            f" rows better, {self.worse:,} worse of {self.rows:,}, p = {self.p:.3g}"
        )


def compared(before: Evaluation, after: Evaluation) -> Comparison:
    """The comparison, row by row. Raises `ConfigError` if they are not of the same rows."""
    if before.form != after.form or len(before.scores) != len(after.scores):
        raise ConfigError(
            f"has {len(before.scores)} rows of the form '{before.form}', and there are"
            f" {len(after.scores)} of '{after.form}': give both runs the same file, form, labels"
            " and limit",
            field="against",
        )
    if before.labels and after.labels and before.labels != after.labels:
        raise ConfigError("is of other rows: their labels are not these", field="against")
    both = before.columns.keys() & after.columns.keys()
    if both and all(before.columns[name] != after.columns[name] for name in both):
        raise ConfigError(
            f"is of other rows, or of these in another order: '{min(both)}' has other values",
            field="against",
        )
    changes = [b - a for a, b in zip(before.scores, after.scores, strict=True)]
    rows = len(changes)
    total = math.fsum(changes)
    # Half a row more in each cell of the table: right or wrong before, right or wrong after.
    middle = total / (rows + 2)
    spread = (math.fsum(c * c for c in changes) + 1) / (rows + 2) - middle**2
    half = _Z * math.sqrt(spread / (rows + 2))
    interval = max(middle - half, -1.0), min(middle + half, 1.0)
    better, worse = sum(c > 0 for c in changes), sum(c < 0 for c in changes)
    p = min(2 * binomial_at_most(min(better, worse), better + worse, 0.5), 1.0)
    return Comparison(rows, better, worse, total / rows, interval, p)


def load(path: str | os.PathLike[str], form: Form | None = None) -> Evaluation:
    """A saved evaluation. Raises `ConfigError`, also if it has another form than `form`."""
    try:
        found = msgspec.json.decode(read_file(path), type=Evaluation)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", field="against") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path} is no evaluation: {error}", field="against") from None
    if form not in (None, found.form):
        raise ConfigError(f"{path} is of the form '{found.form}', not '{form}'", field="against")
    return found


async def aevaluate(
    source: Any,
    form: Form = "exact",
    *,
    expected: str | None = None,
    pair: Sequence[str] | None = None,
    schema: Any = None,
    **options: Any,
) -> Evaluation:
    """Ask each row and score what comes back. `options` are those of `Job` that say what is asked.

    "choice": the most likely of the `choices` (or the one question of `decide`), by likelihood, is
    that in the column `expected`. "exact": the answer, without white space around it, is the text
    in that column, or the same JSON as the value there. "schema": the answer follows the `schema`,
    without being constrained to it. "pair": the model judges which of the texts in the two columns
    `pair` answers the prompt better, in both orders, so that no place is favoured. Raises
    `PenstockError`.
    """
    if form not in FORMS:
        raise ConfigError(f"there is no '{form}'", field="form", hint=nearest(form, FORMS))
    asked_for = {"expected": expected, "schema": schema, "pair": pair, **options}
    for name, forms in _OF_FORMS.items():
        if asked_for.get(name) is not None and form not in forms:
            raise ConfigError(f"has no meaning for the form '{form}'", field=name)
    needs = {"schema": ("schema", schema), "pair": ("pair", pair)}
    name, given = needs.get(form, ("expected", expected))
    if given is None:
        raise ConfigError(f"the form '{form}' needs it", field=name)
    if form == "pair":
        assert pair is not None
        return await _judged(source, pair, options)
    question = _one_question(options) if form == "choice" else None
    if form == "schema":
        wanted = structured.load(schema)
        assert wanted is not None
        asked = await _rows(source, options, [])
        marks = [_follows(wanted, row[f"{_PREFIX}response"]) for row in asked]
        scores = [float(mark) for mark in marks]
        return Evaluation(form, scores, _failed(asked), columns=_digests(asked))
    assert expected is not None
    asked = await _rows(source, options, [("expected", expected)])
    labelled = [(row, label_of(row.get(expected))) for row in asked]
    labelled = [(row, label) for row, label in labelled if _is_usable(question, label)]
    if not labelled:
        what = "" if question is None else f" of the question '{question.name}'"
        raise InputError(f"no row has a label{what} in the column '{expected}'")
    marks = [
        _is_expected(row[f"{_PREFIX}response"], label)
        if question is None
        else _is_likeliest(question, row, label)
        for row, label in labelled
    ]
    rows = [row for row, _ in labelled]
    labels = _digest([as_name(label) for _, label in labelled])
    scores, left = [float(mark) for mark in marks], len(asked) - len(rows)
    return Evaluation(form, scores, _failed(rows), left, labels, _digests(rows))


def _digest(values: Sequence[Any]) -> str:
    return blake2b(repr(values).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _digests(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """A digest of each column of the input that tells its rows apart and has plain values."""
    names = [name for name in rows[0] if not name.startswith(_PREFIX)]
    columns = {name: [row.get(name) for row in rows] for name in names}
    return {
        name: _digest(values)
        for name, values in columns.items()
        if all(value is None or isinstance(value, str | int | float) for value in values)
        and len(set(values)) > 1
    }


async def _rows(
    source: Any, options: Mapping[str, Any], needed: Sequence[tuple[str, str]]
) -> list[dict[str, Any]]:
    if all(options.get(name) is None for name in ("prompt", "messages", "audio")):
        raise ConfigError(
            "say what to ask: give a prompt with {column} in it, or a column of messages",
            field="prompt",
        )
    rows, _ = await answered_rows(Job(source, result_prefix=_PREFIX, **options), needed)
    if not rows:
        raise InputError("there are no rows to evaluate")
    return rows


async def _judged(source: Any, pair: Sequence[str], options: dict[str, Any]) -> Evaluation:
    if len(pair) != 2:
        raise ConfigError("must be two columns", field="pair", value=pair)
    prompt = options.pop("prompt", None) or ""
    found: list[list[dict[str, Any]]] = []
    for first, second in (pair, pair[::-1]):
        whole = f"{prompt}\n\nAnswer A:\n{{{first}}}\n\nAnswer B:\n{{{second}}}"
        if found:  # the source may be one that can be read once only
            source = [
                {name: row[name] for name in row if not name.startswith(_PREFIX)}
                for row in found[0]
            ]
        found.append(await _rows(source, {**options, "prompt": whole, "decide": [_JUDGE]}, []))
    column = f"{_PREFIX}better_probabilities"
    scores, failed = [], 0
    for one, other in zip(*found, strict=True):
        if one[column] is None or other[column] is None:
            failed += 1
            scores.append(0.5)
        else:
            scores.append((one[column]["A"] + other[column]["B"]) / 2)
    return Evaluation("pair", scores, failed, columns=_digests(found[0]))


def _one_question(options: Mapping[str, Any]) -> Question:
    decide, choices = options.get("decide"), options.get("choices")
    questions = questions_of(decide, choices) if (decide, choices) != (None, None) else ()
    if len(questions) != 1:
        raise ConfigError("the form 'choice' needs choices, or one question", field="decide")
    (question,) = questions
    if isinstance(question, ChoiceQuestion) and question.several:
        raise ConfigError(
            f"the question '{question.name}' takes several options; the form 'choice' needs one"
            " answer",
            field="decide",
        )
    return question


def _is_likeliest(question: Question, row: Mapping[str, Any], expected: Any) -> bool:
    column = f"{_PREFIX}{question.name}"
    if row[column] is None:
        return False
    chances: dict[str, float] = row[f"{column}_probabilities"]
    return max(chances, key=chances.__getitem__) == option_of_label(question, expected)


def _is_usable(question: Question | None, label: Any) -> bool:
    """Whether an answer can be compared with this label."""
    return label is not None and (
        question is None or option_of_label(question, label) in option_names(question)
    )


def _is_expected(answer: str | None, expected: Any) -> bool:
    if answer is None:
        return False
    text = answer.strip()
    if text == as_name(expected).strip():
        return True
    if isinstance(expected, str):
        return False
    try:
        value = decode_json(text)
    except ValueError:
        return False
    return _is_same(value, expected)


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON. In Python true is 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _follows(schema: structured.Schema, answer: str | None) -> bool:
    try:
        schema.parse(answer or "")
    except ValueError:
        return False
    return True


def _failed(rows: Sequence[Mapping[str, Any]]) -> int:
    return sum(row[f"{_PREFIX}status"] == "error" for row in rows)
