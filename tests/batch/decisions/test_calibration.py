"""The fit, on probabilities whose true calibration is known, and files of it."""

import math
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.batch.decisions import calibrate as calibrate_module
from penstock.batch.decisions.calibrate import acalibrate, picture
from penstock.batch.decisions.calibration import (
    Calibration,
    Scaling,
    fitted,
    read_calibration,
    reliability,
)
from penstock.batch.decisions.questions import deciding
from penstock.engines.decisions.answers import decided
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import ConfigError, InputError
from penstock.types import ChoiceQuestion, Option, PredicateQuestion, ScoreQuestion

OPTIONS: list[Any] = ["a", "b", "c"]
TRUE = Scaling(OPTIONS, 2.5, [0.6, -0.1, -0.5])


def drawn(rows, seed=0):
    """Probabilities that are too sure of themselves, and what is right: drawn by `TRUE`."""
    draw = random.Random(seed)
    given, right = [], []
    for _ in range(rows):
        shares = [math.exp(4 * draw.gauss(0, 1)) for _ in OPTIONS]
        given.append([share / sum(shares) for share in shares])
        right.append(draw.choices(range(3), TRUE.probabilities(given[-1]))[0])
    return given, right


def test_the_fit_finds_what_made_the_labels():
    found = fitted(OPTIONS, *drawn(5000))
    assert found.temperature == pytest.approx(2.5, rel=0.08)
    assert found.bias == pytest.approx(TRUE.bias, abs=0.12)
    assert sum(found.bias) == pytest.approx(0, abs=1e-9)


def test_it_makes_other_rows_reliable():
    found = fitted(OPTIONS, *drawn(1000))
    given, right = drawn(4000, seed=1)
    before = reliability(given, right)
    after = reliability([found.probabilities(each) for each in given], right)
    assert before.error > 0.15
    assert after.error < 0.03
    assert after.accuracy >= before.accuracy
    assert sum(rows for rows, _, _ in after.bins) == after.rows == 4000


@pytest.mark.parametrize("rows", [1, 3])
def test_a_fit_of_few_rows_stays_near_no_change(rows):
    found = fitted(OPTIONS, [[0.9, 0.1, 0.0]] * rows, [0] * rows)
    assert 0.3 < found.temperature < 1.1
    assert all(abs(bias) < 1 for bias in found.bias)


def test_labels_against_the_model_make_it_unsure_and_no_error():
    found = fitted(["x", "y"], [[0.99, 0.01], [0.01, 0.99]] * 20, [1, 0] * 20)
    assert found.temperature > 100
    assert sum(found.probabilities([1.0, 0.0])) == pytest.approx(1)


def test_biases_are_the_best_also_where_the_temperature_is_the_highest():
    given, _ = drawn(60)
    right = [each.index(min(each)) for each in given]  # the least likely
    found = fitted(OPTIONS, given, right)
    assert found.temperature == pytest.approx(1000)
    after = [found.probabilities(each) for each in given]
    for place, bias in enumerate(found.bias):
        residual = math.fsum(each[place] for each in after) - right.count(place)
        assert residual + bias == pytest.approx(0, abs=1e-4)  # the derivative of the loss


def test_reliability_of_a_tie_counts_the_first():
    found = reliability([[0.5, 0.5], [0.5, 0.5]], [0, 1])
    assert (found.accuracy, found.error) == (0.5, 0.0)
    assert reliability([], []).rows == 0


CHOICE = ChoiceQuestion("Which?", tuple(map(Option, OPTIONS)), "team")


def test_a_decision_is_made_anew():
    calibration = Calibration("demo", {"team": Scaling(OPTIONS, 1.0, [0.0, 2.0, 0.0])})
    before = decided(CHOICE, [0.5, 0.4, 0.1])
    after = calibration.applied(before, CHOICE)
    assert (before.value, after.value) == ("a", "b")
    assert sum(after.probabilities) == pytest.approx(1, abs=1e-12)
    other = decided(PredicateQuestion("?", "other"), [0.5, 0.5])
    assert calibration.applied(other, PredicateQuestion("?", "other")) is other


def test_a_score_is_the_mean_of_calibrated_probabilities():
    question = ScoreQuestion("?", (Option("1", value=1), Option("5", value=5)), "anger")
    calibration = Calibration("demo", {"anger": Scaling([1, 5], 1e9, [0.0, 0.0])})
    assert calibration.applied(decided(question, [0.9, 0.1]), question).value == pytest.approx(3)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model": "other"}, "was made for the model 'other'"),
        ({"questions": {"tema": TRUE}}, "no question is called 'tema'. Did you mean 'team'"),
        ({"questions": {"team": Scaling(["a", "b"], 1, [0, 0])}}, "other options"),
        ({"questions": {"team": Scaling(OPTIONS, 0, [0, 0, 0])}}, "out of range"),
        ({"questions": {"team": Scaling(OPTIONS, 1e-320, [0, 0, 0])}}, "out of range"),
        ({"questions": {"team": Scaling(OPTIONS, 1, [1e308, 0, 0])}}, "out of range"),
        ({"questions": 3}, "no calibration that this Penstock reads: questions must be an object"),
        ({"method": "isotonic"}, "reads: method is unknown.* Calibrate again"),
        ({"questions": {"team": {**msgspec.to_builtins(TRUE), "floor": 1}}}, "floor is unknown"),
    ],
)
def test_a_calibration_of_something_else_is_refused(tmp_path, change, why):
    good = {"model": "demo", "questions": {"team": TRUE}}
    path = tmp_path / "c.json"
    path.write_bytes(msgspec.json.encode(good))
    assert read_calibration("c.json", tmp_path, [CHOICE], "demo").questions == {"team": TRUE}
    path.write_bytes(msgspec.json.encode({**good, **change}))
    with pytest.raises(ConfigError, match=why):
        read_calibration("c.json", tmp_path, [CHOICE], "demo")


def test_several_options_have_no_calibration():
    several = ChoiceQuestion("Which?", CHOICE.options, "team", several=True)
    with pytest.raises(ConfigError, match="takes several options"):
        read_calibration({"model": "demo", "questions": {"team": TRUE}}, Path(), [several], "demo")


QUESTIONS = [CHOICE, PredicateQuestion("Urgent?", "urgent")]


async def calibrate(rows, labels, **options):
    return await acalibrate(
        rows, labels, model="simulated", prompt="{text}", decide=QUESTIONS, **options
    )


async def test_labelled_rows_become_a_file_that_a_job_takes(tmp_path):
    rows = [{"text": f"{n}", "team": "abc"[n % 3], "late": n % 2} for n in range(60)]
    rows += [{"text": "no label", "team": None, "late": True}]
    fits = await calibrate(rows, {"team": "team", "urgent": "late"})
    assert fits.questions["team"].before.rows == 60
    assert fits.questions["team"].unlabelled == 1
    assert fits.questions["urgent"].before.rows == 61
    fits.save(tmp_path / "c.json")
    asked = deciding(
        {"questions": QUESTIONS, "calibration": tmp_path / "c.json"}, None, None, None, "simulated"
    )
    assert asked is not None
    assert asked.calibration is not None
    assert asked.calibration.questions["team"] == fits.questions["team"].scaling
    assert "team: 60 rows, 1 more without a usable label, temperature" in str(fits)
    drawing = picture(fits)
    assert drawing.startswith("<svg")
    assert drawing.count("accuracy") == 4


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ("team", "there are 2 questions"),
        ({"tema": "team"}, "no question is called 'tema'"),
        ({"team": "taem"}, "the data has no column 'taem'"),
        ({}, "there are none"),
    ],
)
async def test_labels_of_nothing_are_refused(labels, why):
    rows = [{"text": f"{n}", "team": "a"} for n in range(20)]
    with pytest.raises(ConfigError, match=why):
        await calibrate(rows, labels)


async def test_a_filter_would_leave_out_rows_of_the_fit():
    with pytest.raises(ConfigError, match="filter: has no meaning for a calibration"):
        await calibrate([], {"team": "team"}, filter="Urgent?")


async def test_too_few_labels():
    rows = [{"text": f"{n}", "team": "d"} for n in range(20)]
    with pytest.raises(
        InputError, match=r"0 different rows have a label of .* and 5 folds need 10"
    ):
        await calibrate(rows, {"team": "team"})


async def test_rows_that_failed_are_not_those_without_a_label():
    rows = [{"text": f"{n}", "team": "abc"[n % 3]} for n in range(60)] + [{"team": "a"}]
    fit = (await calibrate(rows, {"team": "team"})).questions["team"]
    assert (fit.before.rows, fit.unlabelled, fit.failed) == (60, 0, 1)
    with pytest.raises(
        InputError, match=r"0 different rows .*; rows that failed: 20 × invalid_request"
    ):
        await calibrate([{"team": "a"}] * 20 + [{"text": ""}], {"team": "team"})


@pytest.mark.parametrize("rows", [20, 100])
async def test_a_model_that_knows_nothing_is_found_no_worse_than_chance(rows):
    class Ignorant(SimulatedEngine):
        async def label_shares(self, texts, request):
            shares, usage = await super().label_shares(texts, request)
            return [type(one)([0.5, 0.5], one.mass) for one in shares], usage

    source = [{"text": f"{n}", "late": n % 2} for n in range(rows)]
    fits = await acalibrate(
        source, "late", engine=Ignorant("demo"), prompt="{text}", decide=QUESTIONS[1:]
    )
    after = fits.questions["urgent"].after
    assert after.accuracy == 0.5
    assert after.error == pytest.approx(0, abs=1e-6)


async def test_a_fit_has_not_seen_the_equals_of_rows_that_it_is_judged_by(monkeypatch):
    dealt: list[list[int]] = []

    def noting(*given):
        dealt.append(folds(*given))
        return dealt[-1]

    folds = calibrate_module._folds
    monkeypatch.setattr(calibrate_module, "_folds", noting)
    rows = [{"id": n, "text": f"{n % 20}", "late": n % 2} for n in range(60)]
    options: dict[str, Any] = {"model": "simulated", "prompt": "{text}", "decide": QUESTIONS[1:]}
    await acalibrate(rows, "late", **options)
    (fold,) = dealt
    assert fold[:20] == fold[20:40] == fold[40:]
    assert sorted(fold[:20]) == sorted([*range(5)] * 4)
    with pytest.raises(InputError, match="9 different rows have a label"):
        await acalibrate(rows[:9] * 20, "late", **options)


async def test_rows_without_a_decision_are_not_fitted():
    class Silent(SimulatedEngine):
        async def label_shares(self, texts, request):
            shares, usage = await super().label_shares(texts, request)
            mass = 0.0 if "none" in request.input[0]["content"] else 1.0
            return [type(one)(one.probabilities, mass) for one in shares], usage

    source = [{"text": f"{n}", "late": n % 2} for n in range(20)] + [{"text": "none", "late": 1}]
    fits = await acalibrate(
        source, "late", engine=Silent("demo"), prompt="{text}", decide=QUESTIONS[1:]
    )
    fit = fits.questions["urgent"]
    assert (fit.before.rows, fit.failed, fit.unlabelled) == (20, 1, 0)


def test_a_calibration_of_yes_and_no_is_none_of_a_score(tmp_path):
    score = ScoreQuestion("?", (Option("a", value=1), Option("b", value=0)), "anger")
    given = {"model": "demo", "questions": {"anger": Scaling([True, False], 1.0, [0.0, 0.0])}}
    with pytest.raises(ConfigError, match="other options"):
        read_calibration(given, tmp_path, [score], "demo")
