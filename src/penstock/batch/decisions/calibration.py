"""Calibrates the probabilities of a model's decisions, so that they match its accuracy.

The fit is temperature scaling with a bias for each option (Guo et al., "On Calibration of Modern
Neural Networks", ICML 2017, https://arxiv.org/abs/1706.04599; its vector scaling with one scale):
the log probabilities over the temperature, plus the biases, normalised again. Both are fitted by
Newton's method to the likelihood of the labels, with L2 regularisation towards temperature 1 and
no bias. That is convex in 1/temperature and the biases, so there is one best fit. The temperature
is at most 1000: the model's probabilities then hardly count.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct, field

from penstock.engines.decisions.answers import decided, values_of
from penstock.errors import ConfigError, nearest
from penstock.parsing import read_yaml
from penstock.types import ChoiceQuestion, Decision, Question

if TYPE_CHECKING:
    import numpy as np

LEAST = 1e-9
"""Smaller probabilities count as this one."""
BINS = 10
_REGULARISATION = 1.0  # outweighed by a few dozen labels
_LEAST_SCALE, _AT_BOUND = 1e-3, 1e-9
_LEAST_TEMPERATURE, _MOST_NUMBER = 1e-9, 1e9  # beyond them probabilities overflow
_STEPS = 100


class Scaling(Struct, frozen=True, forbid_unknown_fields=True):
    """The calibration of one question: its `options` by value, their `bias`, the `temperature`."""

    options: list[str | bool | int | float]
    temperature: float
    bias: list[float]

    def probabilities(self, given: Sequence[float]) -> list[float]:
        """The calibrated probabilities of the options, which sum to 1."""
        scaled = [
            math.log(max(p, LEAST)) / self.temperature + bias
            for p, bias in zip(given, self.bias, strict=True)
        ]
        most = max(scaled)
        shares = [math.exp(value - most) for value in scaled]
        total = math.fsum(shares)
        return [share / total for share in shares]


class Calibration(Struct, frozen=True, forbid_unknown_fields=True):
    """A calibration file: for the decisions of `model`, a scaling for each question by name, and
    the labelled rows that it was fitted to.
    """

    model: str
    questions: dict[str, Scaling]
    rows: dict[str, int] = field(default_factory=dict)

    def applied(self, decision: Decision, question: Question) -> Decision:
        """The decision that follows from the calibrated probabilities."""
        scaling = self.questions.get(decision.name)
        if scaling is None or decision.value is None:
            return decision
        return decided(question, scaling.probabilities(decision.probabilities), decision.mass)


class Reliability(Struct, frozen=True):
    """How far probabilities agree with what is right, over some rows.

    `accuracy` is the share of rows whose most likely option is right. `error` is the expected
    calibration error: rows are put into ten bins by their largest probability, and the distances of
    each bin's mean probability from its accuracy are averaged, weighted by rows. `bins` has for
    each of the ten its rows, their mean probability and the share that is right.
    """

    rows: int
    accuracy: float
    error: float
    bins: list[tuple[int, float, float]]


def read_calibration(
    given: Any, folder: Path, questions: Sequence[Question], model: str
) -> Calibration:
    """The calibration of a file (a path from `folder`) or a mapping, for these questions.

    Raises `ConfigError` if it is of another model, or of other questions.
    """
    if isinstance(given, str | os.PathLike):
        given = read_yaml(folder / given)
    if not isinstance(given, Calibration):
        try:
            given = msgspec.convert(given, Calibration)
        except msgspec.ValidationError:
            from penstock.validation import mismatch  # imported only for an error

            why = mismatch(Calibration, given)
            raise ConfigError(
                f"no calibration that this Penstock reads: {why}. Calibrate again",
                field="calibration",
            ) from None
    calibration: Calibration = given
    if calibration.model != model:
        raise ConfigError(
            f"was made for the model '{calibration.model}', and this is '{model}'",
            field="calibration",
        )
    by_name: Mapping[str, Question] = {question.name: question for question in questions}
    for name, scaling in calibration.questions.items():
        if name not in by_name:
            raise ConfigError(
                f"no question is called '{name}'", field="calibration", hint=nearest(name, by_name)
            )
        check_can_be_calibrated(by_name[name])
        options = values_of(by_name[name])
        # True equals 1, so types are compared as well.
        same = list(map(repr, scaling.options)) == list(map(repr, options))
        if not same or len(scaling.bias) != len(options):
            raise ConfigError(
                f"the question '{name}' has other options than when it was calibrated",
                field="calibration",
            )
        numbers = (scaling.temperature, *scaling.bias)
        if scaling.temperature < _LEAST_TEMPERATURE or not all(
            abs(n) < _MOST_NUMBER for n in numbers
        ):
            raise ConfigError(
                f"the temperature or a bias of '{name}' is out of range; calibrate again",
                field="calibration",
            )
    return calibration


def check_can_be_calibrated(question: Question) -> None:
    """Raise `ConfigError` for a question that has no one answer."""
    if isinstance(question, ChoiceQuestion) and question.several:
        raise ConfigError(
            f"the question '{question.name}' takes several options; only questions with one answer"
            " can be calibrated",
            field="calibration",
        )


def fitted(
    options: Sequence[Any], probabilities: Sequence[Sequence[float]], right_options: Sequence[int]
) -> Scaling:
    """The scaling that makes the labels most likely. `right_options` holds the place of each row's
    right option, `probabilities` (rows × options) what the model gave.
    """
    import numpy as np

    logs = np.log(np.maximum(np.asarray(probabilities, float), LEAST))
    count = logs.shape[1]
    start = np.zeros(count + 1)
    start[0] = 1.0
    found, loss = start, _loss(start, logs, right_options, start)
    for _ in range(_STEPS):
        step = _newton_step(found, logs, right_options, start)
        room = found[0] - _LEAST_SCALE
        if step[0] > room > _AT_BOUND:  # to the bound, straight ahead
            step *= room / step[0]
        elif step[0] > room:  # along the bound
            step = _newton_step(found, logs, right_options, start, scaled_too=False)
        size = 1.0
        while True:
            trial = found - size * step
            trial[0] = max(trial[0], _LEAST_SCALE)
            better = _loss(trial, logs, right_options, start)
            if better <= loss or size < 1e-6:
                break
            size /= 2
        gain = loss - better
        if gain > 0:
            found, loss = trial, better
        if gain < 1e-10:
            break
    bias = found[1:] - found[1:].mean()
    return Scaling(list(options), float(1 / found[0]), [float(value) for value in bias])


def _loss(at: Any, logs: Any, right_options: Sequence[int], start: Any) -> float:
    import numpy as np

    scaled = logs * at[0] + at[1:]
    most = scaled.max(axis=1)
    norm = most + np.log(np.exp(scaled - most[:, None]).sum(axis=1))
    pull = _REGULARISATION / 2 * ((at - start) ** 2).sum()
    return float((norm - scaled[np.arange(len(right_options)), right_options]).sum() + pull)


def _newton_step(
    at: np.ndarray[Any, Any],
    logs: np.ndarray[Any, Any],
    right_options: Sequence[int],
    start: Any,
    scaled_too: bool = True,
) -> np.ndarray[Any, Any]:
    """The inverse of the Hessian times the gradient; of the biases alone if not `scaled_too`."""
    import numpy as np

    scaled = logs * at[0] + at[1:]
    shares = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    residual = shares.copy()
    residual[np.arange(len(right_options)), right_options] -= 1
    mean = (shares * logs).sum(axis=1)
    gradient = np.concatenate(
        [[(residual * logs).sum()], residual.sum(axis=0)]
    ) + _REGULARISATION * (at - start)
    hessian = np.empty((len(at), len(at)))
    hessian[0, 0] = ((shares * logs**2).sum(axis=1) - mean**2).sum()
    hessian[0, 1:] = hessian[1:, 0] = (shares * (logs - mean[:, None])).sum(axis=0)
    hessian[1:, 1:] = np.diag(shares.sum(axis=0)) - shares.T @ shares
    hessian += _REGULARISATION * np.eye(len(at))
    if not scaled_too:
        gradient[0] = hessian[0, 1:] = hessian[1:, 0] = 0
    return np.asarray(np.linalg.solve(hessian, gradient))


def reliability(probabilities: Sequence[list[float]], right_options: Sequence[int]) -> Reliability:
    """How far these probabilities (rows × options) agree with `right_options`, the place of each
    row's right option.
    """
    by_bin: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for each, place in zip(probabilities, right_options, strict=True):
        most = max(each)
        by_bin[min(int(most * BINS), BINS - 1)].append((most, each.index(most) == place))
    rows = len(right_options)
    bins = [
        (
            len(items),
            math.fsum(p for p, _ in items) / max(len(items), 1),
            sum(hit for _, hit in items) / max(len(items), 1),
        )
        for items in by_bin
    ]
    error = math.fsum(count * abs(mean - share) for count, mean, share in bins) / max(rows, 1)
    hits = sum(hit for items in by_bin for _, hit in items)
    return Reliability(rows, hits / max(rows, 1), error, bins)
