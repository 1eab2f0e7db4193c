"""Calibrates the decisions of a model on labelled rows: asks the questions in a job, fits a scaling
for each, and measures it on rows that the fit has not seen.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from penstock.batch.decisions.calibration import (
    Calibration,
    Reliability,
    Scaling,
    check_can_be_calibrated,
    fitted,
    reliability,
)
from penstock.batch.decisions.questions import (
    label_of,
    option_names,
    option_of_label,
    questions_of,
)
from penstock.batch.job.job import Job, answered_rows
from penstock.batch.write.state_files import writing
from penstock.engines.decisions.answers import values_of
from penstock.engines.registry import engine_for
from penstock.errors import ConfigError, InputError, nearest
from penstock.observability import counted
from penstock.types import Question

_PREFIX = "decided_"
_PLOT = 260
_MARGIN = 46


class QuestionFit(Struct, frozen=True):
    """The calibration of one question: its `scaling`, fitted to all labelled rows, and how reliable
    the probabilities are `before` and `after`. `after` is cross-validated: each row is calibrated
    by a fit to other rows. `unlabelled` counts the rows without a label that is an option, `failed`
    the rows without an answer.
    """

    scaling: Scaling
    before: Reliability
    after: Reliability
    unlabelled: int
    failed: int = 0


class Fits(Struct, frozen=True):
    """What a calibration found, by the name of the question. `model` is the model that was asked.
    `str()` is a summary for people.
    """

    model: str
    questions: dict[str, QuestionFit]

    @property
    def calibration(self) -> Calibration:
        """The calibration file's content, which a job's option `calibration` takes."""
        return Calibration(
            self.model,
            {name: fit.scaling for name, fit in self.questions.items()},
            {name: fit.before.rows for name, fit in self.questions.items()},
        )

    def __str__(self) -> str:
        lines = []
        for name, fit in self.questions.items():
            before, after = fit.before, fit.after
            left = [f", {fit.unlabelled:,} more without a usable label"] if fit.unlabelled else []
            left += [f", {fit.failed:,} more failed"] if fit.failed else []
            lines += [
                f"{name}: {counted(before.rows, 'row')}{''.join(left)},"
                f" temperature {fit.scaling.temperature:.4g}",
                f"  accuracy                    {before.accuracy:.3f} -> {after.accuracy:.3f}",
                f"  expected calibration error  {before.error:.3f} -> {after.error:.3f}",
            ]
        return "\n".join([*lines, "After: of rows that the fit has not seen."])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the calibration file. Raises `OutputError`."""
        data = msgspec.json.format(msgspec.json.encode(self.calibration), indent=2)
        with writing(path):
            Path(path).write_bytes(data + b"\n")

    def draw(self, path: str | os.PathLike[str]) -> None:
        """Write reliability diagrams as SVG: for each question the share that is right over the
        probability, before and after. Raises `OutputError`.
        """
        with writing(path):
            Path(path).write_bytes(picture(self).encode())


async def acalibrate(
    source: Any, labels: str | Mapping[str, str], *, folds: int = 5, **options: Any
) -> Fits:
    """Ask labelled rows, and fit the calibration of each question.

    `labels` is the column with the right option of the one question, or maps questions to columns.
    A label is an option's value, as text or as it is; yes, no, 1 and 0 are labels of a predicate.
    `folds` is into how many parts rows are split for the cross-validation. `options` are those of
    `Job` that say what is asked. Raises `PenstockError`.
    """
    if folds < 2:
        raise ConfigError(f"must be at least 2, not {folds}", field="folds", value=folds)
    if options.get("filter") is not None:  # the fit would be to the rows that pass
        raise ConfigError("has no meaning for a calibration", field="filter")
    engine = engine_for(
        *(options.pop(name, None) for name in ("model", "engine", "engine_kwargs")),
        deterministic=options.pop("deterministic", False),
    )
    decide, choices = options.pop("decide", None), options.pop("choices", None)
    if decide is None and choices is None:
        raise ConfigError("say what is decided: questions or choices", field="decide")
    asked = questions_of(decide, choices)
    columns = _columns(labels, asked)
    questions = [question for question in asked if question.name in columns]
    for question in questions:
        check_can_be_calibrated(question)
    job = Job(source, engine=engine, decide=questions, result_prefix=_PREFIX, **options)
    # Each with the option to blame if the data lacks the column.
    label_columns = [("labels", columns[one.name]) for one in questions]
    rows, inputs = await answered_rows(job, label_columns)
    found = {
        question.name: _fit(question, columns[question.name], rows, inputs, folds)
        for question in questions
    }
    return Fits(engine.model_source, found)


def picture(fits: Fits) -> str:
    """Reliability diagrams as SVG, one row per question."""
    width = 2 * (_PLOT + 2 * _MARGIN)
    height = len(fits.questions) * (_PLOT + 2 * _MARGIN)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for row, (name, fit) in enumerate(fits.questions.items()):
        for column, (title, one) in enumerate((("before", fit.before), ("after", fit.after))):
            left = _MARGIN + column * (_PLOT + 2 * _MARGIN)
            top = _MARGIN + row * (_PLOT + 2 * _MARGIN)
            parts += _diagram(f"{name}, {title}", one, left, top)
    return "\n".join([*parts, "</svg>\n"])


def _diagram(title: str, one: Reliability, left: int, top: int) -> list[str]:
    bottom = top + _PLOT
    parts = [
        f'<text x="{left}" y="{top - 22}" font-weight="bold">{escape(title)}</text>',
        f'<text x="{left}" y="{top - 7}">accuracy {one.accuracy:.3f}, calibration error'
        f" {one.error:.3f}, {one.rows:,} rows</text>",
        f'<rect x="{left}" y="{top}" width="{_PLOT}" height="{_PLOT}" fill="none" stroke="#888"/>',
    ]
    wide = _PLOT / len(one.bins)
    for place, (rows, mean, share_right) in enumerate(one.bins):
        if rows:
            high = share_right * _PLOT
            x, y = left + place * wide, bottom - high
            parts += [
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{high:.1f}"'
                f' fill="#4a90d9" fill-opacity="0.6"><title>{rows:,} rows: probability {mean:.3f},'
                f" right {share_right:.3f}</title></rect>",
                f'<circle cx="{left + mean * _PLOT:.1f}" cy="{y:.1f}" r="3" fill="#c0392b"/>',
            ]
    parts += [
        f'<line x1="{left}" y1="{bottom}" x2="{left + _PLOT}" y2="{top}" stroke="#555"'
        ' stroke-dasharray="4 4"/>',
        f'<text x="{left + _PLOT / 2}" y="{bottom + 30}" text-anchor="middle">probability</text>',
        f'<text transform="translate({left - 28} {top + _PLOT / 2}) rotate(-90)"'
        ' text-anchor="middle">share that is right</text>',
    ]
    for share in (0, 0.5, 1):
        parts += [
            f'<text x="{left + share * _PLOT:.0f}" y="{bottom + 14}" text-anchor="middle">{share:g}'
            "</text>",
            f'<text x="{left - 5}" y="{bottom - share * _PLOT + 4:.0f}" text-anchor="end">{share:g}'
            "</text>",
        ]
    return parts


def _columns(labels: str | Mapping[str, str], questions: Sequence[Question]) -> Mapping[str, str]:
    """The column of each question's labels."""
    names = [question.name for question in questions]
    if isinstance(labels, str):
        if len(names) > 1:
            raise ConfigError(
                f"there are {len(names)} questions; say which one has these labels, as"
                f" {names[0]}={labels}",
                field="labels",
            )
        return {names[0]: labels}
    for name in labels:
        if name not in names:
            raise ConfigError(
                f"no question is called '{name}'", field="labels", hint=nearest(name, names)
            )
    if not labels:
        raise ConfigError("there are none", field="labels")
    return labels


def _fit(
    question: Question,
    column: str,
    rows: Sequence[Mapping[str, Any]],
    inputs: Sequence[str],
    folds: int,
) -> QuestionFit:
    places = {name: place for place, name in enumerate(option_names(question))}
    probabilities: list[list[float]] = []
    right_options: list[int] = []
    asked: list[str] = []
    failures: Counter[str] = Counter()
    for row in rows:
        shares = row[f"{_PREFIX}{question.name}_probabilities"]
        label = label_of(row.get(column))
        name = "" if label is None else option_of_label(question, label)
        if (error := row[f"{_PREFIX}error"]) is not None:
            failures[error["type"]] += 1
        elif row[f"{_PREFIX}{question.name}"] is None:
            failures["no decision"] += 1
        elif shares is not None and name in places:
            probabilities.append(list(shares.values()))
            right_options.append(places[name])
            asked.append(repr([row.get(name) for name in inputs]))
    different = len(set(asked))
    if different < 2 * folds:
        failed = ", ".join(f"{number:,} × {kind}" for kind, number in failures.items())
        raise InputError(
            f"{different} different rows have a label of the question '{question.name}' in column"
            f" '{column}', and {folds} folds need {2 * folds}; its labels are"
            f" {', '.join(list(places)[:10])}" + (f"; rows that failed: {failed}" if failed else "")
        )
    options = values_of(question)
    fold = _folds(right_options, asked, folds)
    calibrated: list[list[float]] = [[] for _ in right_options]
    for left_out in range(folds):
        others = [number for number, part in enumerate(fold) if part != left_out]
        scaling = fitted(
            options, [probabilities[n] for n in others], [right_options[n] for n in others]
        )
        for number, part in enumerate(fold):
            if part == left_out:
                calibrated[number] = scaling.probabilities(probabilities[number])
    failed_rows = failures.total()
    return QuestionFit(
        fitted(options, probabilities, right_options),
        reliability(probabilities, right_options),
        reliability(calibrated, right_options),
        len(rows) - len(right_options) - failed_rows,
        failed_rows,
    )


def _folds(labels: Sequence[int], asked: Sequence[str], folds: int) -> list[int]:
    """The fold of each row. Equal rows, by what is `asked`, are in one, so that no fit has seen
    those that it is judged by. Each fold has about the same share of each label: a fit to rows that
    lack some of them would lean against the very rows that it is judged by.
    """
    equal: dict[str, list[int]] = {}
    for number, one in enumerate(asked):
        equal.setdefault(one, []).append(number)
    groups = list(equal.values())
    random.Random(0).shuffle(groups)
    groups.sort(key=lambda group: labels[group[0]])
    fold = [0] * len(labels)
    for place, group in enumerate(groups):
        for number in group:
            fold[number] = place % folds
    return fold
