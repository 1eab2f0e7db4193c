"""Jobs that decide: columns, errors, filters, resumed and complete."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import penstock
from jobs import lines, settled
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import ConfigError, RequestError

QUESTIONS = [
    {"name": "team", "instructions": "Which?", "options": ["billing", "shipping"]},
    {"name": "urgent", "instructions": "Urgent?"},
    {"name": "anger", "instructions": "How angry?", "low": 1, "high": 3},
    {"name": "about", "instructions": "What?", "options": ["a", "b"], "several": True},
]


async def decide(source, output=None, **options):
    options = {"prompt": "{text}", "model": "simulated", "progress": False, **options}
    return await penstock.arun(source, output, **options)


async def test_each_question_is_two_columns(source, tmp_path):
    result = await decide(source, tmp_path / "out.jsonl", decide=QUESTIONS)
    assert (result.counts.rows, result.counts.ok) == (300, 300)
    rows = lines(tmp_path / "out.jsonl")
    assert list(rows[0]) == [
        *("id", "text", "team", "team_probabilities", "urgent", "urgent_probabilities"),
        *("anger", "anger_probabilities", "about", "about_probabilities"),
        *("status", "error", "usage", "attempts", "latency_ms"),
    ]
    for row in rows:
        for name in ("team", "urgent", "anger"):
            assert sum(row[f"{name}_probabilities"].values()) == pytest.approx(1, abs=1e-9)
        teams = row["team_probabilities"]
        assert row["team"] == max(teams, key=teams.__getitem__)
        assert row["urgent"] == (row["urgent_probabilities"]["true"] >= 0.5)
        assert row["anger"] == pytest.approx(
            sum(float(level) * p for level, p in row["anger_probabilities"].items())
        )
        assert row["about"] == [n for n, p in row["about_probabilities"].items() if p >= 0.5]


@pytest.mark.parametrize("name", ["out.parquet", "out.csv"])
async def test_other_outputs_hold_the_same(source, tmp_path, name):
    await decide(source, tmp_path / "out.jsonl", decide=QUESTIONS)
    await decide(source, tmp_path / name, decide=QUESTIONS)
    expected = settled(lines(tmp_path / "out.jsonl"))
    if name.endswith("parquet"):
        table = pq.read_table(tmp_path / name)
        assert settled(table.to_pylist()) == expected
        assert table.schema.field("urgent").type == pa.bool_()
        assert table.schema.field("about").type == pa.list_(pa.string())
        return
    found = list(csv.DictReader((tmp_path / name).read_text().splitlines()))
    assert [row["team"] for row in found] == [row["team"] for row in expected]
    assert [float(row["team_probabilities.billing"]) for row in found] == [
        row["team_probabilities"]["billing"] for row in expected
    ]
    assert "error.type" in found[0]
    assert "usage.prompt_tokens" in found[0]


async def test_rows_that_cannot_be_asked_are_error_rows(tmp_path):
    rows = [{"text": "a"}, {"other": 1}, {"text": "b"}]
    result = await decide(rows, tmp_path / "out.jsonl", choices="x,y")
    assert dict(result.counts.errors) == {"invalid_request_error": 1}
    found = lines(tmp_path / "out.jsonl")[1]
    assert found["status"] == "error"
    assert found["choice"] is found["choice_probabilities"] is None


async def test_equal_rows_are_asked_once():
    result = await decide([{"text": f"{n % 5}"} for n in range(50)], choices="x,y")
    assert result.counts.engine_calls == 5
    rows = [{k: v for k, v in row.items() if k == "choice_probabilities"} for row in result.rows()]
    assert rows[:5] == rows[5:10]


async def test_a_filter_keeps_matching_rows(source, tmp_path):
    path = tmp_path / "out.jsonl"
    every = [row async for row in _decided(source)]
    result = await decide(source, path, filter="Is it?", threshold=0.7)
    kept = lines(path)
    expected = [row for row in every if row["filter_probabilities"]["true"] >= 0.7]
    assert settled(kept) == settled(expected)
    assert 0 < len(kept) < 300
    assert result.counts.rows == 300
    assert result.counts.left_out == 300 - len(kept)
    again = await decide(source, path, filter="Is it?", threshold=0.7)
    assert again.already_complete
    assert again.counts.left_out == 300 - len(kept)


async def _decided(source):
    question = {"name": "filter", "instructions": "Is it?"}
    result = await decide(source, decide=[question])
    for row in result.rows():
        yield row


@pytest.mark.parametrize("order", ["input", "done"])
@pytest.mark.parametrize(
    ("name", "letters"), [("out.jsonl", False), ("out.jsonl", True), ("out.parquet", False)]
)
async def test_failed_rows_are_tried_again_and_others_are_not(tmp_path, order, name, letters):
    rows = [{"text": f"text {n}"} for n in range(200)]
    bad = [rows[n] if n % 50 else {"text": None} for n in range(200)]
    path = tmp_path / name
    options = {
        "filter": "Is it?",
        "order": order,
        "dead_letter": tmp_path / "bad.jsonl" if letters else None,
    }
    engine = Refusing()
    first = await decide(bad, path, **options, engine=engine, model=None)
    assert first.counts.failed == 4
    calls = engine.calls
    engine.refuses = False
    second = await decide(bad, path, **options, engine=engine, model=None, retry_failed=True)
    assert engine.calls == calls + 4 - 3  # the four are equal requests
    assert second.counts.rows == 200
    assert second.counts.failed == 0
    whole = await decide(bad, filter="Is it?", engine=engine, model=None)
    kept = lines(path) if path.suffix == ".jsonl" else pq.read_table(path).to_pylist()
    found = sorted(settled(kept), key=lambda row: row["text"] or "")
    assert found == sorted(settled(whole.rows()), key=lambda row: row["text"] or "")


class Refusing(SimulatedEngine):
    """Fails rows without a text."""

    refuses = True
    calls = 0

    def __init__(self):
        super().__init__("simulated")

    async def label_shares(self, texts, request):
        self.calls += 1
        if self.refuses and request.input[0]["content"] == "":
            raise RequestError("no text")
        return await super().label_shares(texts, request)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"decide": [{"name": "x", "options": ["a"]}]}, r"questions\[0\] \('x'\)"),
        ({"decide": [{"name": "status", "instructions": "?"}]}, "would be called 'status'"),
        ({"decide": [{"name": "text", "instructions": "?"}]}, "result_prefix"),
        ({"choices": "a,b", "temperature": 1.0}, "generate nothing"),
        ({"choices": "a,b", "schema": {"type": "object"}}, "generate nothing"),
        ({"choices": "a,b", "prompt": None}, "prompt"),
        ({"filter": "?", "threshold": 2.0}, "threshold"),
    ],
)
async def test_refused_before_anything_starts(tmp_path, options, why):
    class Untouched(SimulatedEngine):
        async def start(self):
            raise AssertionError("started")

    engine = Untouched("simulated")
    with pytest.raises(ConfigError, match=why):
        await decide([{"text": "a"}], tmp_path / "out.jsonl", model=None, engine=engine, **options)
    assert not (tmp_path / "out.jsonl.penstock").exists()


async def test_other_questions_are_another_job(source, tmp_path):
    await decide(source, tmp_path / "out.jsonl", choices="a,b")
    with pytest.raises(penstock.PenstockError, match="decide"):
        await decide(source, tmp_path / "out.jsonl", choices="a,c")


async def test_a_prefix_goes_before_each_column():
    result = await decide([{"text": "a", "choice": 1}], choices="a,b", result_prefix="out_")
    (row,) = result.rows()
    assert json.loads(json.dumps(row))["out_choice"] in ("a", "b")
    assert set(row["out_choice_probabilities"]) == {"a", "b"}


async def test_a_plan_of_it():
    job = penstock.Job(
        [{"text": f"{n}"} for n in range(40)], model="simulated", prompt="{text}", choices="a,b"
    )
    found = await job.aplan(trial=8)
    assert (found.rows, found.tried, found.completion_tokens) == (40, 8, 0)
    assert found.prompt_tokens
