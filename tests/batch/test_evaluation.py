import json
import math

import numpy as np
import pandas as pd
import pytest

from penstock.batch.evaluation import Evaluation, aevaluate, compared, load
from penstock.errors import ConfigError, InputError


def scores(right, wrong):
    return Evaluation("exact", [1.0] * right + [0.0] * wrong)


def test_a_mean_has_its_interval():
    found = scores(80, 20)
    assert found.mean == 0.8
    assert found.interval == pytest.approx((0.7112, 0.8666), abs=1e-3)  # Wilson's
    assert scores(10, 0).interval == pytest.approx((0.7225, 1.0), abs=1e-3)
    assert str(found) == "exact: 0.800 (95 %: 0.711 to 0.867), 100 rows"


def test_two_evaluations_are_compared_row_by_row():
    before = Evaluation("exact", [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0] + [1.0] * 13)
    after = Evaluation("exact", [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0] + [1.0] * 13)
    found = compared(before, after)
    assert (found.rows, found.better, found.worse) == (20, 6, 1)
    assert found.difference == pytest.approx(0.25)
    assert found.p == pytest.approx(0.125)  # McNemar's, exact
    assert found.interval[0] < found.difference < found.interval[1]
    assert compared(after, after).p == 1.0
    with pytest.raises(ConfigError, match="20 rows of the form 'exact'"):
        compared(before, scores(1, 1))


@pytest.mark.parametrize(("rows", "better"), [(1, 1), (5, 5), (10, 9), (20, 0), (1000, 1000)])
def test_the_interval_of_a_difference_is_possible_and_holds_it(rows, better):
    after = Evaluation("exact", [1.0] * better + [0.0] * (rows - better))
    found = compared(scores(0, rows), after)
    low, high = found.interval
    assert -1 <= low < found.difference <= high <= 1
    mirrored = compared(after, scores(0, rows))
    assert mirrored.interval == pytest.approx((-high, -low))


async def test_rows_in_another_order_are_not_compared(make_engine):
    rows = [{"q": text, "is": "x", "image": object()} for text in "abc"]
    options = {"expected": "is", "prompt": "{q}", "engine": make_engine()}
    before = await aevaluate(rows, "exact", **options)
    with pytest.raises(ConfigError, match=r"in another order: 'q' has other values"):
        compared(before, await aevaluate(rows[::-1], "exact", **options))
    reworded = [{**row, "q": str(row["q"]).upper(), "was": row["q"]} for row in rows]
    known = [{**row, "was": row["q"]} for row in rows]
    one, other = [await aevaluate(some, "exact", **options) for some in (known, reworded)]
    assert compared(one, other).rows == 3


def test_other_labels_are_other_rows():
    one, other = (Evaluation("exact", [1.0], labels=digest) for digest in ("a", "b"))
    with pytest.raises(ConfigError, match="is of other rows"):
        compared(one, other)
    assert compared(scores(1, 0), one).rows == 1  # written before there were digests


def test_what_is_saved_comes_back(tmp_path):
    scores(2, 1).save(tmp_path / "e.json")
    assert load(tmp_path / "e.json") == scores(2, 1)
    (tmp_path / "e.json").write_text("[]")
    with pytest.raises(ConfigError, match="is no evaluation"):
        load(tmp_path / "e.json")
    scores(2, 1).save(tmp_path / "e.json")
    with pytest.raises(ConfigError, match=r"e.json is of the form 'exact', not 'pair'"):
        load(tmp_path / "e.json", "pair")
    with pytest.raises(ConfigError, match=r"none.json cannot be read: No such file"):
        load(tmp_path / "none.json")


async def test_exact_answers(make_engine):
    rows = [{"q": "a", "is": "A"}, {"q": "b", "is": "b"}, {"q": "c", "is": None}, {"p": 1}]
    found = await aevaluate(rows, "exact", expected="is", prompt="{q}", engine=make_engine())
    assert (found.scores, found.failed, found.unlabelled) == ([1.0, 0.0], 0, 2)
    assert str(found).endswith("2 rows, 2 more without a usable label")


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("1.0", 1.0, True),
        ("1", 1.0, True),
        (" 2.5\n", 2.5, True),
        ('{"a": [1]}', {"a": [1.0]}, True),
        ('{"a": [2]}', {"a": [1]}, False),
        ("true", True, True),
        ("1", True, False),
        ('{"a": [1]}', {"a": [True]}, False),
        ('{"a": 1}', {"a": 1, "b": None}, False),
        ("[1,2]", [1, 2], True),
        ("1.0", "1", False),
        ("true", np.True_, True),
        ("1.0", np.int64(1), True),
        ("no JSON", [1], False),
    ],
)
async def test_values_that_are_no_text_are_compared_as_json(make_engine, answer, expected, right):
    engine = make_engine(lambda _: answer)
    rows = [{"q": "a", "is": expected}]
    found = await aevaluate(rows, "exact", expected="is", prompt="{q}", engine=engine)
    assert found.scores == [float(right)]


async def test_nothing_is_drawn(make_engine):  # so the command needs no seed, as its help says
    engine = make_engine()
    await aevaluate([{"q": "a", "is": "A"}], expected="is", prompt="{q}", engine=engine)
    await aevaluate([{"q": "a"}], "schema", schema={}, prompt="{q}", engine=engine)
    assert [request.sampling.is_deterministic for request in engine.requests] == [True, True]


async def test_rows_whose_label_is_no_option_have_no_score():
    options = {"prompt": "{q}", "choices": "a,b", "model": "simulated"}
    rows = [{"q": "x", "is": label} for label in ("a", None, "A", "b")]
    found = await aevaluate(rows, "choice", expected="is", **options)
    assert (len(found.scores), found.unlabelled) == (2, 2)
    with pytest.raises(InputError, match="no row has a label of the question 'choice' in the col"):
        await aevaluate(rows[1:3], "choice", expected="is", **options)


@pytest.mark.parametrize("missing", [None, math.nan, pd.NA, pd.NaT, np.float32("nan"), "", " "])
async def test_a_label_that_is_missing_is_not_a_wrong_answer(make_engine, missing):
    rows = [{"q": "a", "is": "A"}, {"q": "b", "is": missing}]
    found = await aevaluate(rows, "exact", expected="is", prompt="{q}", engine=make_engine())
    assert (found.scores, found.unlabelled) == ([1.0], 1)


async def test_an_empty_cell_of_a_csv_file_is_no_label(make_engine, tmp_path):
    (tmp_path / "in.csv").write_text("q,is\na,A\nb,\n")
    options = {"expected": "is", "prompt": "{q}", "engine": make_engine()}
    found = await aevaluate(tmp_path / "in.csv", "exact", **options)
    assert (found.scores, found.unlabelled) == ([1.0], 1)


async def test_answers_that_follow_a_schema(make_engine):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    answers = {"x": {"a": 1}, "y": {"a": "1"}, "z": "no JSON"}
    engine = make_engine(answers.__getitem__)
    rows = [{"q": name} for name in answers]
    found = await aevaluate(rows, "schema", schema=schema, prompt="{q}", engine=engine)
    assert found.scores == [1.0, 0.0, 0.0]
    assert engine.requests[0].sampling.structured is None


async def test_choices_by_likelihood():
    rows = [{"q": f"{n}", "is": "a"} for n in range(40)]
    found = await aevaluate(
        rows, "choice", expected="is", prompt="{q}", choices="a,b", model="simulated"
    )
    other = await aevaluate(
        [{**row, "is": "b"} for row in rows],
        "choice",
        expected="is",
        prompt="{q}",
        choices="a,b",
        model="simulated",
    )
    assert 0 < found.mean < 1
    assert found.mean + other.mean == 1


async def test_a_judge_of_pairs_favours_no_place():
    rows = [{"q": f"{n}", "one": "x", "two": "y"} for n in range(10)]
    asked = {"prompt": "{q}", "model": "simulated"}
    found = await aevaluate(rows, "pair", pair=("one", "two"), **asked)
    other = await aevaluate(rows, "pair", pair=("two", "one"), **asked)
    assert found.scores == pytest.approx([1 - score for score in other.scores])
    once = await aevaluate(iter(rows), "pair", pair=("one", "two"), **asked)
    assert once.scores == found.scores


async def test_a_pair_that_cannot_be_judged_favours_none():
    rows = [{"q": "a", "one": "x", "two": "y"}, {"one": "x", "two": "y"}]
    for pair in (("one", "two"), ("two", "one")):
        found = await aevaluate(rows, "pair", pair=pair, prompt="{q}", model="simulated")
        assert (found.scores[1], found.failed) == (0.5, 1)


async def test_the_likeliest_level_counts_and_not_the_mean():
    rows = [{"q": f"{n}", "is": f"{n % 3}.0"} for n in range(30)]
    decide = [{"name": "x", "low": 0, "high": 2}]
    found = await aevaluate(
        rows, "choice", expected="is", prompt="{q}", decide=decide, model="simulated"
    )
    assert 0 < found.mean < 1


SEVERAL = {"name": "x", "instructions": "?", "options": ["a", "b"], "several": True}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"form": "exact"}, "expected: the form 'exact' needs it"),
        ({"form": "schema"}, "schema: the form 'schema' needs it"),
        ({"form": "pair"}, "pair: the form 'pair' needs it"),
        ({"form": "pair", "pair": ["a"]}, "must be two columns"),
        ({"form": "exact", "expected": "iss"}, "no column 'iss'. Did you mean 'is'"),
        ({"form": "choice", "expected": "is"}, "needs choices"),
        ({"form": "exakt", "expected": "is"}, "there is no 'exakt'"),
        ({"form": "exact", "expected": "is", "choices": "a,b"}, "choices: has no meaning for the"),
        (
            {"form": "exact", "expected": "is", "filter": "a?"},
            "filter: has no meaning for the form",
        ),
        ({"form": "pair", "pair": ["q", "is"], "messages": "q"}, "messages: has no meaning"),
        ({"form": "exact", "expected": "is", "prompt": None}, "prompt: say what to ask"),
        ({"form": "exact", "expected": "is", "pair": ["a", "b"]}, "pair: has no meaning"),
        ({"form": "choice", "expected": "is", "choices": "a,b", "schema": {}}, "schema: has no"),
        ({"form": "pair", "pair": ["q", "is"], "decide": [SEVERAL]}, "decide: has no meaning"),
        ({"form": "schema", "schema": {}, "expected": "is"}, "expected: has no meaning"),
        ({"form": "choice", "expected": "is", "decide": [SEVERAL]}, "'x' takes several options"),
    ],
)
async def test_refused(options, why):
    with pytest.raises(ConfigError, match=why):
        await aevaluate(
            [{"q": "a", "is": "b"}], **{"prompt": "{q}", "model": "simulated", **options}
        )


@pytest.mark.parametrize("name", ["in.jsonl", "in.csv"])
async def test_a_column_that_is_not_there_is_refused_before_any_row_is_asked(
    tmp_path, make_engine, name
):
    source, engine = tmp_path / name, make_engine()
    if name == "in.csv":
        source.write_text("q,is\na,A\n")
    else:
        source.write_text('{"q": "a"}\n' * 2000 + '{"q": "a", "is": "A"}\n')
    with pytest.raises(ConfigError, match=r"no column 'iss'\. Did you mean 'is'"):
        await aevaluate(source, "exact", expected="iss", prompt="{q}", engine=engine)
    assert engine.starts == 0
    found = await aevaluate(source, "exact", expected="is", prompt="{q}", engine=engine)
    assert found.scores[-1] == 1.0


async def test_rows_that_are_read_once_are_asked_first(make_engine):
    rows = iter([{"q": "a", "is": "A"}])
    with pytest.raises(ConfigError, match=r"no column 'iss'\. Did you mean 'is'"):
        await aevaluate(rows, "exact", expected="iss", prompt="{q}", engine=make_engine())


async def test_no_rows():
    with pytest.raises(InputError, match="no rows"):
        await aevaluate([], "exact", expected="is", prompt="{q}", model="simulated")


def test_scores_are_plain_json(tmp_path):
    scores(1, 0).save(tmp_path / "e.json")
    written = json.loads((tmp_path / "e.json").read_text())
    assert (written["scores"], written["mean"], written["interval"][1]) == ([1.0], 1.0, 1.0)
